"""The `config.json` files of diffusers and transformers: read, checked, and written.

An option that changes what a network computes must have the one value that is implemented here;
an option nobody has heard of is refused, unless it is switched off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from animate_jax.config import AutoencoderConfig, ImageEncoderConfig, UNetConfig
from animate_jax.errors import UserError

UNET_CLASS = "UNet2DConditionModel"
AUTOENCODER_CLASS = "AutoencoderKL"
IMAGE_ENCODER_TYPES = ("clip_vision_model", "clip")

_UNET_FIXED = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "transformer_layers_per_block": 1,
    "dual_cross_attention": False,
    "use_linear_projection": False,
    "resnet_time_scale_shift": "default",
    "resnet_out_scale_factor": 1,
    "time_embedding_type": "positional",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
}
_UNET_FREE = (
    "sample_size in_channels out_channels down_block_types up_block_types block_out_channels "
    "layers_per_block dropout norm_num_groups cross_attention_dim attention_head_dim "
    "num_attention_heads upcast_attention addition_embed_type_num_heads "
    # What diffusers' EMAModel notes down of its averages.
    "decay min_decay optimization_step update_after_step use_ema_warmup inv_gamma power"
).split()
_AUTOENCODER_FIXED = {
    "act_fn": "silu",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
_AUTOENCODER_FREE = (
    "sample_size in_channels out_channels down_block_types up_block_types block_out_channels "
    "layers_per_block latent_channels norm_num_groups scaling_factor force_upcast"
).split()


# One of these is in every config.json of a network.
_DESCRIBING = {
    *("_class_name", "model_type", "block_out_channels", "attention_head_dim", "norm_num_groups"),
    *("scaling_factor", "hidden_size", "motion_num_attention_heads"),
}


NOTES = "animate_jax.json"  # in an export: the model's config, which PyTorch's files do not say
_LARGEST_JSON = 2**24  # weights that are given by mistake need not be read


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises UserError for anything else."""
    if path.is_file() and path.stat().st_size > _LARGEST_JSON:
        raise UserError(f"{path}: is no description but something large; give a config.json")
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); get the file again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no JSON object; get the file again")
    return values


def find_options(path: Path) -> tuple[dict[str, Any], str]:
    """The config.json in a folder of weights or beside a weight file, and its path for messages.

    Empty where there is none, or where it describes no network.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    options = read_json(file) if file.is_file() else {}
    return (options if options.keys() & _DESCRIBING else {}), str(file)


def check_unet_options(options: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a UNet config that asks for what is not implemented here."""
    _check_class(options, UNET_CLASS, where)
    _check_options(options, _UNET_FIXED, _UNET_FREE, where)
    downs = options.get("down_block_types") or []
    _check_blocks(downs, ("CrossAttnDownBlock2D", "DownBlock2D"), f"{where}: down_block_types")
    ups = [name.replace("Down", "Up") for name in reversed(downs)]
    if downs and options.get("up_block_types", ups) != ups:
        raise UserError(f"{where}: up_block_types do not mirror down_block_types")


def check_autoencoder_options(options: Mapping[str, Any], where: str) -> None:
    """Raises UserError for an autoencoder config that asks for what is not implemented here."""
    _check_class(options, AUTOENCODER_CLASS, where)
    _check_options(options, _AUTOENCODER_FIXED, _AUTOENCODER_FREE, where)
    for key, kind in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        _check_blocks(options.get(key) or [], (kind,), f"{where}: {key}")


def _check_class(options, name, where):
    if options.get("_class_name", name) != name:
        raise UserError(f"{where}: describes a {options['_class_name']}, not a {name}")


def _check_options(options, fixed, free, where):
    for key, value in options.items():
        values = value if isinstance(value, list) else [value]
        if key in fixed:
            if any(v != fixed[key] for v in values):
                raise UserError(
                    f"{where}: {key} is {value!r}; only {fixed[key]!r} is implemented, "
                    "these weights cannot be used"
                )
        elif key not in free and not key.startswith("_") and value not in (None, False):
            raise UserError(
                f"{where}: the option {key} = {value!r} is not implemented; "
                "these weights cannot be used"
            )


def _check_blocks(found, known, where):
    if not isinstance(found, list):
        raise UserError(f"{where} is {found!r}, not a list; get the file again")
    for name in found:
        if name not in known:
            raise UserError(f"{where} has {name!r}; only {' and '.join(known)} are implemented")


def unet_options(config: UNetConfig) -> dict[str, Any]:
    """The config.json with which diffusers builds the same UNet, without motion."""
    downs = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention_levels]
    same = len(set(config.heads)) == 1
    return {
        "_class_name": UNET_CLASS,
        **_UNET_FIXED,
        "sample_size": 64,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": config.block_out_channels,
        "down_block_types": downs,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(downs)],
        "layers_per_block": config.layers_per_block,
        "attention_head_dim": config.heads[0] if same else config.heads,
        "cross_attention_dim": config.cross_attention_dim,
        "norm_num_groups": config.norm_groups,
    }


def autoencoder_options(config: AutoencoderConfig) -> dict[str, Any]:
    """The config.json with which diffusers builds the same autoencoder."""
    count = len(config.block_out_channels)
    return {
        "_class_name": AUTOENCODER_CLASS,
        **_AUTOENCODER_FIXED,
        "sample_size": 256,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": config.block_out_channels,
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": config.scaling_factor,
    }


def image_encoder_options(config: ImageEncoderConfig) -> dict[str, Any]:
    """The config.json with which transformers builds the same CLIP vision tower."""
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "projection_dim": config.projection_dim,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
        "attention_dropout": 0.0,
    }


def preprocessor_options(config: ImageEncoderConfig) -> dict[str, Any]:
    """The preprocessor_config.json that belongs to `image_encoder_options`."""
    size = config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": config.image_mean,
        "image_std": config.image_std,
    }
