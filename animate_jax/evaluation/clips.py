"""The clips that are evaluated: records of a data set, or a clip directory, by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from animate_jax.data.clip import decode_frames
from animate_jax.data.crop import Crop, Cutter
from animate_jax.data.records import METADATA, holds_records, open_records, record_splits
from animate_jax.errors import UserError

PUPPETS = "puppets-"  # how the sources of drawn clips begin; those of one motion are the same


@dataclass(frozen=True)
class Entry:
    """A clip; `load` reads its record, as `animate_jax.data.records` describes it."""

    name: str
    frames: int
    width: int
    height: int
    source: str
    load: Callable[[], dict]


def open_clips(path: str | os.PathLike, split: str) -> dict[str, Entry]:
    """The clips of a split by name, sorted: of records, or of a directory with a metadata.jsonl.

    split: "train", "validation", or "all" of them; clips of a directory whose line names no split
    belong to both. A directory of `data_prep build` has both, and it is the records that know the
    splits. Raises UserError for what is neither, and where there is no clip.
    """
    directory = (Path(path) / METADATA).is_file() and not holds_records(path)
    entries = _directory_entries(path, split) if directory else _record_entries(path, split)
    if not entries:
        raise UserError(f"{path}: {split} holds no clips; choose another --split")
    return dict(sorted((entry.name, entry) for entry in entries))


def _record_entries(path, split):
    if split == "all":
        return [entry for one in record_splits(path) for entry in _record_entries(path, one)]
    source = open_records(path, split)

    def entry(number):
        record = source[number]
        sizes = (int(record[key]) for key in ("frames", "width", "height"))
        return Entry(record["name"], *sizes, record["source"], lambda: source[number])

    return [entry(number) for number in range(len(source))]


def _directory_entries(path, split):
    from data_prep.clip_directory import read_clips
    from data_prep.records import clip_record

    def entry(clip):
        sizes = clip.frames, clip.width, clip.height
        return Entry(clip.name, *sizes, clip.source, lambda: clip_record(clip.name, clip))

    return [entry(clip) for clip in read_clips(path) if split in ("all", clip.split or split)]


def centre_crop(picture: tuple[int, int], size: tuple[int, int]) -> Crop:
    """The largest part of a picture around its middle with the proportions of `size`.

    picture and size: (width, height); the part is rounded to even pixels.
    """
    scale = min(have / want for have, want in zip(picture, size))
    corners = []
    for have, want in zip(picture, size):
        length = min(2 * round(want * scale / 2), have - have % 2)
        first = 2 * round((have - length) / 4)
        corners.append((first, first + length))
    (x0, x1), (y0, y1) = corners
    return Crop((x0, y0, x1, y1), (0, 0, *size), size, flip=False)


def clip_frames(record: dict, numbers, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 (n, height, width, 3) and keypoints float32 (n, 134, 3) in their pixels.

    numbers: of the frames; they may repeat. size: (width, height); the middle of the clip's picture
    is seen, see `centre_crop`. Raises UserError, naming the record, for a damaged clip.
    """
    numbers = np.asarray(numbers)
    crop = centre_crop((int(record["width"]), int(record["height"])), size)
    frames = np.empty((len(numbers), size[1], size[0], 3), np.uint8)
    cutter = Cutter(crop)
    try:
        for number, frame in decode_frames(record["clip"], np.unique(numbers).tolist()):
            places = np.flatnonzero(numbers == number)
            cutter.draw(frame, frames[places[0]])
            frames[places[1:]] = frames[places[0]]
    except UserError as error:
        raise UserError(f"record {record['name']}: {error}; write the records again") from error
    return frames, crop.points(record["keypoints"][numbers])


def clip_masks(record: dict, numbers, size: tuple[int, int]) -> np.ndarray | None:
    """The character's pixels in what `clip_frames` gives, bool; None where nobody knows them.

    They are known of puppets, which can be drawn again.
    """
    if not record["source"].startswith(PUPPETS):
        return None
    from data_prep.puppets.masks import puppet_masks

    masks = puppet_masks(record, numbers)
    if masks is None:
        return None
    box = centre_crop((int(record["width"]), int(record["height"])), size).source
    return np.stack(
        [
            np.asarray(Image.fromarray(mask).convert("L").resize(size, Image.BILINEAR, box)) > 127
            for mask in masks
        ]
    )
