"""Stage 1 on a CPU: the tiny model from random weights, on puppets of 64x64 pixels.

`animate-jax train --config configs/tiny_stage1.py --workdir DIR` draws the puppets, trains the
autoencoder first, and needs nothing else.
"""

from animate_jax.config import tiny, to_dict
from configs import stage1


def get_config():
    config = small(stage1.get_config())
    config.after = "tiny_autoencoder.py"
    config.steps = 4000
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup = 100
    return config


def small(config):
    """What the tiny stages have in common."""
    config.model = to_dict(tiny())
    config.puppets.clips = 200
    config.dtype, config.remat = "float32", "none"
    config.encode_pictures = 8
    config.mesh.data, config.mesh.fsdp = -1, 1
    config.data.height = config.data.width = 64
    config.data.batch_size = 8
    config.data.workers = 2
    config.validation.videos = 2
    return config
