"""Two folders of videos with the same names: what somebody generated, and the truth."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np

from animate_jax.errors import UserError
from animate_jax.inference.preprocessing import resize
from animate_jax.video.reading import (
    PICTURE_SUFFIXES,
    natural_key,
    read_frames,
    tells_colours,
)

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".mov", ".mkv", ".avi", ".m4v")


class LengthsDiffer(UserError):
    """Of a video and its truth, which so are no pair."""


def match_folders(
    predicted: str | os.PathLike, truth: str | os.PathLike
) -> list[tuple[str, Path, Path]]:
    """(name, predicted, truth) of every video, in natural order; names are without suffix.

    A video is a file, or a folder of pictures; a folder that holds pictures itself is one video.
    Raises UserError where one folder has a name that the other lacks, and where there is none.
    """
    places = Path(predicted), Path(truth)
    found = [_videos(place) for place in places]
    if all(list(videos) == [""] for videos in found):
        return [(places[1].resolve().name, *places)]
    for index, (own, other) in enumerate((found, found[::-1])):
        lacking = own.keys() - other.keys()
        if lacking:
            raise UserError(
                f"{places[1 - index]}: has no video {min(lacking)!r}, {places[index]} has one;"
                " give both folders the same names"
            )
    names = sorted(found[0], key=natural_key)
    return [(name, found[0][name], found[1][name]) for name in names]


def _videos(place):
    if not place.is_dir():
        raise UserError(f"{place}: there is no such folder; give one with videos")
    videos, pictures = {}, []
    for path in place.iterdir():
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            continue
        if path.is_file() and suffix in PICTURE_SUFFIXES:
            pictures.append(path)
        if path.is_dir() or suffix in VIDEO_SUFFIXES:
            name = path.name if path.is_dir() else path.stem
            if name in videos:
                raise UserError(f"{place}: holds two videos {name!r}; remove one of them")
            videos[name] = path
    if pictures and videos:
        raise UserError(
            f"{place}: holds the picture {min(pictures).name} beside videos; is it a folder of"
            " videos, or one video's pictures? remove what does not belong"
        )
    if pictures:
        return {"": place}
    if not videos:
        raise UserError(f"{place}: holds neither videos nor pictures")
    return videos


def read_pair(
    predicted: Path,
    truth: Path,
    *,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    stride: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Both videos as uint8 (frames, height, width, 3) of one size.

    size: (width, height) that both are stretched to; by default the truth's. Raises LengthsDiffer
    where one is longer than the other, unless both have the `frames` that are asked for.
    """
    clips = []
    # Who writes results without a word on their colours has read the truth's likewise.
    from_rgb = not tells_colours(predicted)
    for path in (truth, predicted):
        read = read_frames(path, stride=stride, limit=frames, from_rgb=from_rgb)
        first = next(read)
        size = size or first.shape[1::-1]
        pictures = itertools.chain([first], read)
        clips.append(np.stack([resize(picture, *size, "lanczos") for picture in pictures]))
    truth_clip, predicted_clip = clips
    if len(truth_clip) != len(predicted_clip):
        gif = ".gif" in (predicted.suffix.lower(), truth.suffix.lower())
        raise LengthsDiffer(
            f"{predicted}: has {len(predicted_clip)} frames, but {truth} has {len(truth_clip)};"
            " give --frames, the number to compare"
            + ", or no GIFs, which lose a last frame that equals the one before"
            * gif
        )
    return predicted_clip, truth_clip
