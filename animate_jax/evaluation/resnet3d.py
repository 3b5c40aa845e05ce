"""The 3D ResNet-50 (arXiv 1708.07632) whose 2048 features DisCo's FID-VID compares.

Weights: `resnet-50-kinetics.pth` of 3D-ResNets-PyTorch, with shortcuts of type B.
"""

from __future__ import annotations

import jax
import numpy as np

from animate_jax.evaluation.layers import Weights, batch_norm, convolution, max_pool, resize

SIZE = 112
FEATURES = 2048
PIXEL_MEAN = np.float32([114.7748, 107.7354, 99.4750])
DEPTHS = (3, 4, 6, 3)


def fid_vid_features(weights: Weights, clips: jax.Array) -> jax.Array:
    """(n, frames, height, width, 3) in [0, 1] -> (n, 2048): resized to 112x112 as Pillow does.

    As in DisCo's evaluation code, which gives it 16 frames.
    """
    return resnet3d(weights, 255 * resize(clips, SIZE, SIZE, "cubic", antialias=True) - PIXEL_MEAN)


def resnet3d(weights: Weights, x: jax.Array) -> jax.Array:
    """(n, frames, height, width, 3), 0 to 255 less PIXEL_MEAN -> (n, 2048)."""

    def unit(convolve, norm, x, stride=1, padding=0):
        return batch_norm(weights, norm, convolution(weights, convolve, x, stride, padding), 1e-5)

    x = jax.nn.relu(unit("conv1", "bn1", x, (1, 2, 2), 3))
    x = max_pool(x, 3, 2, 1)
    for layer, depth in enumerate(DEPTHS, 1):
        for block in range(depth):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            inner = jax.nn.relu(unit(f"{name}.conv1", f"{name}.bn1", x))
            inner = jax.nn.relu(unit(f"{name}.conv2", f"{name}.bn2", inner, stride, 1))
            inner = unit(f"{name}.conv3", f"{name}.bn3", inner)
            if block == 0:
                x = unit(f"{name}.downsample.0", f"{name}.downsample.1", x, stride)
            x = jax.nn.relu(inner + x)
    return x.mean((1, 2, 3))
