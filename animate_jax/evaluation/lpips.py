"""LPIPS (arXiv 1801.03924), version 0.1, on AlexNet or VGG-16.

Weights: torchvision's networks (`features.0.weight`, ...) and the `lin0.model.1.weight`, ... of
`lpips/weights/v0.1/alex.pth` or `vgg.pth`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from animate_jax.evaluation.layers import Weights, convolution, max_pool

SHIFT = np.float32([-0.030, -0.088, -0.188])
SCALE = np.float32([0.458, 0.448, 0.450])

# Number in torchvision's `features`: (stride, padding) of a convolution that a ReLU follows, or
# (window, stride) of a pooling; the layers after whose ReLU features are compared.
_CONVOLUTION, _POOL = "convolution", "pool"
ALEX = {
    0: (_CONVOLUTION, 4, 2),
    2: (_POOL, 3, 2),
    3: (_CONVOLUTION, 1, 2),
    5: (_POOL, 3, 2),
    6: (_CONVOLUTION, 1, 1),
    8: (_CONVOLUTION, 1, 1),
    10: (_CONVOLUTION, 1, 1),
}
VGG = {
    **{n: (_CONVOLUTION, 1, 1) for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)},
    **{n: (_POOL, 2, 2) for n in (4, 9, 16, 23)},
}
NETWORKS = {"alex": (ALEX, (0, 3, 6, 8, 10)), "vgg": (VGG, (2, 7, 14, 21, 28))}


def lpips(
    weights: Weights, first: jax.Array, second: jax.Array, network: str, normalize: bool = True
) -> jax.Array:
    """Distance of pictures (n, height, width, 3) in [0, 1] -> (n,); sides of at least 64 pixels.

    normalize: brings them to [-1, 1], what the network is calibrated for. False is what DisCo's
    evaluation code does, and with VGG what the papers after it print.
    """
    pictures = jnp.concatenate([first, second])
    pictures = pictures * 2 - 1 if normalize else pictures
    total = 0.0
    for level, features in enumerate(_features(weights, (pictures - SHIFT) / SCALE, network)):
        length = jnp.sqrt(jnp.square(features).sum(-1, keepdims=True))
        a, b = jnp.split(features / (length + 1e-10), 2)
        total += convolution(weights, f"lin{level}.model.1", jnp.square(a - b)).mean((1, 2, 3))
    return total


def _features(weights, x, network):
    layers, compared = NETWORKS[network]
    for number, (kind, *numbers) in sorted(layers.items()):
        if kind == _POOL:
            x = max_pool(x, *numbers)
            continue
        x = jax.nn.relu(convolution(weights, f"features.{number}", x, *numbers))
        if number in compared:
            yield x
