"""The networks of a model as they lie in PyTorch files, and their tensors under our paths.

Nothing is read but headers and small JSON files until a parameter is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from animate_jax.errors import UserError
from animate_jax.models.initialize import initialize
from animate_jax.weights.config_files import find_options, read_json
from animate_jax.weights.lazy_tensor import LazyTensor
from animate_jax.weights.mappings import check_names, from_torch, torch_shapes
from animate_jax.weights.original_names import rename_autoencoder, rename_unet, split_single_file
from animate_jax.weights.sources import open_state_dict

SD15_VALUES = "the values of Stable Diffusion 1.5"
_SINGLE_FILE = "model.diffusion_model."
_FLOATS = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16)))

# What files may hold beside the parameters, and why it can go.
_IGNORED = {
    # A table 0, 1, 2, ... that old versions of transformers stored; and the other half of a CLIP.
    "image_encoder": r"vision_model\.embeddings\.position_ids|text_model\..+"
    r"|text_projection\.weight|logit_scale",
    # The ReferenceNet's output is never computed; a plain UNet has these layers all the same.
    "reference_unet": r"conv_norm_out\..+|conv_out\..+",
}


@dataclass(frozen=True)
class Part:
    """One network: tensors by PyTorch name, and what config files say about it."""

    tensors: dict[str, LazyTensor]
    what: str  # the file, for messages
    options: dict[str, Any] = field(default_factory=dict)  # of the config.json at `where`
    where: str = SD15_VALUES
    preprocessor: dict[str, Any] = field(default_factory=dict)
    fresh: str = ""  # regex of names whose values are drawn from `seed` instead
    seed: int = 0

    @property
    def described(self) -> tuple:
        """The arguments of the functions in sizes.py."""
        return self.tensors, self.what, self.options, self.where

    def without_ignored(self, component: str) -> Part:
        """Without the keys that are known to be of no use in a component."""
        ignored = re.compile(_IGNORED[component])
        kept = {n: t for n, t in self.tensors.items() if not ignored.fullmatch(n)}
        return replace(self, tensors=kept)

    def leaves(self, component: str, expected: Mapping, dtype: np.dtype | None) -> dict:
        """{our path: LazyTensor} for {our path: leaf with a shape}, cast to dtype if one is given.

        Raises UserError, naming file and key, for a missing, surplus or misshapen one.
        """
        shapes = torch_shapes(unflatten_dict(dict(expected)))
        drawn = {path for name, (path, _) in shapes.items() if re.fullmatch(self.fresh, name)}
        leaves = {}
        for path in drawn:
            draw = partial(_draw, component, path, expected[path], self.seed)
            leaves[path] = LazyTensor(tuple(expected[path].shape), np.dtype(np.float32), draw)
        shapes = {name: value for name, value in shapes.items() if value[0] not in drawn}
        check_names(self.tensors, shapes, self.what)
        for name, (path, shape) in shapes.items():
            tensor = self.tensors[name]
            if tensor.shape != shape:
                raise UserError(
                    f"{self.what}: {name} has shape {tensor.shape}, expected {shape}; "
                    "is it from another architecture?"
                )
            if tensor.dtype not in _FLOATS:
                raise UserError(
                    f"{self.what}: {name} has dtype {tensor.dtype}; weights of "
                    f"{', '.join(map(str, _FLOATS))} can be converted, get those"
                )
            read = partial(_in_our_axes, tensor, path)
            leaves[path] = LazyTensor(tuple(expected[path].shape), tensor.dtype, read)
        return {path: _cast(leaf, dtype, "/".join(path)) for path, leaf in leaves.items()}


def _draw(component: str, path: tuple[str, ...], leaf, seed: int) -> np.ndarray:
    return flatten_dict(initialize(unflatten_dict({path: leaf}), seed, component))[path]


def _in_our_axes(tensor: LazyTensor, path: tuple[str, ...]) -> np.ndarray:
    return from_torch(path, tensor.read())


def _cast(tensor: LazyTensor, dtype: np.dtype | None, name: str) -> LazyTensor:
    if dtype is None or dtype == tensor.dtype:
        return tensor

    def read():
        values = tensor.read()
        with np.errstate(over="ignore"):
            result = values.astype(dtype)
        if not np.isfinite(result).all() and np.isfinite(values).all():
            raise UserError(
                f"{name}: {np.abs(values).max():g} is too large for {dtype}; use bfloat16"
            )
        return result

    return LazyTensor(tensor.shape, dtype, read)


def renamed(path: Path, rename: Callable, *arguments):
    """What a function of original_names makes of a file's tensors; its errors name the file."""
    try:
        return rename(*arguments)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def open_unet(path: Path) -> Part:
    """A UNet from a diffusers folder, or from a file of one."""
    options, where = find_options(path)
    return Part(renamed(path, rename_unet, open_state_dict(path)), str(path), options, where)


def open_base(path: Path, autoencoder: bool = True) -> tuple[Part, Part | None]:
    """The UNet and, if it is there and wanted, the autoencoder of a Stable Diffusion model.

    path: a diffusers directory with `unet/` and perhaps `vae/`, a single-file checkpoint, or a
    UNet's own folder or file.
    """
    if (path / "unet").is_dir():
        inside = autoencoder and (path / "vae").is_dir()
        return open_unet(path / "unet"), open_autoencoder(path / "vae") if inside else None
    tensors = open_state_dict(path)
    if not any(name.startswith(_SINGLE_FILE) for name in tensors):
        return open_unet(path), None
    split = renamed(path, split_single_file, tensors, autoencoder)
    within = Part(split["vae"], f"{path} (autoencoder)") if "vae" in split else None
    return Part(split["unet"], f"{path} (UNet)"), within


def open_autoencoder(path: Path) -> Part:
    """An autoencoder from a diffusers folder, a file of one, or a single-file checkpoint."""
    options, where = find_options(path)
    tensors = open_state_dict(path)
    whole = renamed(path, split_single_file, tensors)
    tensors = whole["vae"] if "vae" in whole else renamed(path, rename_autoencoder, tensors)
    return Part(tensors, str(path), options, where)


def open_image_encoder(path: Path) -> Part:
    """A CLIP vision tower from a transformers folder, which may hold a whole CLIP."""
    options, where = find_options(path)
    folder = path if path.is_dir() else path.parent
    places = folder, folder.parent / "feature_extractor"
    files = [place / "preprocessor_config.json" for place in places]
    preprocessor = next((read_json(file) for file in files if file.is_file()), {})
    part = Part(open_state_dict(path), str(path), options, where, preprocessor)
    return part.without_ignored("image_encoder")
