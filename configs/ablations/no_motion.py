"""No motion modules: single frames until the budget is spent."""

from configs import ablations


def get_config():
    return ablations.first_stage(frames=ablations.STAGE1_FRAMES + ablations.STAGE2_FRAMES)
