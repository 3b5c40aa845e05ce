"""CLIP vision tower with projection (arXiv 2103.00020): one embedding of the reference picture.

Parameter names follow transformers' CLIPVisionModelWithProjection (its spelling `pre_layrnorm`
included).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from animate_jax.config import ImageEncoderConfig
from animate_jax.kernels.attention import attention
from animate_jax.models.layers import Dtype, layer_norm


class SelfAttention(nn.Module):
    heads: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        """(B, N, C) -> the same."""
        channels = x.shape[-1]
        query, key, value = (
            nn.Dense(channels, dtype=self.dtype, name=name)(x)[:, None]
            for name in ("q_proj", "k_proj", "v_proj")
        )
        x = attention(query, key, value, self.heads)[:, 0]
        return nn.Dense(channels, dtype=self.dtype, name="out_proj")(x)


class FeedForward(nn.Module):
    config: ImageEncoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.config.intermediate_size, dtype=self.dtype, name="fc1")(x)
        if self.config.activation == "quick_gelu":
            x = x * nn.sigmoid(1.702 * x)
        else:
            x = nn.gelu(x, approximate=False)
        return nn.Dense(self.config.hidden_size, dtype=self.dtype, name="fc2")(x)


class EncoderLayer(nn.Module):
    config: ImageEncoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        """(B, N, C) -> the same."""
        config, dtype = self.config, self.dtype
        tokens = layer_norm(dtype, config.norm_eps, "layer_norm1")(x)
        x = x + SelfAttention(config.heads, dtype, name="self_attn")(tokens)
        tokens = layer_norm(dtype, config.norm_eps, "layer_norm2")(x)
        return x + FeedForward(config, dtype, name="mlp")(tokens)


class Embeddings(nn.Module):
    """Patches with the class token before them and positions added: (B, S, S, 3) -> (B, N, C)."""

    config: ImageEncoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, pixels):
        config = self.config
        size = config.patch_size
        patches = nn.Conv(
            config.hidden_size,
            (size, size),
            (size, size),
            "VALID",
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedding",
        )(pixels)
        patches = patches.reshape(pixels.shape[0], -1, config.hidden_size)
        first = self.param("class_embedding", nn.initializers.zeros, (config.hidden_size,))
        first = jnp.broadcast_to(first, (pixels.shape[0], 1, config.hidden_size))
        count = patches.shape[1] + 1
        positions = nn.Embed(count, config.hidden_size, name="position_embedding")(
            jnp.arange(count)
        )
        return jnp.concatenate([first.astype(patches.dtype), patches], 1) + positions.astype(
            patches.dtype
        )


class Layers(nn.Module):
    config: ImageEncoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        for i in range(self.config.layers):
            x = EncoderLayer(self.config, self.dtype, name=f"layers_{i}")(x)
        return x


class VisionTransformer(nn.Module):
    config: ImageEncoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, pixels):
        """(B, S, S, 3) -> the class token after the last norm, (B, C)."""
        eps = self.config.norm_eps
        x = Embeddings(self.config, self.dtype, name="embeddings")(pixels)
        x = layer_norm(self.dtype, eps, "pre_layrnorm")(x)
        x = Layers(self.config, self.dtype, name="encoder")(x)
        return layer_norm(self.dtype, eps, "post_layernorm")(x[:, 0])


class ImageEncoder(nn.Module):
    """Normalised pictures (B, S, S, 3) -> embeddings (B, projection_dim)."""

    config: ImageEncoderConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels) -> jax.Array:
        x = VisionTransformer(self.config, self.dtype, name="vision_model")(pixels)
        project = nn.Dense(
            self.config.projection_dim, use_bias=False, dtype=self.dtype, name="visual_projection"
        )
        return project(x)
