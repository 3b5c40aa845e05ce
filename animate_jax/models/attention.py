"""Attention over space: own tokens, the reference's, and the image embedding's.

A block first *binds* what does not change while a clip is sampled: keys and values of the reference
(from this UNet's own projections) and the cross-attention to the image tokens. With one image token
the softmax runs over a single key, so cross-attention is the constant `to_out(to_v(token))`.
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from animate_jax.config import UNetConfig
from animate_jax.kernels.attention import attention
from animate_jax.kernels.parts import normalise
from animate_jax.kernels.picture_tokens import Norm, layer_of, to_pictures, to_tokens
from animate_jax.kernels.spatial_block import BodyValues, Places, Rows, Weights, spatial_block
from animate_jax.models.layers import (
    ConvolutionWeights,
    Dtype,
    FeedForward,
    Linear,
    NormWeights,
    layer_norm,
)

NORM_EPS = 1e-5


@flax.struct.dataclass
class BoundLayer:
    """What one transformer block needs of the image and the reference; B rows, R of them with a
    reference. The reference belongs to the LAST R rows; rows before them attend to themselves only.

    Either `cross_output` (B, 1, C), for one image token, or `cross` = keys and values (B, T, C).
    A reference that is not attended to is `added` (B, N, C), zero in rows without one.
    With body places, where on the body the tokens are (..., N, 3), see pose.body_places; with body
    values, those of the reference, see kernels.spatial_block.BodyValues.
    """

    cross_output: jax.Array | None = None
    cross: tuple[jax.Array, jax.Array] | None = None
    reference: tuple[jax.Array, jax.Array] | None = None  # keys and values (R, tokens, C)
    has_reference: jax.Array | None = None  # bool (R,): False drops that row's reference
    added: jax.Array | None = None
    body_values: jax.Array | None = None  # (R, tokens, C)
    body_places: jax.Array | None = None  # of the clip, (B, F, N, 3)
    reference_body_places: jax.Array | None = None  # (R, N, 3)


class Attention(nn.Module):
    """Projections of multi-head attention, named as in diffusers."""

    channels: int
    heads: int
    dtype: Dtype
    bias: bool = False
    positions: bool = False  # see UNetConfig
    body_places: bool = False
    body_values: bool = False

    def setup(self):
        def linear(bias):
            return Linear(self.channels, use_bias=bias)

        self.to_q, self.to_k, self.to_v = linear(self.bias), linear(self.bias), linear(self.bias)
        self.to_out = [linear(True)]
        if self.positions:
            self.position_q, self.position_k = linear(False), linear(False)
        if self.body_places:
            self.body_q, self.body_k = linear(False), linear(False)
        if self.body_values:
            self.body_v, self.body_out = linear(False), linear(False)

    def _linear(self, layer, x):
        weights = layer(x.shape[-1])
        kernel, bias = (w if w is None else w.astype(self.dtype) for w in weights)
        x = x.astype(self.dtype) @ kernel
        return x if bias is None else x + bias

    def keys_and_values(self, tokens):
        """(..., T, any) -> (..., T, channels) twice."""
        return self._linear(self.to_k, tokens), self._linear(self.to_v, tokens)

    def more_values(self, tokens):
        """(..., T, channels) -> the same: values that places on the body rotate."""
        return self._linear(self.body_v, tokens)

    def output(self, x):
        return self._linear(self.to_out[0], x)

    def __call__(self, x, keys_and_values):
        """x (B, F, N, C), keys and values (B, F, M, C) -> (B, F, N, C); see kernels.attention."""
        query = self._linear(self.to_q, x)
        return self.output(attention(query, *keys_and_values, self.heads))

    def block(self, x, norm, bound: BoundLayer, grid=None):
        """x plus its self-attention and what the image adds everywhere; see kernels.spatial_block.

        x (B, F, N, C) -> the same; norm: scale and bias of the LayerNorm before it. What is known
        of the grid (N, C), and of places on the body, goes to queries and keys (DETR, arXiv
        2005.12872); body values are rotated by their places.
        """
        layers = [linear(self.channels)[0] for linear in (self.to_q, self.to_k, self.to_v)]
        layers += self.to_out[0](self.channels)
        rows = Rows(x, bound.reference, bound.has_reference, bound.cross_output)
        weights = Weights(*norm, *(w.astype(self.dtype) for w in layers))
        places = None
        if grid is not None:
            own, reference = bound.body_places, bound.reference_body_places
            keys = self.position_k, getattr(self, "body_k", None)
            places = Places(
                self._places(self.position_q, getattr(self, "body_q", None), grid, own),
                self._places(*keys, grid, own),
                self._places(*keys, grid, reference),
                self._body_values(bound),
            )
        return spatial_block(rows, weights, self.heads, NORM_EPS, places)

    def _body_values(self, bound):
        if not self.body_values:
            return None
        w_value, w_out = (
            layer(self.channels)[0].astype(self.dtype) for layer in (self.body_v, self.body_out)
        )
        angles = jnp.zeros(self.channels // 2)
        if bound.body_places is not None:
            angles = body_angles(bound.body_places, self.channels)
        return BodyValues(w_value, w_out, angles, bound.body_values)

    def _places(self, position, body, grid, body_places):
        """In the picture, or as far as a token belongs to the body, on that."""
        places = self._linear(position, grid)
        if body is None or body_places is None:
            return places
        belongs = body_places[..., 2:].astype(self.dtype)
        on_body = self._linear(body, body_positions(body_places[..., :2], self.channels))
        return places * (1 - belongs) + on_body * belongs


class TransformerBlock(nn.Module):
    """Self-attention with reference, cross-attention, feed-forward (BasicTransformerBlock)."""

    channels: int
    heads: int
    config: UNetConfig
    dtype: Dtype

    def setup(self):
        self.norm1, self.norm3 = NormWeights(), NormWeights()
        self.norm2 = layer_norm(self.dtype)
        names = "positions", "body_places", "body_values"
        known = {name: getattr(self.config, name) for name in names}
        self.attn1 = Attention(self.channels, self.heads, self.dtype, **known)
        self.attn2 = Attention(self.channels, self.heads, self.dtype)
        self.ff = FeedForward(self.dtype)
        if self.config.reference == "added":
            self.reference_out = nn.Dense(self.channels, dtype=self.dtype)

    def bind(self, image_tokens, reference=None, has_reference=None) -> BoundLayer:
        """image_tokens (B, T, E); reference (R, N, C): the ReferenceNet's tokens after norm1."""
        bound = BoundLayer()
        if self.config.reference == "added":
            rows = image_tokens.shape[0]
            bound = bound.replace(added=self._added(reference, has_reference, rows))
        elif reference is not None:
            keys_and_values = self.attn1.keys_and_values(reference)
            bound = bound.replace(reference=keys_and_values, has_reference=has_reference)
            if self.config.body_values:
                bound = bound.replace(body_values=self.attn1.more_values(reference))
        key, value = self.attn2.keys_and_values(image_tokens)
        if image_tokens.shape[1] == 1:
            return bound.replace(cross_output=self.attn2.output(value))
        return bound.replace(cross=(key, value))

    def _added(self, reference, has_reference, rows):
        if reference is None:
            reference = jnp.zeros((rows, 1, self.channels), self.dtype)
            has_reference = jnp.zeros(rows, bool)
        added = self.reference_out(reference)
        if has_reference is not None:
            added = jnp.where(has_reference[:, None, None], added, 0)
        return jnp.pad(added, ((rows - len(added), 0), (0, 0), (0, 0)))

    def __call__(self, x, bound: BoundLayer, grid=None):
        """x (B, F, N, C) -> the same, and the tokens after norm1, which a ReferenceNet hands on.

        grid (N, C): with `positions`, where the tokens are; the reference's are in the same places.
        """
        if bound.added is not None:
            x = x + bound.added[:, None]
        norm1 = self.norm1(self.channels)
        tokens = normalise(x, *norm1, NORM_EPS)
        x = self.attn1.block(x, norm1, bound, grid)
        if bound.cross is not None:
            image = jax.tree.map(lambda y: _repeat_frames(y, x.shape[1]), bound.cross)
            x = x + self.attn2(self.norm2(x), image)
        return self.ff(x, self.norm3(self.channels)), tokens


def _repeat_frames(x, frames):
    return jnp.broadcast_to(x[:, None], (x.shape[0], frames, *x.shape[1:]))


_WAVES = 16  # the longest wave in lengths of the shortest


def grid_positions(height: int, width: int, channels: int) -> np.ndarray:
    """float32 (height * width, channels): sine and cosine of the row and of the column, for one
    wave after the other, of 4 to 64 tokens. channels: a multiple of 4."""
    rows, columns = np.divmod(np.arange(height * width), width)
    waves = 4 * _WAVES ** np.linspace(0, 1, channels // 4)
    return _sines(np.stack([rows, columns], -1), waves, np).astype(np.float32)


def body_positions(places: jax.Array, channels: int) -> jax.Array:
    """Places (..., 2) in the chart of the body -> (..., channels), as `grid_positions`, for waves
    of 8 torsos to half of one. The longest come first, so that neither is taken for the other.
    """
    waves = 8 / _WAVES ** np.linspace(0, 1, channels // 4)
    return _sines(places, waves.astype(np.float32), jnp)


def body_angles(places: jax.Array, channels: int) -> jax.Array:
    """Places (..., 2 or more) in the chart of the body -> angles (..., channels / 2), one for every
    wave across the chart. The waves are a sunflower's seeds on a half disc: evenly dense, up to 7
    in the length of a torso, which a pattern on cloth comes to in a picture of 128 pixels."""
    count = channels // 2
    number = np.arange(count)
    per_torso = 7 * np.sqrt((number + 0.5) / count)
    direction = np.pi * (number * (5**0.5 - 1) / 2 % 1)
    right, down = np.float32(2 * np.pi * per_torso * [np.cos(direction), np.sin(direction)])
    # No product of matrices, which may round to bfloat16.
    return places[..., :1] * right + places[..., 1:2] * down


def _sines(places, waves, numpy):
    angles = 2 * np.pi * places[..., None, :] / waves[:, None]
    parts = numpy.stack([numpy.sin(angles), numpy.cos(angles)], -1)
    return parts.reshape(*places.shape[:-1], 4 * len(waves))


class SpatialTransformer(nn.Module):
    """Tokens of each frame through one transformer block (diffusers: Transformer2DModel)."""

    channels: int
    heads: int
    config: UNetConfig
    dtype: Dtype

    def setup(self):
        self.norm = NormWeights()
        self.proj_in = ConvolutionWeights(self.channels, 1)
        self.transformer_blocks = [
            TransformerBlock(self.channels, self.heads, self.config, self.dtype)
        ]
        self.proj_out = ConvolutionWeights(self.channels, 1)

    def bind(self, image_tokens, reference=None, has_reference=None) -> BoundLayer:
        return self.transformer_blocks[0].bind(image_tokens, reference, has_reference)

    def __call__(self, x, bound: BoundLayer):
        """x (B, F, h, w, C) -> the same, and the tokens (B, F, h * w, C) after norm1."""
        *_, height, width, channels = x.shape
        x = x.astype(self.dtype)
        norm = Norm(*self.norm(channels))
        tokens = to_tokens(x, norm, self._layer(self.proj_in), self.config.norm_groups, 1e-6)
        grid = grid_positions(height, width, channels) if self.config.positions else None
        tokens, features = self.transformer_blocks[0](tokens, bound, grid)
        return to_pictures(tokens, x, self._layer(self.proj_out)), features

    def _layer(self, convolution):
        kernel, bias = convolution(self.channels)
        return layer_of((kernel[0, 0], bias), self.dtype)
