"""The reference as one image token and nothing else, as IP-Adapter has it."""

from configs import ablations


def get_config():
    return ablations.second_stage(after="image_token_stage1.py", reference="none")
