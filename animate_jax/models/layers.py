"""Layers shared by the UNets, the autoencoder and the motion modules, equal to PyTorch's.

Pictures are channel-last with any leading axes: (..., height, width, channels). Normalisation
statistics are float32 with a two-pass variance, whatever the compute dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from animate_jax.kernels.dispatch import keep_rows
from animate_jax.kernels.feed_forward import feed_forward
from animate_jax.kernels.geglu import Weights
from animate_jax.kernels.group_norm import group_norm

Dtype = jnp.dtype | type


class GroupNorm(nn.Module):
    """GroupNorm over one picture's pixels, and SiLU after it where asked for: (..., H, W, C) -> the
    same in `dtype`. A clip's frames are normalised one by one."""

    groups: int
    eps: float
    dtype: Dtype
    silu: bool = False

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x = x.astype(self.dtype)
        return group_norm(x, scale, bias, self.groups, self.eps, self.silu)


def layer_norm(dtype: Dtype, eps: float = 1e-5, name: str | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(eps, dtype=dtype, use_fast_variance=False, name=name)


def convolution(
    channels: int,
    size: int,
    dtype: Dtype,
    stride: int = 1,
    padding: int | Sequence[tuple[int, int]] | None = None,
    name: str | None = None,
) -> nn.Conv:
    """A square convolution padded like PyTorch's: by `size // 2` unless said otherwise."""
    padding = size // 2 if padding is None else padding
    return nn.Conv(channels, (size, size), (stride, stride), padding, dtype=dtype, name=name)


def timestep_embedding(timesteps: jax.Array, channels: int) -> jax.Array:
    """Sinusoidal embedding, cosines first (diffusers: flip_sin_to_cos, shift 0).

    timesteps (B,) -> (B, channels) float32.
    """
    half = channels // 2
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class TimestepEmbedding(nn.Module):
    """Two linear layers with SiLU between: (B, C) -> (B, channels)."""

    channels: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.channels, dtype=self.dtype, name="linear_1")(x)
        return nn.Dense(self.channels, dtype=self.dtype, name="linear_2")(nn.silu(x))


class ResnetBlock(nn.Module):
    """norm, SiLU, convolution, twice; the embedded timestep is added between.

    x (B, ..., h, w, C), embedding (B, E) or None -> (B, ..., h, w, channels).
    """

    channels: int
    groups: int
    eps: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x, embedding=None):
        residual = x
        x = GroupNorm(self.groups, self.eps, self.dtype, silu=True, name="norm1")(x)
        x = convolution(self.channels, 3, self.dtype, name="conv1")(x)
        if embedding is not None:
            shift = nn.Dense(self.channels, dtype=self.dtype, name="time_emb_proj")
            shift = shift(nn.silu(embedding))
            x = x + shift.reshape(shift.shape[0], *(1,) * (x.ndim - 2), self.channels)
        x = GroupNorm(self.groups, self.eps, self.dtype, silu=True, name="norm2")(x)
        x = convolution(self.channels, 3, self.dtype, name="conv2")(x)
        if residual.shape[-1] != self.channels:
            residual = convolution(self.channels, 1, self.dtype, name="conv_shortcut")(residual)
        return x + residual


class Downsample(nn.Module):
    """Half the size by a stride-2 convolution; `padding` differs between UNet and autoencoder."""

    channels: int
    dtype: Dtype
    padding: int | Sequence[tuple[int, int]] = 1

    @nn.compact
    def __call__(self, x):
        return convolution(self.channels, 3, self.dtype, 2, self.padding, name="conv")(x)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement to `size` (height, width), or twice; then a convolution."""

    channels: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x, size: tuple[int, int] | None = None):
        size = size or (2 * x.shape[-3], 2 * x.shape[-2])
        x = _nearest(_nearest(x, size[0], -3), size[1], -2)
        # XLA would gather the pictures of all devices and give each some of the channels to do.
        return keep_rows(convolution(self.channels, 3, self.dtype, name="conv")(x))


def _nearest(x, size, axis):
    old = x.shape[axis]
    if size == 2 * old:
        return jnp.repeat(x, 2, axis)
    source = np.floor(np.arange(size, dtype=np.float32) * np.float32(old / size)).astype(int)
    return jnp.take(x, np.minimum(source, old - 1), axis)


class FeedForward(nn.Module):
    """A GEGLU feed-forward with the exact (erf) GELU, the LayerNorm before it and the residual
    around both: (B, ..., C) -> (B, ..., C)."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x, norm: tuple[jax.Array, jax.Array]):
        """norm: scale and bias of the LayerNorm, which files keep beside the feed-forward."""
        channels = x.shape[-1]
        inner = GEGLU(4 * channels, name="net_0")(channels)
        outer = Linear(channels, name="net_2")(4 * channels)
        layers = (y.astype(self.dtype) for y in (*inner, *outer))
        return feed_forward(x.astype(self.dtype), Weights(*norm, *layers))


class GEGLU(nn.Module):
    """Holds one projection to values and gates, `channels` each."""

    channels: int

    @nn.compact
    def __call__(self, inputs: int):
        return Linear(2 * self.channels, name="proj")(inputs)


class Linear(nn.Module):
    """Holds kernel (inputs, channels) and bias (channels,) of a layer that a kernel computes; None
    for a bias that it does not have."""

    channels: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array | None]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (inputs, self.channels))
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros, (self.channels,))


class ConvolutionWeights(nn.Module):
    """Holds kernel (size, size, inputs, channels) and bias of a convolution computed elsewhere."""

    channels: int
    size: int

    @nn.compact
    def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array]:
        shape = self.size, self.size, inputs, self.channels
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return kernel, self.param("bias", nn.initializers.zeros, (self.channels,))


class NormWeights(nn.Module):
    """Holds scale and bias (channels,) of a norm that a kernel computes."""

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
        scale = self.param("scale", nn.initializers.ones, (channels,))
        return scale, self.param("bias", nn.initializers.zeros, (channels,))
