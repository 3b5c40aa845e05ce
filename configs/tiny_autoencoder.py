"""The autoencoder of the tiny stages, from random weights."""

from configs import autoencoder, tiny_stage1


def get_config():
    config = tiny_stage1.small(autoencoder.get_config())
    config.measure_scaling_factor = True
    config.loss.kl_weight = 1e-4
    config.steps = 900
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule, config.optimizer.warmup = "cosine", 100
    config.optimizer.average_decay = 0.99
    config.data.batch_size = 16
    config.validation.every = 300
    return config
