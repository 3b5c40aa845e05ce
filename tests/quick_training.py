"""A training whose loss compiles at once: for what the loop has to get right, not the model.

As a program it is `animate-jax train` with that loss.
"""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from animate_jax.training.stages import Stage

CONFIG = os.path.join(os.path.dirname(__file__), "small_stage1.py")
LEARNED = 'learned=("^pose_guider/conv_in/",)'


def quick_loss(params, batch, keys):
    """Of one kernel and the mean of the frames, with the sample's own noise."""
    bright = batch["frames"].astype(jnp.float32).mean((1, 2, 3, 4)) / 255
    noise = jax.vmap(jax.random.normal)(keys)
    layer = params["pose_guider"]["conv_in"]
    return (layer["kernel"].mean() + layer["bias"].sum() - bright + 0.1 * noise) ** 2


def command(records, *overrides):
    """The program's command line, without --workdir."""
    values = [f"--config.{one}" for one in (f"data.path={records}", LEARNED, *overrides)]
    return [sys.executable, __file__, "train", "--config", CONFIG, *values]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from animate_jax.cli import main

    Stage.loss = property(lambda stage: quick_loss)
    sys.exit(main())
