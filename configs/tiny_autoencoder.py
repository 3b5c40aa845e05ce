"""The autoencoder of the tiny stages, from random weights."""

from configs import autoencoder, tiny_stage1


def get_config():
    config = tiny_stage1.small(autoencoder.get_config())
    config.measure_scaling_factor = True
    config.loss.squared_weight, config.loss.gradient_weight = 4.0, 0.0
    config.loss.kl_weight = 1e-4
    config.steps = 1150
    config.optimizer.learning_rate = 1e-2
    # Three quarters of a picture at its own size: what is learnt is small.
    config.data.crop, config.data.zoom = "fill", (0.75, 0.75)
    config.data.height = config.data.width = 96
    config.data.batch_size = 8
    return config
