"""Motion module: attention along time at every pixel (AnimateDiff, arXiv 2307.04725, section 4.2).

GroupNorm is per frame, as in the weights that exist; positions are added to the normed tokens
before the projections.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import numpy as np

from animate_jax.config import MotionConfig
from animate_jax.kernels.picture_tokens import Norm, layer_of, to_pictures, to_tokens
from animate_jax.kernels.temporal_block import Weights, temporal_block
from animate_jax.models.layers import (
    Dtype,
    FeedForward,
    Linear,
    NormWeights,
)


def sinusoidal_positions(frames: int, channels: int) -> np.ndarray:
    """(1, frames, channels) float32: sines and cosines interleaved, base 10000."""
    frequencies = np.exp(np.arange(0, channels, 2) * (-math.log(10000.0) / channels))
    angles = np.arange(frames)[:, None] * frequencies
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(1, frames, channels).astype("f4")


class Positions(nn.Module):
    """The table of frame positions; files carry it, so it stays beside the weights. Not learnt."""

    max_frames: int
    channels: int

    @nn.compact
    def __call__(self, frames: int) -> jax.Array:
        """(frames, channels). Raises ValueError beyond `max_frames`."""
        if frames > self.max_frames:
            raise ValueError(f"{frames} frames at once; this motion module knows {self.max_frames}")
        table = self.param("pe", nn.initializers.zeros, (1, self.max_frames, self.channels))
        return table[0, :frames]


class TemporalAttention(nn.Module):
    """Self-attention over frames, one sequence per pixel, with the LayerNorm before it and the
    residual around both: (B, F, N, C) -> the same."""

    heads: int
    max_frames: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x, norm: tuple[jax.Array, jax.Array]):
        """norm: scale and bias of the LayerNorm, which files keep beside the attention."""
        frames, channels = x.shape[1], x.shape[-1]
        positions = Positions(self.max_frames, channels, name="pos_encoder")(frames)
        projections = [
            Linear(channels, use_bias=False, name=name)(channels)[0]
            for name in ("to_q", "to_k", "to_v")
        ]
        outer = Linear(channels, name="to_out_0")(channels)
        layers = (y.astype(self.dtype) for y in (*projections, *outer))
        weights = Weights(*norm, positions, *layers)
        return temporal_block(x.astype(self.dtype), weights, self.heads)


class TemporalTransformerBlock(nn.Module):
    """Temporal self-attentions, then a feed-forward, each after a LayerNorm: (B, F, N, C)."""

    config: MotionConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        for i in range(self.config.attentions):
            norm = NormWeights(name=f"norms_{i}")(x.shape[-1])
            attend = TemporalAttention(
                self.config.heads,
                self.config.max_frames,
                self.dtype,
                name=f"attention_blocks_{i}",
            )
            x = attend(x, norm)
        norm = NormWeights(name="ff_norm")(x.shape[-1])
        return FeedForward(self.dtype, name="ff")(x, norm)


class TemporalTransformer(nn.Module):
    """(B, F, h, w, C) -> the same, with a residual around the whole."""

    config: MotionConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        x = x.astype(self.dtype)
        norm = Norm(*NormWeights(name="norm")(channels))
        layer = layer_of(Linear(channels, name="proj_in")(channels), self.dtype)
        tokens = to_tokens(x, norm, layer, self.config.norm_groups, 1e-6)
        for i in range(self.config.transformer_blocks):
            name = f"transformer_blocks_{i}"
            tokens = TemporalTransformerBlock(self.config, self.dtype, name=name)(tokens)
        layer = layer_of(Linear(channels, name="proj_out")(channels), self.dtype)
        return to_pictures(tokens, x, layer)


class MotionModule(nn.Module):
    """Holds the temporal transformer under the name that PyTorch files give it."""

    config: MotionConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        return TemporalTransformer(self.config, self.dtype, name="temporal_transformer")(x)
