"""Sizes of networks, read off the shapes of their PyTorch tensors.

What shapes do not show (numbers of heads, groups of norms, activations) comes from the options of a
config.json where there is one; what both say must agree. All functions take {PyTorch name: tensor
with a shape}, and `what` to name the file in errors; they raise UserError for tensors of another
architecture.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

from animate_jax.config import (
    AutoencoderConfig,
    ImageEncoderConfig,
    MotionConfig,
    PoseGuiderConfig,
    UNetConfig,
)
from animate_jax.errors import UserError, UserNote
from animate_jax.weights.config_files import (
    IMAGE_ENCODER_TYPES,
    check_autoencoder_options,
    check_unet_options,
)

# Of Stable Diffusion 1.x; the heads are diffusers' default for attention_head_dim, too.
_HEADS, _CHANNELS = 8, (320, 640, 1280, 1280)


def unet_config(tensors: Mapping, what: str, options: Mapping[str, Any], where: str) -> UNetConfig:
    """A UNet without motion; `options` are a diffusers config read from `where`, or empty."""
    check_unet_options(options, where)
    levels = _count(tensors, "down_blocks")
    channels = tuple(
        _shape(tensors, f"down_blocks.{i}.resnets.0.conv1.weight", what, 4)[0]
        for i in range(levels)
    )
    attention = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    config = UNetConfig(
        in_channels=_shape(tensors, "conv_in.weight", what, 4)[1],
        out_channels=_shape(tensors, "conv_out.weight", what, 4)[0],
        block_out_channels=channels,
        attention_levels=tuple(
            _count(tensors, f"down_blocks.{i}.attentions") > 0 for i in range(levels)
        ),
        layers_per_block=_count(tensors, "down_blocks.0.resnets"),
        heads=_heads(options, channels, where),
        cross_attention_dim=_shape(tensors, attention, what, 2)[1],
        norm_groups=_whole(options, "norm_num_groups", 32, where),
    )
    _check_divisible(channels, config.norm_groups, f"{where}: norm_num_groups")
    blocks = options.get("down_block_types")
    _check_agreement(
        options,
        where,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        cross_attention_dim=config.cross_attention_dim,
        down_block_types=blocks
        and ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention_levels],
    )
    return config


def motion_config(
    tensors: Mapping, what: str, heads: int, groups: int = MotionConfig.norm_groups
) -> MotionConfig:
    """The motion modules of a UNet.

    Shapes do not show the heads and groups of norms, 8 and 32 in all that is published. Nor do
    files without tables of positions show for how many frames they are; 32 then.
    """
    module = "down_blocks.0.motion_modules.0.temporal_transformer"
    block = f"{module}.transformer_blocks"
    channels = _shape(tensors, f"{module}.proj_in.weight", what, 2)[0]
    table = f"{block}.0.attention_blocks.0.pos_encoder.pe"
    known = _shape(tensors, table, what, 3)[1] if table in tensors else MotionConfig.max_frames
    config = MotionConfig(
        heads=heads,
        transformer_blocks=_count(tensors, block),
        attentions=_count(tensors, f"{block}.0.attention_blocks"),
        max_frames=known,
        norm_groups=groups,
        mid_block=_count(tensors, "mid_block.motion_modules") > 0,
    )
    check_motion(config, (channels,), what)
    return config


def check_motion(config: MotionConfig, channels: tuple[int, ...], what: str) -> None:
    """Raises UserError where motion modules do not fit a UNet's channels."""
    if config.heads < 1:
        raise UserError(f"{what}: {config.heads} motion heads are not possible; 8 is usual")
    _check_divisible(channels, config.heads, f"{what}: the number of motion heads")
    _check_divisible(channels, config.norm_groups, f"{what}: the groups of motion norms")


def pose_guider_config(tensors: Mapping, what: str) -> PoseGuiderConfig:
    """The pose guider that is a ControlNet's embedding of its picture."""
    first = _shape(tensors, "conv_in.weight", what, 4)[0]
    wider = range(1, _count(tensors, "blocks"), 2)
    rest = (_shape(tensors, f"blocks.{i}.weight", what, 4)[0] for i in wider)
    out = _shape(tensors, "conv_out.weight", what, 4)[0]
    return PoseGuiderConfig("feature", (first, *rest), out)


def autoencoder_config(
    tensors: Mapping, what: str, options: Mapping[str, Any], where: str
) -> AutoencoderConfig:
    """An AutoencoderKL; `options` are a diffusers config read from `where`, or empty."""
    check_autoencoder_options(options, where)
    levels = range(_count(tensors, "encoder.down_blocks"))
    first = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in levels]
    scaling = options.get("scaling_factor", AutoencoderConfig.scaling_factor)
    if isinstance(scaling, bool) or not isinstance(scaling, int | float) or not scaling > 0:
        raise UserError(f"{where}: scaling_factor is {scaling!r}, not a number above 0")
    config = AutoencoderConfig(
        in_channels=_shape(tensors, "encoder.conv_in.weight", what, 4)[1],
        latent_channels=_shape(tensors, "post_quant_conv.weight", what, 4)[1],
        block_out_channels=tuple(_shape(tensors, name, what, 4)[0] for name in first),
        layers_per_block=_count(tensors, "encoder.down_blocks.0.resnets"),
        norm_groups=_whole(options, "norm_num_groups", 32, where),
        scaling_factor=float(scaling),
    )
    _check_divisible(config.block_out_channels, config.norm_groups, f"{where}: norm_num_groups")
    _check_agreement(
        options,
        where,
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        latent_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
    )
    return config


def image_encoder_config(
    tensors: Mapping,
    what: str,
    options: Mapping[str, Any],
    where: str,
    preprocessor: Mapping[str, Any],
) -> ImageEncoderConfig:
    """A CLIP vision tower; `options` are its transformers config, or that of a whole CLIP.

    `preprocessor`: preprocessor_config.json, or empty for the mean and std of OpenAI's CLIP.
    """
    if options.get("model_type") not in IMAGE_ENCODER_TYPES:
        raise UserError(
            f"{where}: a config.json of a CLIP vision model is needed beside the image encoder, "
            f"model_type is {options.get('model_type')!r}; get the whole folder"
        )
    from transformers import CLIPVisionConfig  # slow to import

    try:  # config.json leaves out what has its default value
        options = CLIPVisionConfig.from_dict(dict(options.get("vision_config") or options))
    except Exception as error:  # of several kinds, by version
        reason = " ".join(str(error).split())
        raise UserError(
            f"{where}: not a CLIP vision model ({reason}); get the file again"
        ) from error
    options = options.to_dict()
    embeddings, layers = "vision_model.embeddings", "vision_model.encoder.layers"
    patch = _shape(tensors, f"{embeddings}.patch_embedding.weight", what, 4)
    positions = _shape(tensors, f"{embeddings}.position_embedding.weight", what, 2)[0]
    side = math.isqrt(max(positions - 1, 0))
    if side * side != positions - 1 or side == 0:
        raise UserError(f"{what}: {positions} positions are no square of patches and a class token")
    activation = options["hidden_act"]
    if activation not in ("quick_gelu", "gelu"):
        raise UserError(f"{where}: hidden_act {activation!r} is not implemented")
    eps = options["layer_norm_eps"]
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not eps > 0:
        raise UserError(f"{where}: layer_norm_eps is {eps!r}, not a number above 0")
    config = ImageEncoderConfig(
        hidden_size=patch[0],
        intermediate_size=_shape(tensors, f"{layers}.0.mlp.fc1.weight", what, 2)[0],
        layers=_count(tensors, layers),
        heads=options["num_attention_heads"],
        image_size=side * patch[2],
        patch_size=patch[2],
        projection_dim=_shape(tensors, "visual_projection.weight", what, 2)[0],
        activation=activation,
        norm_eps=float(eps),
        image_mean=_colour(preprocessor, "image_mean", ImageEncoderConfig.image_mean),
        image_std=_colour(preprocessor, "image_std", ImageEncoderConfig.image_std),
    )
    _check_divisible((config.hidden_size,), config.heads, f"{where}: num_attention_heads")
    _check_agreement(
        options,
        where,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        image_size=config.image_size,
        patch_size=config.patch_size,
    )
    return config


def _shape(tensors: Mapping, name: str, what: str, rank: int) -> tuple[int, ...]:
    if name not in tensors:
        raise UserError(f"{what}: missing key {name!r}; is it from another architecture?")
    shape = tuple(tensors[name].shape)
    if len(shape) != rank or 0 in shape:
        raise UserError(f"{what}: {name} has shape {shape}; is it from another architecture?")
    return shape


def _count(tensors: Mapping, parent: str) -> int:
    """How many numbered children `parent` has, from 0 up without a gap."""
    pattern = re.compile(re.escape(parent) + r"\.(\d+)\.")
    numbers = {int(match[1]) for name in tensors if (match := pattern.match(name))}
    count = 0
    while count in numbers:
        count += 1
    return count


def _whole(options: Mapping, key: str, default: int, where: str) -> int:
    value = options.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{where}: {key} is {value!r}, not a whole number above 0")
    return value


def _heads(options: Mapping, channels: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Heads per level. diffusers' attention_head_dim has always meant their number."""
    if not options and channels != _CHANNELS:
        warnings.warn(
            f"weights do not show the number of attention heads; {_HEADS} are assumed, as in Stable"
            " Diffusion 1.x, whose other sizes these are not: a config.json would tell",
            UserNote,
            stacklevel=2,
        )
    value = options.get("num_attention_heads") or options.get("attention_head_dim", _HEADS)
    heads = tuple(value) if isinstance(value, list) else (value,) * len(channels)
    if len(heads) != len(channels) or any(
        isinstance(h, bool) or not isinstance(h, int) or h < 1 or c % h
        for h, c in zip(heads, channels, strict=False)
    ):
        raise UserError(
            f"{where}: {value!r} attention heads do not fit the levels' channels {list(channels)}"
        )
    return heads


def _check_divisible(channels, parts: int, what: str) -> None:
    if any(c % parts for c in channels):
        raise UserError(f"{what}, {parts}, does not divide the channels {list(channels)}")


def _check_agreement(options: Mapping, where: str, **sizes) -> None:
    """Raises UserError where the options contradict the sizes that the weights have."""
    for key, size in sizes.items():
        value = options.get(key, size)
        wanted = list(size) if isinstance(size, tuple) else size
        # diffusers also takes one number per level where all are equal.
        same = isinstance(value, list) and all(v == wanted for v in value)
        if value != wanted and value != size and not same:
            raise UserError(f"{where}: {key} is {value!r}, but the weights have {wanted!r}")


def _colour(options: Mapping, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = options.get(key, default)
    if (
        not isinstance(value, list | tuple)
        or len(value) != 3
        or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value)
    ):
        raise UserError(f"preprocessor_config.json: {key} is {value!r}, not three numbers")
    return tuple(map(float, value))
