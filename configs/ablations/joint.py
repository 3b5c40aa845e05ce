"""Both stages at once: everything learns from clips."""

from configs import ablations


def get_config():
    config = ablations.second_stage(
        after="", frames=ablations.STAGE1_FRAMES + ablations.STAGE2_FRAMES
    )
    config.learned = ablations.first_stage().learned
    config.init_components = ("autoencoder",)
    return config
