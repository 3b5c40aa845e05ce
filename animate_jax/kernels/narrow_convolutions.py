"""3x3 convolutions of few channels on large pictures, each followed by SiLU.

A TPU works on 128 channels at a time, and XLA moves pictures of 3, 16 or 32 about at length. There
squares of pixels become channels first (arXiv 1609.05158, the other way round): a convolution of
C channels is one of n * n * C channels on a picture 1 / n as high and wide, with the same sums. Its
kernel is mostly zeros, but it is wide enough. One of stride 2 leaves squares of half the side.
"""

from __future__ import annotations

import typing

import jax
import jax.numpy as jnp
import numpy as np

from animate_jax.kernels.dispatch import by_platform

SQUARE = 4  # pixels on a side that become channels
NUMBERS = "NHWC", "HWIO", "NHWC"


class Layer(typing.NamedTuple):
    """In the compute dtype."""

    kernel: jax.Array  # (3, 3, C, D)
    bias: jax.Array  # (D,)


def narrow_convolutions(x: jax.Array, layers: list[Layer], strides: list[int]) -> jax.Array:
    """x (P, H, W, C) through all layers, padded by one pixel; strides are 1 or 2, static."""

    def plain(x, layers):
        for layer, stride in zip(layers, strides, strict=True):
            x = _convolve(x, layer, stride)
        return x

    def folded(x, layers):
        side, x = SQUARE, _fold(x, SQUARE)
        for layer, stride in zip(layers, strides, strict=True):
            if side == 1:
                x = _convolve_few(x, layer, stride)
                continue
            x = _convolve_few(x, _fold_layer(layer, side, stride), 1)
            side //= stride
        return _unfold(x, side)

    fits = x.shape[1] % SQUARE == x.shape[2] % SQUARE == 0
    return by_platform(plain, x, layers, tpu=folded if fits else None)


def _convolve(x, layer, stride):
    padding = ((1, 1), (1, 1))
    y = jax.lax.conv_general_dilated(
        x, layer.kernel, (stride, stride), padding, dimension_numbers=NUMBERS
    )
    return jax.nn.silu(y + layer.bias)


def _convolve_few(x, layer, stride):
    """The same for a TPU: the last dimension is a third one of a single pixel, for XLA cuts the
    last in eight, and moves the pieces about at length, where a device has fewer pictures."""
    x, kernel = x[:, :, :, None], layer.kernel[:, :, None]
    padding, numbers = ((1, 1), (1, 1), (0, 0)), ("NHWDC", "HWDIO", "NHWDC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride, 1), padding, dimension_numbers=numbers
    )
    return jax.nn.silu(y[:, :, :, 0] + layer.bias)


def _fold(x, side):
    """(P, H, W, C) -> (P, H / side, W / side, side * side * C)."""
    pictures, height, width, channels = x.shape
    x = x.reshape(pictures, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(*x.shape[:2], width // side, -1)


def _unfold(x, side):
    pictures, height, width, channels = x.shape
    x = x.reshape(pictures, height, width, side, side, channels // side**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(pictures, height * side, width * side, -1)


def _fold_layer(layer, side, stride):
    """The layer from squares of `side` pixels to squares of `side // stride`, of stride 1."""
    out = side // stride
    where = np.zeros((out, 3, 3, side), layer.kernel.dtype)  # pixel out, tap; square, pixel in
    for pixel in range(out):
        for tap in range(3):
            square, inside = divmod(stride * pixel + tap - 1, side)
            where[pixel, tap, square + 1, inside] = 1
    kernel = jnp.einsum("aisb,cjtd,ijxy->stbdxacy", where, where, layer.kernel)
    kernel = kernel.reshape(3, 3, side**2 * layer.kernel.shape[2], -1)
    return Layer(kernel, jnp.tile(layer.bias, out**2))
