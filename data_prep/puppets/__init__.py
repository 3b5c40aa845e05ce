"""Puppets: drawn people with exact keypoints, as many as wanted, free of anyone's rights."""
