"""Random parameters by rule: the first pattern that a path matches says how its array begins.

Leaf by leaf from the shapes alone and on the host: no network runs, nothing is compiled, and the
numbers are the same on every backend and mesh.
"""

from __future__ import annotations

import math
import re
import zlib

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from animate_jax.models.motion import sinusoidal_positions


def _fan_in(random, shape):
    """Variance 1 / inputs, so that signals keep their size."""
    return random.standard_normal(shape, np.float32) * np.float32(math.prod(shape[:-1]) ** -0.5)


def _gaussian(random, shape):
    return random.standard_normal(shape, np.float32) * np.float32(0.02)


def _zeros(random, shape):
    return np.zeros(shape, np.float32)


def _ones(random, shape):
    return np.ones(shape, np.float32)


def _positions(random, shape):
    return sinusoidal_positions(*shape[1:])


def _near(random, shape):
    """Attention that looks, to begin with, where its query is: far from uniform, and so quick to
    learn from (arXiv 2305.09828 does it with other means)."""
    return 3 * np.eye(*shape, dtype=np.float32)


def _quiet(random, shape):
    """Of means beside log-variances: latents whose noise leaves something to learn from."""
    return np.repeat(np.float32([0, -6]), shape[0] // 2)


# What is added to a working network starts at zero: motion modules, pose features, body
# values, a reference that is not attended to.
RULES = (
    (r"/reference_out/kernel", _zeros),
    (r"autoencoder/quant_conv/bias", _quiet),
    (r"temporal_transformer/proj_out/kernel", _zeros),
    (r"pose_guider/(conv_out|final_proj)/kernel", _zeros),
    (r"pose_guider/conv_layers_\d+/kernel", _gaussian),  # arXiv 2311.17117, section 4.1
    (r"pos_encoder/pe", _positions),
    (r"/(position|body)_[qk]/kernel", _near),
    (r"/body_out/kernel", _zeros),
    (r"(class_embedding|embedding)$", _gaussian),
    (r"/scale$", _ones),
    (r"/bias$", _zeros),
    (r"/kernel$", _fan_in),
)


def initialize(shapes: dict, seed: int, component: str) -> dict:
    """Float32 arrays of a tree of shapes; each depends on the seed and its own path only."""
    arrays = {}
    for path, leaf in flatten_dict(shapes).items():
        name = "/".join((component, *path))
        make = next(make for pattern, make in RULES if re.search(pattern, name))
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        arrays[path] = make(random, tuple(leaf.shape))
    return unflatten_dict(arrays)
