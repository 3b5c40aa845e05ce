"""Preparation of training data: videos and drawn puppets to records."""
