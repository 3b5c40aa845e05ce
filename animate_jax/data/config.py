"""What the training input is made of: the `data` section of a training config, as dataclasses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from animate_jax.config import from_dict
from animate_jax.errors import UserError


@dataclass(frozen=True)
class SetConfig:
    """One set of records; `weight` is its share of the samples, relative to the other sets'."""

    path: str
    split: str = "train"
    weight: float = 1.0


@dataclass(frozen=True)
class DataConfig:
    """Which samples, how many at a time, and who makes them.

    height, width: of the pictures, in pixels, multiples of 8.
    frames: 1 makes picture samples, more make clip samples.
    stride: frames from one taken frame of a clip to the next; smaller in clips that are too short
        for it. A clip with fewer than `frames` frames runs forwards, backwards and so on.
    margin: picture samples take their reference at least so many frames away from the target,
        or as far as the clip allows; clip samples take it anywhere in the clip.
    crop: "person" never cuts the body and adds black bars where it must, "fill" never adds bars,
        "pad" shows the whole picture with bars.
    zoom: the range of a crop's side relative to the largest one inside the picture.
    flip: the probability of a mirrored sample.
    body_only: the probability of a sample whose skeletons have no face and no hands, as some
        networks that find poses leave them out.
    batch_size: rows over all processes together.
    seed: of the order of samples, and of what is random in them.
    workers: threads that make samples; 0 makes each batch when it is asked for.
    prefetch: batches that are ready ahead of time, and as many in the making.
    """

    sets: tuple[SetConfig, ...] = ()
    height: int = 512
    width: int = 512
    frames: int = 1
    stride: int = 4
    margin: int = 30
    crop: Literal["person", "fill", "pad"] = "person"
    zoom: tuple[float, ...] = (0.8, 1.0)
    flip: float = 0.5
    body_only: float = 0.0
    batch_size: int = 8
    seed: int = 0
    workers: int = 8
    prefetch: int = 2

    def __post_init__(self):
        if not self.sets:
            raise UserError("config.data.sets is empty; name at least one set of records")
        for one in self.sets:
            if not (math.isfinite(one.weight) and one.weight > 0):
                raise UserError(
                    f"{one.path}: its weight is {one.weight}; give a positive one, or remove it"
                    " from config.data.sets"
                )
        for name in ("height", "width"):
            if getattr(self, name) < 8 or getattr(self, name) % 8:
                raise UserError(
                    f"config.data.{name} is {getattr(self, name)}; give a multiple of 8"
                )
        for name in ("frames", "stride", "batch_size", "prefetch"):
            if getattr(self, name) < 1:
                raise UserError(f"config.data.{name} is {getattr(self, name)}; give at least 1")
        for name in ("margin", "workers", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"config.data.{name} is {getattr(self, name)}; give 0 or more")
        if len(self.zoom) != 2 or not 0 < self.zoom[0] <= self.zoom[1] <= 1:
            raise UserError(
                f"config.data.zoom is {self.zoom}; give a range within 0 to 1, such as (0.8, 1.0)"
            )
        for name in ("flip", "body_only"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"config.data.{name} is {getattr(self, name)}; give a probability, 0 to 1"
                )


def data_config(section: Mapping) -> DataConfig:
    """The `data` section of a config (a dictionary or a ConfigDict) -> DataConfig.

    Raises UserError for unknown keys and impossible values.
    """
    return from_dict(DataConfig, _plain(section), "config.data")


def _plain(value):
    if isinstance(value, Mapping) or hasattr(value, "to_dict"):
        return {key: _plain(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return tuple(_plain(one) for one in value)
    return value
