"""The autoencoder of overfit.py: one clip, learnt by heart."""

from configs import autoencoder, overfit


def get_config():
    config = autoencoder.get_config()
    config.measure_scaling_factor = True
    return overfit.one_clip(config, steps=2000, learning_rate=4e-3)
