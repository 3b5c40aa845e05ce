"""The reference as one image token and nothing else, as IP-Adapter has it; first stage."""

from configs import ablations


def get_config():
    return ablations.first_stage(reference="none")
