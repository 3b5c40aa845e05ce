"""All of the method."""

from configs import ablations


def get_config():
    return ablations.second_stage(after="full_stage1.py")
