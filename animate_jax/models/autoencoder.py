"""AutoencoderKL of Stable Diffusion (arXiv 2112.10752): pictures to latents an eighth the size.

Parameter names follow diffusers'. Latents here are unscaled; `scaling_factor` is applied where the
parts are composed.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from animate_jax.config import AutoencoderConfig
from animate_jax.models.attention import Attention
from animate_jax.models.layers import (
    Downsample,
    Dtype,
    GroupNorm,
    ResnetBlock,
    Upsample,
    convolution,
)

NORM_EPS = 1e-6


class PixelAttention(Attention):
    """Single-head self-attention over a picture's pixels with a residual: (B, h, w, C)."""

    groups: int = 32

    def setup(self):
        super().setup()
        self.group_norm = GroupNorm(self.groups, NORM_EPS, self.dtype)

    def __call__(self, x):
        batch, height, width, channels = x.shape
        tokens = self.group_norm(x).reshape(batch, 1, height * width, channels)
        return x + super().__call__(tokens, self.keys_and_values(tokens)).reshape(x.shape)


class Stage(nn.Module):
    """Resnets, then half or twice the size: (B, h, w, C) -> (B, h', w', channels)."""

    channels: int
    layers: int
    groups: int
    dtype: Dtype
    resample: str | None = None  # "down" or "up"

    @nn.compact
    def __call__(self, x):
        for i in range(self.layers):
            x = ResnetBlock(self.channels, self.groups, NORM_EPS, self.dtype, name=f"resnets_{i}")(
                x
            )
        if self.resample == "down":
            padding = [(0, 1), (0, 1)]  # unlike the UNet's: below and right only
            x = Downsample(self.channels, self.dtype, padding, name="downsamplers_0")(x)
        if self.resample == "up":
            x = Upsample(self.channels, self.dtype, name="upsamplers_0")(x)
        return x


class MidStage(nn.Module):
    """A resnet, attention over pixels, a resnet: (B, h, w, C) -> the same."""

    groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        x = ResnetBlock(channels, self.groups, NORM_EPS, self.dtype, name="resnets_0")(x)
        attend = PixelAttention(
            channels, 1, self.dtype, bias=True, groups=self.groups, name="attentions_0"
        )
        x = attend(x)
        return ResnetBlock(channels, self.groups, NORM_EPS, self.dtype, name="resnets_1")(x)


class Encoder(nn.Module):
    """Pictures (B, H, W, 3) -> mean beside log-variance (B, h, w, 2 * latent_channels)."""

    config: AutoencoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        config, dtype = self.config, self.dtype
        last = len(config.block_out_channels) - 1
        x = convolution(config.block_out_channels[0], 3, dtype, name="conv_in")(x)
        for i, channels in enumerate(config.block_out_channels):
            resample = "down" if i < last else None
            stage = Stage(
                channels,
                config.layers_per_block,
                config.norm_groups,
                dtype,
                resample,
                name=f"down_blocks_{i}",
            )
            x = stage(x)
        x = MidStage(config.norm_groups, dtype, name="mid_block")(x)
        x = GroupNorm(config.norm_groups, NORM_EPS, dtype, silu=True, name="conv_norm_out")(x)
        return convolution(2 * config.latent_channels, 3, dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents (B, h, w, latent_channels) -> pictures (B, H, W, 3)."""

    config: AutoencoderConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        config, dtype = self.config, self.dtype
        widths = config.block_out_channels[::-1]
        x = convolution(widths[0], 3, dtype, name="conv_in")(x)
        x = MidStage(config.norm_groups, dtype, name="mid_block")(x)
        for i, channels in enumerate(widths):
            resample = "up" if i < len(widths) - 1 else None
            stage = Stage(
                channels,
                config.layers_per_block + 1,
                config.norm_groups,
                dtype,
                resample,
                name=f"up_blocks_{i}",
            )
            x = stage(x)
        x = GroupNorm(config.norm_groups, NORM_EPS, dtype, silu=True, name="conv_norm_out")(x)
        return convolution(config.in_channels, 3, dtype, name="conv_out")(x)


class Autoencoder(nn.Module):
    config: AutoencoderConfig
    dtype: Dtype = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)
        self.quant_conv = convolution(2 * self.config.latent_channels, 1, self.dtype)
        self.post_quant_conv = convolution(self.config.latent_channels, 1, self.dtype)

    def encode(self, pictures):
        """(B, H, W, 3) in [-1, 1] -> posterior mean and log-variance, (B, h, w, C) float32."""
        moments = self.quant_conv(self.encoder(pictures)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, -1)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode(self, latents):
        """(B, h, w, C) -> pictures (B, H, W, 3) float32, about [-1, 1] and not clipped."""
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)

    def __call__(self, pictures):
        """Reconstruction through the posterior's mean; initialising creates every parameter."""
        return self.decode(self.encode(pictures)[0])
