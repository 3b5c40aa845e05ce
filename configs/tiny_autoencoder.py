"""The autoencoder of the tiny stages, from random weights."""

from configs import autoencoder, tiny_stage1


def get_config():
    config = tiny_stage1.small(autoencoder.get_config())
    config.measure_scaling_factor = True
    config.steps = 4000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 100
    return config
