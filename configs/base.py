"""Everything that a training can be told, with the values that most of them share.

`animate-jax train --config configs/stage1.py --workdir DIR --config.data.path=RECORDS ...`
"""

import dataclasses

from ml_collections import ConfigDict

from animate_jax.parallel.sharding import FSDP_MIN_SIZE, TENSOR_RULES
from animate_jax.training.objective import DenoisingLoss
from animate_jax.training.optimizer import OptimizerConfig


def get_config() -> ConfigDict:
    """Locked: who sets a key that is not here is told so."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 30_000
    config.objective = "denoising"  # or "reconstruction", of the autoencoder

    # A config beside this one that is trained first, in a folder of the workdir, and started from.
    config.after = ""
    # Where the parameters come from: a model directory, or the workdir of an earlier stage.
    # Nothing: random ones, of the sizes in config.model (a dictionary as in config.json).
    config.init_from = ""
    config.init_components = ()  # take no others from there, and draw the rest; () takes all
    config.model = None
    # Whether the denoiser has motion modules, and another model whose motion modules to take.
    config.motion = False
    config.motion_from = ""
    # A dictionary in place of the model's noise schedule, in training and in later sampling.
    config.schedule = None

    # Whether the finished autoencoder's latents are scaled anew to vary by one: for one that was
    # trained from nothing, not for one that denoisers already know.
    config.measure_scaling_factor = False

    # Paths by regular expression; the second list takes away from what the first one finds.
    config.learned = ()
    config.frozen = ()

    config.loss = ConfigDict(dataclasses.asdict(DenoisingLoss()))
    config.optimizer = ConfigDict(dataclasses.asdict(OptimizerConfig()))
    config.accumulate = 1  # parts that a batch goes through in, one after the other
    config.spike_factor = 20.0  # a loss so many times the usual one stops the run; 0 never

    config.dtype = "bfloat16"  # of computation and frozen weights; what learns is float32
    config.remat = "full"  # what the backward pass keeps: see docs/training.md
    config.encode_pictures = 8  # at a time and device, by the frozen networks

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.sharding = TENSOR_RULES  # see animate_jax/parallel/sharding.py
    config.fsdp_min_size = FSDP_MIN_SIZE  # smaller arrays stay whole

    # See animate_jax/data/config.py; `path` stands for one set of records, `sets` for several.
    config.data = ConfigDict(
        {
            "path": "",
            "sets": (),
            "height": 512,
            "width": 512,
            "frames": 1,
            "stride": 4,
            "margin": 30,
            "crop": "person",
            "zoom": (0.8, 1.0),
            "flip": 0.5,
            "body_only": 0.0,
            "batch_size": 8,
            "seed": 0,
            "workers": 8,
            "prefetch": 2,
        }
    )
    # Where config.data has no path: puppets that are drawn into the workdir first. 0 clips: none.
    config.puppets = ConfigDict(
        {"clips": 0, "size": 64, "frames": 48, "seed": 0, "validation": 0.1}
    )

    config.log_every = 50
    config.checkpoint_every = 1000
    config.keep_last = 2
    config.keep_best = 1  # by validation loss
    config.validation = ConfigDict(
        {
            "every": 1000,  # steps; 0 never
            "path": "",  # of other records than config.data's
            "split": "validation",
            "batches": 8,  # at most
            "videos": 4,  # sampled and written, 0 for none
            "frames": 8,  # of each video; a stage of clips takes those of its data
            "steps": 20,
            "guidance": 3.5,
        }
    )
    config.profile = (0, 0)  # first and last step of a trace to look at
    return config.lock()
