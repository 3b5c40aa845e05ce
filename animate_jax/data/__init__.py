"""Training input: records of clips to batches."""
