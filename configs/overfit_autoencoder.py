"""The autoencoder of overfit.py: one clip, learnt by heart."""

from configs import autoencoder, overfit


def get_config():
    config = autoencoder.get_config()
    return overfit.one_clip(config, steps=1500, learning_rate=2e-3)
