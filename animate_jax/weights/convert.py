"""PyTorch weights into model directories.

`convert_moore` takes the files of the public Animate Anyone reproductions, `convert_sd15` puts a
starting point for training together. Both check every name and shape before they write, and hold
no more than a few tensors in memory.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from flax.traverse_util import unflatten_dict
from tqdm import tqdm

from animate_jax.config import (
    ImageEncoderConfig,
    ModelConfig,
    MotionConfig,
    PoseGuiderConfig,
    UNetConfig,
    from_dict,
)
from animate_jax.diffusion.schedule import NoiseSchedule, moore_sampling
from animate_jax.errors import UserError, UserNote
from animate_jax.models.animate_anyone import COMPONENTS
from animate_jax.weights import sizes
from animate_jax.weights.config_files import NOTES, find_options, read_json
from animate_jax.weights.model_directory import (
    MOTION,
    check_target,
    component_shapes,
    save_model,
    split_items,
)
from animate_jax.weights.original_names import pose_guider_from_controlnet, rename_motion_modules
from animate_jax.weights.parts import (
    SD15_VALUES,
    Part,
    open_autoencoder,
    open_base,
    open_image_encoder,
    renamed,
)
from animate_jax.weights.sources import open_state_dict, resolve_source

STORED_DTYPES = ("float32", "float16", "bfloat16")
_SUFFIXES = (".pth", ".safetensors", ".pt", ".bin")
_STEMS = ("denoising_unet", "reference_unet", "motion_module", "pose_guider")
_FOLDERS = ("image_encoder", "sd-vae-ft-mse")
_UNET_CONFIG = "stable-diffusion-v1-5/unet/config.json"
_MOORE_PATTERNS = (
    *(stem + suffix for stem in _STEMS for suffix in _SUFFIXES),
    *(f"{folder}/*{suffix}" for folder in _FOLDERS for suffix in (".json", *_SUFFIXES)),
    _UNET_CONFIG,
    NOTES,
)
_EXAMPLES = {
    "vae": "hf:stabilityai/sd-vae-ft-mse",
    "image_encoder": "hf:lambdalabs/sd-image-variations-diffusers:image_encoder",
}

Source = str | os.PathLike


def convert_moore(
    source: Source,
    out: Source,
    *,
    vae: Source | None = None,
    image_encoder: Source | None = None,
    base: Source | None = None,
    motion: bool = True,
    motion_heads: int | None = None,
    betas: Literal["linear", "scaled_linear"] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    dtype: str | None = None,
) -> None:
    """Convert the released files of an Animate Anyone reproduction into the model directory `out`.

    source: a path or `hf:owner/name` with denoising_unet.pth, reference_unet.pth,
    motion_module.pth, pose_guider.pth (in a local folder also denoising_unet-30000.pth and so on,
    as training writes them: the last of each), image_encoder/, sd-vae-ft-mse/ and, if the sizes are
    not Stable Diffusion 1.5's, stable-diffusion-v1-5/unet/config.json. vae, image_encoder and base
    (a diffusers directory, or a UNet's config.json) may lie elsewhere. motion: False converts a
    model of single pictures. motion_heads and betas, which no weights show, are 8 and linear unless
    given, as the released files are sampled, or what `export_moore` noted down. dtype: float32,
    float16 or bfloat16; None keeps what each file has.
    Raises UserError, and leaves nothing at `out`, for files that are missing, damaged or of
    another architecture, and where `out` exists and is not to be overwritten.
    """
    _check(out, overwrite, dtype)
    folder = resolve_source(str(source), patterns=_MOORE_PATTERNS)
    whole = _open_stem(folder, "denoising_unet")
    options, where = _base_options(folder, base)
    unet, modules = _split_motion(replace(whole, options=options, where=where))
    if motion and (_find(folder, "motion_module") or not modules.tensors):
        modules = _merge(_open_stem(folder, "motion_module"), modules)
    parts = {
        "denoising_unet": unet,
        "reference_unet": _open_stem(folder, "reference_unet").without_ignored("reference_unet"),
        "pose_guider": _open_stem(folder, "pose_guider"),
        "autoencoder": open_autoencoder(_elsewhere("vae", vae, folder / "sd-vae-ft-mse")),
        "image_encoder": open_image_encoder(
            _elsewhere("image_encoder", image_encoder, folder / "image_encoder")
        ),
    }
    noted = _noted(folder)
    motion_config = None
    if motion:
        parts[MOTION] = modules = _with_positions(modules)
        was = noted.denoising_unet.motion or MotionConfig()
        heads = motion_heads or was.heads
        motion_config = sizes.motion_config(modules.tensors, modules.what, heads, was.norm_groups)
        if motion_config.max_frames == 128 and betas is None and noted is _RELEASED:
            warnings.warn(
                f"{modules.what}: knows 128 frames, as MusePose's does, whose weights are sampled"
                " with --betas scaled_linear; taken as linear",
                UserNote,
                stacklevel=2,
            )
    guider = parts["pose_guider"]
    config = _config(
        parts,
        replace(sizes.unet_config(*unet.described), motion=motion_config),
        sizes.pose_guider_config(guider.tensors, guider.what),
        replace(noted.schedule, beta_schedule=betas or noted.schedule.beta_schedule),
    )
    encoder, usual = config.image_encoder, ImageEncoderConfig
    colours = encoder.image_mean, encoder.image_std
    if noted is _RELEASED and colours != (usual.image_mean, usual.image_std):
        warnings.warn(
            f"{parts['image_encoder'].what}: its pictures are normalised by mean {colours[0]} and"
            f" deviation {colours[1]}, as its preprocessor_config.json says; PyTorch's code takes"
            " CLIPImageProcessor's own, whatever is there",
            UserNote,
            stacklevel=2,
        )
    kept = {name: getattr(noted, name) for name in ("preprocessing", "resolution", "guidance")}
    _save(out, replace(config, **kept), parts, overwrite, progress, dtype)


_RELEASED = ModelConfig(schedule=moore_sampling())


def _noted(folder: Path) -> ModelConfig:
    """The config that an export came of; of it counts what the released layout does not say."""
    file = folder / NOTES
    return from_dict(ModelConfig, read_json(file), str(file)) if file.is_file() else _RELEASED


def convert_sd15(
    source: Source,
    out: Source,
    *,
    vae: Source | None = None,
    image_encoder: Source | None = None,
    controlnet: Source | None = None,
    motion: Source | None = None,
    motion_heads: int = 8,
    pose_guider: str = "feature",
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    dtype: str | None = None,
) -> None:
    """A starting point for training from Stable Diffusion 1.x, as the model directory `out`.

    source: a diffusers directory (unet/, vae/, perhaps image_encoder/), a single-file checkpoint,
    or a UNet's own folder or file; a path or `hf:owner/name[:folder or file]`. Both UNets start
    from its UNet. controlnet: weights whose picture embedding, except its last layer, starts the
    pose guider; its variant is `feature` or `latent`, and what nothing is given for is drawn from
    `seed`. motion: an AnimateDiff file or diffusers MotionAdapter, "new" for fresh motion modules,
    None for none. dtype: as in convert_moore, as are the errors.
    """
    _check(out, overwrite, dtype)
    # A repository on the hub holds much more than these folders.
    hub = str(source).startswith("hf:") and str(source).count(":") == 1
    inside = {
        name: f"{source}:{name}" if hub else Path(source) / name
        for name in ("unet", "vae", "image_encoder")
    }
    where = resolve_source(str(inside["unet"] if hub else source))
    unet, autoencoder = open_base(where, autoencoder=vae is None)
    if vae is not None or autoencoder is None:
        autoencoder = open_autoencoder(_elsewhere("vae", vae, inside["vae"]))
    encoder = _elsewhere("image_encoder", image_encoder, inside["image_encoder"])
    parts = {
        "denoising_unet": unet,
        "reference_unet": unet.without_ignored("reference_unet"),
        "autoencoder": autoencoder,
        "image_encoder": open_image_encoder(encoder),
    }
    unet_config = sizes.unet_config(*unet.described)
    motion_config = None
    if motion is not None:
        motion_config, parts[MOTION] = _new_motion(motion, motion_heads, seed)
        sizes.check_motion(motion_config, unet_config.block_out_channels, parts[MOTION].what)
    guider_config, parts["pose_guider"] = _new_guider(pose_guider, controlnet, unet_config, seed)
    unet_config = replace(unet_config, motion=motion_config)
    config = _config(parts, unet_config, guider_config, NoiseSchedule())
    _save(out, config, parts, overwrite, progress, dtype)


def _new_motion(motion: Source, heads: int, seed: int) -> tuple[MotionConfig, Part]:
    if motion == "new":
        return MotionConfig(heads=heads), Part({}, "new motion modules", fresh=".*", seed=seed)
    path = resolve_source(str(motion))
    options, where = find_options(path)  # only those of diffusers have them
    norms = {"MotionAdapter": "motion_norm_num_groups", "UNetMotionModel": "norm_num_groups"}
    kind = options.get("_class_name", "MotionAdapter")
    if kind not in norms:
        raise UserError(f"{where}: describes a {kind}, not one of {', '.join(norms)}")
    heads = _alike(options.get("motion_num_attention_heads", heads))
    groups = _alike(options.get(norms[kind], MotionConfig.norm_groups))
    if type(heads) is not int or type(groups) is not int:
        raise UserError(
            f"{where}: heads {heads!r} or groups {groups!r} are no whole numbers, the same on all"
            " levels"
        )
    tensors = renamed(path, rename_motion_modules, open_state_dict(path))
    part = _with_positions(Part(tensors, str(path)))
    config = sizes.motion_config(part.tensors, part.what, heads, groups)
    if config.max_frames == 24:
        warnings.warn(
            f"{path}: looks like AnimateDiff's first version, which was trained with norms over all"
            " frames in the UNet, unlike here; its second or third version fits better",
            UserNote,
            stacklevel=2,
        )
    return config, part


def _alike(value):
    """A list of equal numbers is that number."""
    return value[0] if isinstance(value, list) and value and len(set(value)) == 1 else value


def _with_positions(motion: Part) -> Part:
    """AnimateDiff's newer files leave out the tables of positions, which are sines."""
    known = any(name.endswith(".pos_encoder.pe") for name in motion.tensors)
    return motion if known else replace(motion, fresh=r".*\.pos_encoder\.pe")


def _new_guider(
    variant: str, controlnet: Source | None, unet: UNetConfig, seed: int
) -> tuple[PoseGuiderConfig, Part]:
    part = Part({}, "a new pose guider", fresh=".*", seed=seed)
    if variant == "latent" and controlnet is None:
        return PoseGuiderConfig("latent", (16, 32, 64, 128), unet.in_channels), part
    if variant != "feature":
        raise UserError("the pose guider is 'feature', or 'latent', which takes no ControlNet")
    if controlnet is None:
        return PoseGuiderConfig(out_channels=unet.block_out_channels[0]), part
    path = resolve_source(str(controlnet))
    tensors = renamed(path, pose_guider_from_controlnet, open_state_dict(path))
    body = {name: t for name, t in tensors.items() if not name.startswith("conv_out.")}
    part = Part(body, str(path), fresh=r"conv_out\..+", seed=seed)
    return sizes.pose_guider_config(tensors, str(path)), part


def _check(out: Source, overwrite: bool, dtype: str | None) -> None:
    """What can be refused before any work."""
    check_target(out, overwrite)
    if dtype not in (None, *STORED_DTYPES):
        raise UserError(f"weights cannot be stored as {dtype!r}; use one of {STORED_DTYPES}")


def _find(folder: Path, stem: str) -> Path | None:
    """`stem`.pth or the like; else of stem-1000.pth, stem-2000.pth, ..., as the reproduction's
    training writes them, the last."""
    files = (folder / f"{stem}{suffix}" for suffix in _SUFFIXES)
    if found := next((file for file in files if file.is_file()), None):
        return found
    steps = {
        int(number[1]): file
        for file in (folder.iterdir() if folder.is_dir() else ())
        if file.suffix in _SUFFIXES and (number := re.fullmatch(rf"{stem}-(\d+)", file.stem))
    }
    return steps[max(steps)] if steps else None


def _open_stem(folder: Path, stem: str) -> Part:
    file = _find(folder, stem)
    if file is None:
        advice = "; for a model of single pictures add --no-motion" * (stem == "motion_module")
        raise UserError(f"{folder}: {stem}.pth is missing; get the whole set of files{advice}")
    if file.stem != stem:
        warnings.warn(f"{file}: taken for {stem}{file.suffix}", UserNote, stacklevel=3)
    return Part(open_state_dict(file), str(file))


def _split_motion(unet: Part) -> tuple[Part, Part]:
    """A UNet's file without and with only its motion modules."""
    motion = {name: t for name, t in unet.tensors.items() if ".motion_modules." in name}
    plain = {name: t for name, t in unet.tensors.items() if name not in motion}
    return replace(unet, tensors=plain), Part(motion, unet.what)


def _merge(motion_file: Part, in_unet: Part) -> Part:
    """The motion modules of both files, as the reproduction loads them: the UNet's file last."""
    if not in_unet.tensors:
        return motion_file
    what = f"{motion_file.what} with {in_unet.what}"
    return Part(motion_file.tensors | in_unet.tensors, what)


def _base_options(folder: Path, base: Source | None) -> tuple[dict, str]:
    """The UNet's config.json, and where it lies; empty for Stable Diffusion 1.5."""
    if base is None:
        file = folder / _UNET_CONFIG
        return (read_json(file), str(file)) if file.is_file() else ({}, SD15_VALUES)
    path = resolve_source(str(base), patterns=("unet/config.json", "config.json"))
    for file in (path, path / "unet" / "config.json", path / "config.json"):
        if file.is_file():
            return read_json(file), str(file)
    raise UserError(f"{base}: holds no config.json of a UNet; give that file or its directory")


def _elsewhere(option: str, given: Source | None, usual: Source) -> Path:
    """Where a network lies: where the user says, or at its usual place."""
    try:
        return resolve_source(str(usual if given is None else given))
    except UserError as error:
        if given is not None:
            raise
        raise UserError(f"{error}; add --{option.replace('_', '-')} {_EXAMPLES[option]}") from error


def _config(
    parts: Mapping[str, Part],
    unet: UNetConfig,
    pose_guider: PoseGuiderConfig,
    schedule: NoiseSchedule,
) -> ModelConfig:
    """The whole model's config; raises UserError where its networks do not fit each other."""
    encoder = parts["image_encoder"]
    config = ModelConfig(
        denoising_unet=unet,
        reference_unet=replace(unet, output=False, motion=None),
        pose_guider=pose_guider,
        autoencoder=sizes.autoencoder_config(*parts["autoencoder"].described),
        image_encoder=sizes.image_encoder_config(*encoder.described, encoder.preprocessor),
        schedule=schedule,
    )
    latents, feature = config.autoencoder.latent_channels, pose_guider.variant == "feature"
    pose_width = unet.block_out_channels[0] if feature else latents
    tokens = config.image_encoder.projection_dim
    for what, found, where, wanted in (
        ("the UNet's input has {} channels", unet.in_channels, "the latents", latents),
        ("the UNet's output has {} channels", unet.out_channels, "the latents", latents),
        (
            "the UNet takes tokens of width {}",
            unet.cross_attention_dim,
            "the image encoder",
            tokens,
        ),
        ("the pose guider gives {} channels", pose_guider.out_channels, "the UNet", pose_width),
        (
            "the pose guider makes pictures {} times smaller",
            2 ** (len(pose_guider.channels) - 1),
            "the autoencoder",
            config.autoencoder.downscale,
        ),
    ):
        if found != wanted:
            raise UserError(f"{what.format(found)}, {where}: {wanted}; take weights that fit")
    return config


def _save(
    out: Source,
    config: ModelConfig,
    parts: Mapping[str, Part],
    overwrite: bool,
    progress: bool,
    dtype: str | None,
) -> None:
    """Check all parts against the config, then write them one after the other."""
    trees = {}
    for component in COMPONENTS:
        leaves = {}
        for item, shapes in split_items(component, component_shapes(config, component)).items():
            leaves |= parts[item].leaves(component, shapes, dtype and np.dtype(dtype))
        trees[component] = leaves

    total = sum(leaf.nbytes for leaves in trees.values() for leaf in leaves.values())
    with tqdm(
        total=total, desc="converting", unit="B", unit_scale=True, disable=not progress
    ) as bar:
        components = (
            (name, unflatten_dict({path: leaf.counted(bar) for path, leaf in leaves.items()}))
            for name, leaves in trees.items()
        )
        save_model(out, config, components, overwrite=overwrite)
