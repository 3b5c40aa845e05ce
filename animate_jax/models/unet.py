"""The UNet of Stable Diffusion 1.5, serving twice.

With frames and motion modules it is the denoiser; without, it is the ReferenceNet, whose features
(the tokens after norm1 of every transformer block) the denoiser attends to. Both work on clips
(B, F, h, w, C); a picture is a clip of one frame. Parameter names follow diffusers'.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from animate_jax.config import UNetConfig
from animate_jax.kernels.parts import ATTENTION, BLOCK
from animate_jax.kernels.spatial_block import rotate
from animate_jax.models.attention import BoundLayer, SpatialTransformer, body_angles
from animate_jax.models.layers import (
    Downsample,
    Dtype,
    GroupNorm,
    ResnetBlock,
    TimestepEmbedding,
    Upsample,
    convolution,
    timestep_embedding,
)
from animate_jax.models.motion import MotionModule

BODY_PLACES = "body_places"  # among the features of a reference

# What policies of our own keep: results that a TPU's kernels name.
KEPT = {
    "attention": (ATTENTION,),
    "kernels": (ATTENTION, BLOCK),
    "convolutions": (ATTENTION, BLOCK),
}
REMAT_POLICIES = (
    "none",
    "full",
    *KEPT,
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
)


def rematerialised(module: type[nn.Module], policy: str) -> type[nn.Module]:
    """The module, of which the backward pass keeps only what the policy says.

    "none" keeps everything; "full" keeps the inputs and computes the rest again; "attention" also
    keeps what a TPU's kernel for attention over space gave, "kernels" what those for attention over
    time and for feed-forwards gave too, "convolutions" what convolutions gave besides, on any
    device; the others are those of jax.checkpoint_policies.
    """
    if policy == "none":
        return module
    return nn.remat(module, policy=checkpoint_policy(policy))


def checkpoint_policy(policy: str):
    """What jax.checkpoint takes: None keeps nothing. Raises ValueError for an unknown name."""
    if policy not in REMAT_POLICIES:
        raise ValueError(f"there is no remat policy {policy!r}; choose one of {REMAT_POLICIES}")
    if policy in KEPT:
        named = jax.checkpoint_policies.save_only_these_names(*KEPT[policy])
        if policy != "convolutions":
            return named
        return jax.checkpoint_policies.save_from_both_policies(named, _is_convolution)
    return None if policy == "full" else getattr(jax.checkpoint_policies, policy)


def _is_convolution(primitive, *_, **__) -> bool:
    return primitive is jax.lax.conv_general_dilated_p


def _with_rotated_values(layer: BoundLayer) -> BoundLayer:
    """What was seen of the body, as seen from the chart's origin."""
    if layer.body_values is None:
        return layer
    angles = body_angles(layer.reference_body_places, layer.body_values.shape[-1])
    return layer.replace(body_values=rotate(layer.body_values, angles))


class Level(nn.Module):
    """One down, mid or up block: resnets, each followed by attention over space, then over time."""

    config: UNetConfig
    channels: int
    heads: int | None  # None: no attention over space
    resnet_count: int
    attention_count: int
    dtype: Dtype
    resample: str | None = None  # "down" or "up"
    remat: str = "none"

    def setup(self):
        config, dtype = self.config, self.dtype
        resnet, spatial, motion = (
            rematerialised(module, self.remat)
            for module in (ResnetBlock, SpatialTransformer, MotionModule)
        )
        self.resnets = [
            resnet(self.channels, config.norm_groups, 1e-5, dtype) for _ in range(self.resnet_count)
        ]
        if self.heads:
            self.attentions = [
                spatial(self.channels, self.heads, config, dtype)
                for _ in range(self.attention_count)
            ]
        if self.has_motion:
            self.motion_modules = [
                motion(config.motion, dtype) for _ in range(self.attention_count)
            ]
        if self.resample == "down":
            self.downsamplers = [Downsample(self.channels, dtype)]
        if self.resample == "up":
            self.upsamplers = [Upsample(self.channels, dtype)]

    @property
    def has_motion(self) -> bool:
        motion = self.config.motion
        return motion is not None and (self.name != "mid_block" or motion.mid_block)

    def attention_path(self, i: int) -> str:
        return f"{self.name}/attentions_{i}"

    def bind(self, image_tokens, reference, has_reference) -> dict[str, BoundLayer]:
        bound = {}
        for i in range(self.attention_count if self.heads else 0):
            path = self.attention_path(i)
            tokens = None if reference is None else reference[path]
            bound[path] = self.attentions[i].bind(image_tokens, tokens, has_reference)
        return bound

    def attend(self, i, x, bound, features):
        """The i-th attentions, over space and time; `features` gains what norm1 gave."""
        if self.heads:
            path = self.attention_path(i)
            x, features[path] = self.attentions[i](x, bound[path])
        return self.motion_modules[i](x) if self.has_motion else x

    def down(self, x, embedding, bound, features, skips):
        for i, resnet in enumerate(self.resnets):
            x = self.attend(i, resnet(x, embedding), bound, features)
            skips.append(x)
        if self.resample:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x

    def mid(self, x, embedding, bound, features):
        x = self.attend(0, self.resnets[0](x, embedding), bound, features)
        return self.resnets[1](x, embedding)

    def up(self, x, embedding, bound, features, skips):
        for i, resnet in enumerate(self.resnets):
            x = jnp.concatenate([x, skips.pop()], -1)
            x = self.attend(i, resnet(x, embedding), bound, features)
        # The skip's size, not twice our own: sizes need not be divisible by all the halvings.
        return self.upsamplers[0](x, skips[-1].shape[-3:-1]) if self.resample else x


class UNet(nn.Module):
    """See the module's docstring; `bind` first, then call with what it returned."""

    config: UNetConfig
    dtype: Dtype = jnp.float32
    remat: str = "none"  # what the backward pass computes again, see `rematerialised`

    def setup(self):
        config, dtype, remat = self.config, self.dtype, self.remat
        channels, count = config.block_out_channels, len(config.block_out_channels)
        heads = [h if a else None for h, a in zip(config.heads, config.attention_levels)]
        self.time_embedding = TimestepEmbedding(4 * channels[0], dtype)
        self.conv_in = convolution(channels[0], 3, dtype)

        def level(i, resnets, resample):
            return Level(config, channels[i], heads[i], resnets, resnets, dtype, resample, remat)

        layers = config.layers_per_block
        self.down_blocks = [
            level(i, layers, "down" if i < count - 1 else None) for i in range(count)
        ]
        self.mid_block = Level(config, channels[-1], config.heads[-1], 2, 1, dtype, None, remat)
        self.up_blocks = [
            level(i, layers + 1, "up" if i > 0 else None) for i in reversed(range(count))
        ]
        if config.output:
            self.conv_norm_out = GroupNorm(config.norm_groups, 1e-5, dtype, silu=True)
            self.conv_out = convolution(config.out_channels, 3, dtype)

    def bind(
        self,
        image_tokens: jax.Array,
        reference: dict[str, jax.Array] | None = None,
        has_reference: jax.Array | None = None,
    ) -> dict[str, BoundLayer]:
        """What a clip's image and reference mean to every attention layer, by layer path.

        image_tokens: (B, T, cross_attention_dim).
        reference: the features of a ReferenceNet, (R, tokens, C) each, for the last R of B rows.
        has_reference: bool (R,), False hides a row's reference.

        The features may come with the reference's places on its body (R, h, w, 3), as BODY_PLACES.
        """
        bound = {}
        for level in (*self.down_blocks, self.mid_block, *self.up_blocks):
            bound |= level.bind(image_tokens, reference, has_reference)
        if self.config.body_places and reference and BODY_PLACES in reference:
            bound = self._placed(bound, "reference_body_places", reference[BODY_PLACES])
            bound = {path: _with_rotated_values(layer) for path, layer in bound.items()}
        return bound

    def _placed(self, bound, field, places):
        """Every layer with those of the places (..., h, w, 3) that its tokens stand for."""
        count, placed = len(self.down_blocks), {}
        depths = [*range(count), count - 1, *reversed(range(count))]
        for depth, level in zip(depths, (*self.down_blocks, self.mid_block, *self.up_blocks)):
            tokens = places[..., :: 2**depth, :: 2**depth, :]
            tokens = tokens.reshape(*places.shape[:-3], -1, 3)
            for path in map(level.attention_path, range(level.attention_count)):
                if path in bound:
                    placed[path] = bound[path].replace(**{field: tokens})
        return placed

    def __call__(self, latents, timesteps, bound, pose_features=None, body_places=None):
        """Prediction (B, F, h, w, out_channels), None without output; and the features by path.

        latents (B, F, h, w, in_channels), timesteps (B,), bound as from `bind`;
        pose_features (B, F, h, w, block_out_channels[0]) or None, added after conv_in;
        body_places (B, F, h, w, 3) or None, where on the body latents are, for a config with them.
        """
        if self.config.body_places and body_places is not None:
            bound = self._placed(bound, "body_places", body_places)
        embedding = timestep_embedding(timesteps, self.config.block_out_channels[0])
        embedding = self.time_embedding(embedding.astype(self.dtype))
        x = self.conv_in(latents)
        if pose_features is not None:
            x = x + pose_features.astype(x.dtype)
        features, skips = {}, [x]
        for level in self.down_blocks:
            x = level.down(x, embedding, bound, features, skips)
        x = self.mid_block.mid(x, embedding, bound, features)
        for level in self.up_blocks:
            x = level.up(x, embedding, bound, features, skips)
        if not self.config.output:
            return None, features
        return self.conv_out(self.conv_norm_out(x)), features

    def bind_and_call(self, latents, timesteps, image_tokens, pose_features=None):
        """Both steps in one, which creates every parameter when initialising with two tokens."""
        places = jnp.zeros((*latents.shape[:-1], 3)) if self.config.body_places else None
        return self(latents, timesteps, self.bind(image_tokens), pose_features, places)
