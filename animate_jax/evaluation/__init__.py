"""How good generated videos are: metrics, the networks some of them need, baselines, reports."""
