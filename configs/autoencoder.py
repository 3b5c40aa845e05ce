"""The autoencoder alone: fine-tune it for faces, or train one from nothing (set config.model).

`--config.init_from=models/sd15 --config.data.path=RECORDS`
"""

import dataclasses

from ml_collections import ConfigDict

from animate_jax.training.objective import ReconstructionLoss
from configs import base


def get_config():
    config = base.get_config()
    config.objective = "reconstruction"
    config.loss = ConfigDict(dataclasses.asdict(ReconstructionLoss()))
    config.learned = (r"^autoencoder/",)
    config.remat = "none"
    config.data.batch_size = 32
    config.optimizer.warmup = 500
    config.optimizer.average_decay = 0.999
    config.validation.frames = 4
    return config
