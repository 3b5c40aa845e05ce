"""Features of the reference are added, as ControlNet does, not attended to."""

from configs import ablations


def get_config():
    return ablations.second_stage(after="added_stage1.py", reference="added")
