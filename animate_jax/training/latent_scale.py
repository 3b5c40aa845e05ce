"""The scale of an autoencoder's latents, which a denoiser expects to vary by one."""

from __future__ import annotations

import itertools

import jax
import numpy as np

from animate_jax.data.input import training_batches
from animate_jax.parallel.mesh import batch_sharding, batch_shards, replicated
from animate_jax.training.objective import in_slices
from animate_jax.training.parameters import merge
from animate_jax.training.stages import Stage, input_config

BATCHES = 8


def measure_scaling_factor(stage: Stage, learned: dict, frozen: dict) -> float:
    """1 / standard deviation of unscaled latents (arXiv 2112.10752, appendix G), over the first
    training batches; the same on every process."""
    factor = stage.model.config.autoencoder.scaling_factor
    whole, sharding = replicated(stage.mesh), batch_sharding(stage.mesh)

    def moments(learned, frozen, pictures):
        def encode(x):
            return stage.model.encode_latents(merge(learned, frozen), x / 127.5 - 1) / factor

        latents = in_slices(
            encode, pictures, batch_shards(stage.mesh), stage.config.encode_pictures
        )
        return latents.mean(), (latents**2).mean()

    measure = jax.jit(moments, out_shardings=(whole, whole))
    batches = training_batches(
        input_config(stage.config),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    sums = []
    for batch in itertools.islice(batches, BATCHES):
        pictures = jax.make_array_from_process_local_data(sharding, batch["frames"][:, 0])
        sums.append([float(x) for x in measure(learned, frozen, pictures)])
    batches.close()
    mean, square = np.mean(sums, axis=0)
    return float(1 / np.sqrt(square - mean**2))
