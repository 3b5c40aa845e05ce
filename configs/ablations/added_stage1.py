"""Features of the reference are added, as ControlNet does, not attended to; first stage."""

from configs import ablations


def get_config():
    return ablations.first_stage(reference="added")
