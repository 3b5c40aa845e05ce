"""The autoencoder of the tiny stages, from random weights."""

from configs import autoencoder, tiny_stage1


def get_config():
    config = tiny_stage1.small(autoencoder.get_config())
    config.measure_scaling_factor = True
    config.loss.squared_weight, config.loss.gradient_weight = 4.0, 0.0
    config.loss.kl_weight = 1e-4
    config.steps = 3600
    config.optimizer.learning_rate = 1e-2
    config.data.batch_size = 4
    return config
