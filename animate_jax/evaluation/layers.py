"""Layers of the networks that metrics use, as functions of weights by PyTorch's names.

Weights are a flat mapping from a state dict's names to arrays, convolutions with their axes as
(height, width, in, out), with a first axis for time in 3D. Arrays are channel-last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Weights = Mapping[str, jax.Array]
Padding = str | int | Sequence[int]


def convolution(
    weights: Weights, name: str, x: jax.Array, stride: int | Sequence[int] = 1, padding: Padding = 0
) -> jax.Array:
    """padding: on both sides of every axis, or "SAME" as TensorFlow pads."""
    kernel = weights[f"{name}.weight"]
    axes = kernel.ndim - 2
    letters = "DHW"[-axes:]
    layout = f"N{letters}C", f"{letters}IO", f"N{letters}C"
    x = lax.conv_general_dilated(
        x,
        kernel,
        _each(stride, axes),
        padding if isinstance(padding, str) else [(p, p) for p in _each(padding, axes)],
        dimension_numbers=layout,
        precision=lax.Precision.HIGHEST,
    )
    return x + weights[f"{name}.bias"] if f"{name}.bias" in weights else x


def batch_norm(weights: Weights, name: str, x: jax.Array, epsilon: float) -> jax.Array:
    """By the running statistics."""
    scale = weights[f"{name}.weight"] / jnp.sqrt(weights[f"{name}.running_var"] + epsilon)
    return (x - weights[f"{name}.running_mean"]) * scale + weights[f"{name}.bias"]


def max_pool(x, window: int | Sequence[int], stride: int | Sequence[int], padding: Padding = 0):
    """Over all axes between the first and the last."""
    return _pool(x, -jnp.inf, lax.max, window, stride, padding)


def mean_pool(x, window: int | Sequence[int], stride: int | Sequence[int], padding: Padding = 0):
    """Padding does not count."""
    sums = _pool(x, 0.0, lax.add, window, stride, padding)
    return sums / _pool(jnp.ones_like(x[:1, ..., :1]), 0.0, lax.add, window, stride, padding)


def _pool(x, start, function, window, stride, padding):
    axes = x.ndim - 2
    if not isinstance(padding, str):
        padding = [(0, 0), *((p, p) for p in _each(padding, axes)), (0, 0)]
    window, stride = (1, *_each(window, axes), 1), (1, *_each(stride, axes), 1)
    return lax.reduce_window(x, start, function, window, stride, padding)


def resize(x: jax.Array, height: int, width: int, method: str, antialias: bool) -> jax.Array:
    """(..., H, W, C) -> (..., height, width, C); "linear" as PyTorch, "cubic" as Pillow does."""
    shape = (*x.shape[:-3], height, width, x.shape[-1])
    with jax.default_matmul_precision("float32"):
        return jax.image.resize(x, shape, method, antialias=antialias)


def _each(value, axes):
    return (value,) * axes if isinstance(value, int) else tuple(value)
