"""Model directories back into the files of the public Animate Anyone reproductions."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict
from tqdm import tqdm

from animate_jax.config import ModelConfig, MotionConfig, to_dict
from animate_jax.diffusion.schedule import moore_sampling
from animate_jax.errors import UserError, UserNote
from animate_jax.files import check_place, replacing_directory
from animate_jax.models.animate_anyone import COMPONENTS
from animate_jax.weights.config_files import (
    NOTES,
    autoencoder_options,
    image_encoder_options,
    preprocessor_options,
    unet_options,
)
from animate_jax.weights.items import load_item_on_host
from animate_jax.weights.lazy_tensor import LazyTensor
from animate_jax.weights.mappings import to_torch, torch_shapes
from animate_jax.weights.model_directory import model_directory, read_config, stored_leaves
from animate_jax.weights.safetensors_writer import write_safetensors_file
from animate_jax.weights.torch_file import write_torch_file

_FILES = {
    "denoising_unet": "denoising_unet.pth",
    "motion_modules": "motion_module.pth",
    "reference_unet": "reference_unet.pth",
    "pose_guider": "pose_guider.pth",
    "autoencoder": "sd-vae-ft-mse/diffusion_pytorch_model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
}
_DESCRIPTIONS = {
    "stable-diffusion-v1-5/unet/config.json": lambda c: unet_options(c.denoising_unet),
    "sd-vae-ft-mse/config.json": lambda c: autoencoder_options(c.autoencoder),
    "image_encoder/config.json": lambda c: image_encoder_options(c.image_encoder),
    "image_encoder/preprocessor_config.json": lambda c: preprocessor_options(c.image_encoder),
}


def export_moore(
    model: str | os.PathLike,
    out: str | os.PathLike,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Write the model directory `model` as the files that `convert_moore` reads.

    denoising_unet.pth, reference_unet.pth, pose_guider.pth and, if the model has motion modules,
    motion_module.pth; sd-vae-ft-mse/ and image_encoder/ for diffusers and transformers; the UNet's
    stable-diffusion-v1-5/unet/config.json. Every tensor keeps its dtype. What else the model's
    config says lies in animate_jax.json, which only `convert_moore` reads; a UserNote tells what
    PyTorch's code has to be told. One part of the model is in memory at a time. Raises UserError
    for a model with what the reproductions do not have (a `latent` pose guider, positions, a
    reference that is not attended to), a damaged one, and where `out` exists: `overwrite` replaces
    an earlier export, nothing else.
    """
    target = Path(out).expanduser()
    _check_target(target, overwrite)
    config = read_config(model)
    if config.pose_guider.variant != "feature":
        raise UserError(
            f"{model}: its pose guider is of the {config.pose_guider.variant!r} kind, which the "
            "PyTorch reproductions do not have; only models with the 'feature' kind can be exported"
        )
    unet = config.denoising_unet
    if unet.reference != "attended" or unet.positions or config.reference_unet.positions:
        raise UserError(
            f"{model}: its networks take positions, or the reference in another way, which the "
            "PyTorch reproductions do not have; only models after the paper can be exported"
        )
    _note_differences(config)
    parts = {}
    for component in COMPONENTS:
        parts |= stored_leaves(model, config, component)
    directory = model_directory(model)
    total = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaves in parts.values()
        for leaf in leaves.values()
    )
    bar = tqdm(total=total, desc="exporting", unit="B", unit_scale=True, disable=not progress)
    try:
        with bar, replacing_directory(target) as temporary:
            for name, options in _DESCRIPTIONS.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).write_text(json.dumps(options(config), indent=2) + "\n")
            (temporary / NOTES).write_text(json.dumps(to_dict(config), indent=2) + "\n")
            for item, leaves in parts.items():
                tensors = _torch_tensors(load_item_on_host(directory / item, leaves))
                file = temporary / _FILES[item]
                write = write_torch_file if file.suffix == ".pth" else write_safetensors_file
                write(file, {name: tensor.counted(bar) for name, tensor in tensors.items()})
                del tensors  # before the next part is loaded
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error


def _note_differences(config: ModelConfig) -> None:
    """Of what stands in the reproductions' code and YAML files, not in their weights."""
    usual = _settings(ModelConfig(schedule=moore_sampling()))
    for what, value in _settings(config).items():
        if value != usual[what]:
            warnings.warn(
                f"PyTorch's code has to be told: {what} is {value}, not {usual[what]} (its"
                " inference_v2.yaml, or where the number stands)",
                UserNote,
                stacklevel=3,
            )


def _settings(config: ModelConfig) -> dict[str, object]:
    """By the names that they have there."""
    schedule, motion = config.schedule, config.denoising_unet.motion or MotionConfig()
    betas = {"cosine": "squaredcos_cap_v2"}
    predictions = {"v": "v_prediction"}
    return {
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": betas.get(schedule.beta_schedule, schedule.beta_schedule),
        "prediction_type": predictions.get(schedule.prediction, schedule.prediction),
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "timestep_spacing": schedule.timestep_spacing,
        "steps_offset": schedule.steps_offset,
        "set_alpha_to_one": schedule.final_alpha_one,
        "the part of their noise that frames share": schedule.shared_noise,
        "num_attention_heads of motion modules": motion.heads,
        "num_transformer_block of motion modules": motion.transformer_blocks,
        "the number of attention_block_types": motion.attentions,
        "temporal_position_encoding_max_len": motion.max_frames,
        "motion_module_mid_block": motion.mid_block,
        "norm_num_groups of motion modules": motion.norm_groups,
        "the latents' factor": config.autoencoder.scaling_factor,
        "image_mean of its CLIPImageProcessor": config.image_encoder.image_mean,
        "image_std of its CLIPImageProcessor": config.image_encoder.image_std,
        "resample of its CLIPImageProcessor": config.preprocessing.image_encoder,
        "resample of its ref_image_processor": config.preprocessing.reference,
        "resample of its cond_image_processor": config.preprocessing.pose,
    }


def _torch_tensors(leaves: Mapping[tuple[str, ...], np.ndarray]) -> dict[str, LazyTensor]:
    """By PyTorch name, in PyTorch's axes once a tensor is read."""
    tensors = {}
    for name, (path, shape) in sorted(torch_shapes(unflatten_dict(dict(leaves))).items()):
        read = partial(_in_torch_axes, path, leaves[path])
        tensors[name] = LazyTensor(shape, leaves[path].dtype, read)
    return tensors


def _in_torch_axes(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(to_torch(path, array))


def _check_target(target: Path, overwrite: bool) -> None:
    check_place(target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    # The PyTorch reproductions' own folder has these files too, among others.
    always = {_FILES["denoising_unet"], *_DESCRIPTIONS}
    if not always <= found <= {*_FILES.values(), *_DESCRIPTIONS, NOTES}:
        raise UserError(f"{target}: exists and is no earlier export; choose another name")
    if not overwrite:
        raise UserError(f"{target}: exists already; choose another name or add --overwrite")
