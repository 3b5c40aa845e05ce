"""The scale of an autoencoder's latents, which a denoiser expects to vary by one."""

from __future__ import annotations

import itertools

import jax
import numpy as np

from animate_jax.data.input import training_batches
from animate_jax.parallel.mesh import batch_shards, input_share, place_batch, replicated
from animate_jax.training.objective import in_slices
from animate_jax.training.parameters import merge
from animate_jax.training.stages import Stage, input_config

BATCHES = 8


def measure_scaling_factor(stage: Stage, learned: dict, frozen: dict) -> float:
    """1 / standard deviation of unscaled latents (arXiv 2112.10752, appendix G), over the first
    training batches; the same on every process."""
    factor = stage.model.config.autoencoder.scaling_factor
    whole = replicated(stage.mesh)

    def moments(learned, frozen, pictures):
        def encode(x):
            return stage.model.encode_latents(merge(learned, frozen), x / 127.5 - 1) / factor

        latents = in_slices(
            encode, pictures, batch_shards(stage.mesh), stage.config.encode_pictures
        )
        return latents.mean(), (latents**2).mean()

    measure = jax.jit(moments, out_shardings=(whole, whole))
    batches = training_batches(input_config(stage.config), **input_share(stage.mesh))
    sums = []
    for batch in itertools.islice(batches, BATCHES):
        batch = place_batch(stage.mesh, {"frames": batch["frames"][:, 0]})
        sums.append([float(x) for x in measure(learned, frozen, batch["frames"])])
    batches.close()
    mean, square = np.mean(sums, axis=0)
    return float(1 / np.sqrt(square - mean**2))
