"""Frames of a clip with noise of their own, in training and in sampling."""

from configs import ablations


def get_config():
    config = ablations.second_stage(after="full_stage1.py")
    config.schedule = None
    return config
