"""Pose guider: drawn skeletons to features of the latents' size.

`feature`: the ControlNet embedding (arXiv 2302.05543), added after the denoiser's first
convolution; what the released weights use. `latent`: the paper's (arXiv 2311.17117, section 3.2):
four convolutions of size 4, added to the noisy latents; three halve the size and the last keeps
it, so that it meets the latents at an eighth.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from animate_jax.config import PoseGuiderConfig
from animate_jax.kernels.narrow_convolutions import Layer, narrow_convolutions
from animate_jax.models.layers import ConvolutionWeights, Dtype, convolution


class PoseGuider(nn.Module):
    """(..., H, W, 3) in [0, 1] -> (..., H / 8, W / 8, out_channels)."""

    config: PoseGuiderConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        config, dtype = self.config, self.dtype
        if config.variant == "latent":
            for i, channels in enumerate(config.channels):
                keep = i == len(config.channels) - 1
                stride, padding = (1, [(1, 2), (1, 2)]) if keep else (2, 1)
                name = f"conv_layers_{i}"
                x = convolution(channels, 4, dtype, stride, padding, name=name)(x)
                x = nn.silu(x)
            return convolution(config.out_channels, 1, dtype, name="final_proj")(x)

        names, strides, widths = ["conv_in"], [1], [config.channels[0]]
        for i, (same, wider) in enumerate(zip(config.channels, config.channels[1:])):
            names += [f"blocks_{2 * i}", f"blocks_{2 * i + 1}"]
            strides, widths = [*strides, 1, 2], [*widths, same, wider]
        layers, inputs = [], x.shape[-1]
        for name, width in zip(names, widths):
            weights = ConvolutionWeights(width, 3, name=name)(inputs)
            layers.append(Layer(*(w.astype(dtype) for w in weights)))
            inputs = width
        y = narrow_convolutions(x.reshape(-1, *x.shape[-3:]).astype(dtype), layers, strides)
        y = y.reshape(*x.shape[:-3], *y.shape[1:])
        return convolution(config.out_channels, 3, dtype, name="conv_out")(y)
