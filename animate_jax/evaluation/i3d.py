"""The two-stream Inception-v1 I3D (arXiv 1705.07750), RGB, whose 400 logits FVD compares.

Weights: `i3d_pretrained_400.pt`, which DisCo uses, or `rgb_imagenet.pt` of pytorch-i3d; both
have the names `Conv3d_1a_7x7.conv3d.weight`, `Mixed_3b.b0.bn.weight`, ...
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from animate_jax.evaluation.layers import (
    Weights,
    batch_norm,
    convolution,
    max_pool,
    mean_pool,
    resize,
)

SIZE = 224
FEATURES = 400
LEAST_FRAMES = 9  # of which two are left for the last pooling
_POOLS = {  # before these blocks: window and stride over frames, height and width
    "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}
_BLOCKS = [f"Mixed_{name}" for name in "3b 3c 4b 4c 4d 4e 4f 5b 5c".split()]


def fvd_features(weights: Weights, clips: jax.Array) -> jax.Array:
    """(n, frames, height, width, 3) in [0, 1] -> (n, 400): resized to 224x224 as Pillow does."""
    return i3d(weights, 2 * resize(clips, SIZE, SIZE, "cubic", antialias=True) - 1)


def i3d(weights: Weights, x: jax.Array) -> jax.Array:
    """(n, frames, height, width, 3) in [-1, 1] -> (n, 400) logits, the mean over time."""

    def unit(name, x, stride=1):
        x = convolution(weights, f"{name}.conv3d", x, stride, "SAME")
        return jax.nn.relu(batch_norm(weights, f"{name}.bn", x, 1e-3))

    def pooled(name, x):
        return max_pool(x, *_POOLS[name], "SAME") if name in _POOLS else x

    x = unit("Conv3d_1a_7x7", x, 2)
    for name in ("Conv3d_2b_1x1", "Conv3d_2c_3x3"):
        x = unit(name, pooled(name, x))
    for name in _BLOCKS:
        x = pooled(name, x)
        branches = [
            unit(f"{name}.b0", x),
            unit(f"{name}.b1b", unit(f"{name}.b1a", x)),
            unit(f"{name}.b2b", unit(f"{name}.b2a", x)),
            unit(f"{name}.b3b", max_pool(x, 3, 1, "SAME")),
        ]
        x = jnp.concatenate(branches, -1)
    x = mean_pool(x, (2, *x.shape[2:4]), 1)
    return convolution(weights, "logits.conv3d", x).mean((1, 2, 3))
