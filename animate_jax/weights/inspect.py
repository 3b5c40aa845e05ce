"""What a model directory holds, in words, without loading it."""

from __future__ import annotations

import dataclasses
import math
import os

from animate_jax.config import ModelConfig
from animate_jax.models.animate_anyone import COMPONENTS
from animate_jax.weights.model_directory import MOTION, read_config, stored_leaves

_ROW = "{:<16}{:>15}{:>12}  {}"


def describe_model(path: str | os.PathLike) -> str:
    """Lines with every part's parameters, bytes, dtypes and sizes, and the model's settings.

    Only descriptions are read, no arrays. Raises UserError where there is no model, or one whose
    parts do not match its config.
    """
    config = read_config(path)
    rows, parameters, size = [_ROW.format("part", "parameters", "size", "dtype")], 0, 0
    for component in COMPONENTS:
        for item, leaves in stored_leaves(path, config, component).items():
            count = sum(math.prod(leaf.shape) for leaf in leaves.values())
            stored = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves.values())
            dtypes = ", ".join(sorted({leaf.dtype.name for leaf in leaves.values()}))
            rows.append(_ROW.format(item, f"{count:,}", _bytes(stored), dtypes))
            parameters, size = parameters + count, size + stored
    rows.append(_ROW.format("together", f"{parameters:,}", _bytes(size), ""))
    settings = [f"{name}: {_values(value)}" for name, value in _settings(config).items()]
    return "\n".join([os.fspath(path), "", *rows, "", *settings])


def _settings(config: ModelConfig) -> dict[str, object]:
    unet = config.denoising_unet
    return {
        "resolution": config.resolution,
        "denoising_unet": dataclasses.replace(unet, motion=None),
        MOTION: unet.motion,
        "reference_unet": config.reference_unet,
        "pose_guider": config.pose_guider,
        "autoencoder": config.autoencoder,
        "image_encoder": config.image_encoder,
        "schedule": config.schedule,
        "preprocessing": config.preprocessing,
    }


def _values(value) -> str:
    if not dataclasses.is_dataclass(value):
        return "none" if value is None else str(value)
    fields = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    return ", ".join(f"{name} {_plain(v)}" for name, v in fields if v is not None)


def _plain(value) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _bytes(count: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.2f} {unit}" if unit != "B" else f"{count} B"
        count /= 1000
    raise AssertionError("the last unit returns")
