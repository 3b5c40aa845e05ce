"""The Inception-v3 of FID, with its peculiarities, as a function of weights.

Weights: `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, the network of the original FID code
under torchvision's names. It differs from torchvision's Inception: means at edges leave the padding
out, the last block pools by maximum where the one before it takes means, and there are 1008
classes, which are not used here.
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

SIZE = 299
FEATURES = 2048


def fid_features(weights: Weights, pictures: jax.Array) -> jax.Array:
    """(n, height, width, 3) in [0, 1] -> (n, 2048): resized to 299x299 as pytorch-fid does."""
    return inception(weights, 2 * resize(pictures, SIZE, SIZE, "linear", antialias=False) - 1)


def inception(weights: Weights, x: jax.Array) -> jax.Array:
    """(n, height, width, 3) in [-1, 1], sides of at least 75 -> (n, 2048)."""

    def unit(name, x, stride=1, same=True):
        height, width = weights[f"{name}.conv.weight"].shape[:2]
        padding = (height // 2, width // 2) if same else 0
        x = convolution(weights, f"{name}.conv", x, stride, padding)
        return jax.nn.relu(batch_norm(weights, f"{name}.bn", x, 1e-3))

    def chain(block, names, x, **last):
        *names, end = names.split()
        for name in names:
            x = unit(f"{block}.{name}", x)
        return unit(f"{block}.{end}", x, **last)

    def around(x):
        return mean_pool(x, 3, 1, 1)

    def joined(*branches):
        return jnp.concatenate(branches, -1)

    reduced = dict(stride=2, same=False)
    x = unit("Conv2d_1a_3x3", x, **reduced)
    x = unit("Conv2d_2a_3x3", x, same=False)
    x = max_pool(unit("Conv2d_2b_3x3", x), 3, 2)
    x = unit("Conv2d_3b_1x1", x)
    x = max_pool(unit("Conv2d_4a_3x3", x, same=False), 3, 2)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = joined(
            chain(block, "branch1x1", x),
            chain(block, "branch5x5_1 branch5x5_2", x),
            chain(block, "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3", x),
            chain(block, "branch_pool", around(x)),
        )
    x = joined(
        chain("Mixed_6a", "branch3x3", x, **reduced),
        chain("Mixed_6a", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3", x, **reduced),
        max_pool(x, 3, 2),
    )
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = joined(
            chain(block, "branch1x1", x),
            chain(block, "branch7x7_1 branch7x7_2 branch7x7_3", x),
            chain(block, " ".join(f"branch7x7dbl_{n}" for n in range(1, 6)), x),
            chain(block, "branch_pool", around(x)),
        )
    x = joined(
        chain("Mixed_7a", "branch3x3_1 branch3x3_2", x, **reduced),
        chain("Mixed_7a", " ".join(f"branch7x7x3_{n}" for n in range(1, 5)), x, **reduced),
        max_pool(x, 3, 2),
    )
    for block in ("Mixed_7b", "Mixed_7c"):
        short = chain(block, "branch3x3_1", x)
        long = chain(block, "branch3x3dbl_1 branch3x3dbl_2", x)
        x = joined(
            chain(block, "branch1x1", x),
            *(chain(block, f"branch3x3_2{side}", short) for side in "ab"),
            *(chain(block, f"branch3x3dbl_3{side}", long) for side in "ab"),
            chain(block, "branch_pool", around(x) if block == "Mixed_7b" else max_pool(x, 3, 1, 1)),
        )
    return x.mean((1, 2))
