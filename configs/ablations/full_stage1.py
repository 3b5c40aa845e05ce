"""All of the method, first stage."""

from configs import ablations


def get_config():
    return ablations.first_stage()
