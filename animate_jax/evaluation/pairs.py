"""What is generated and what it is compared with: pairs of a reference and a motion.

A pairs file is JSON: {"pairs": [{"name": ..., "reference": CLIP, "reference_frame": 0,
"driving": CLIP, "truth": CLIP, "first": 1, "stride": 1, "frames": 16}, ...]}. The character is that
of the reference frame; its motion is that of the driving clip's frames first, first + stride, ...;
the truth clip shows this character doing this in the frames of the same numbers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from animate_jax.errors import UserError
from animate_jax.evaluation.clips import PUPPETS, Entry


@dataclass(frozen=True)
class Pair:
    """Names of clips, and numbers of frames in them."""

    name: str
    reference: str
    driving: str
    truth: str
    frames: int
    reference_frame: int = 0
    first: int = 1
    stride: int = 1

    @property
    def numbers(self) -> range:
        """The frames of the driving clip, and of the truth."""
        return range(self.first, self.first + self.frames * self.stride, self.stride)


def own_pairs(clips: Mapping[str, Entry], frames: int | None = None, stride: int = 1) -> list[Pair]:
    """Every clip's first frame as reference for what follows in the same clip.

    frames: at most so many, by default all. The reference itself is not among them, unless the
    clip is that single frame.
    """
    return [_pair(name, name, name, clips, frames, stride) for name in clips]


def video_pairs(
    clips: Mapping[str, Entry], frames: int | None = None, stride: int = 1
) -> list[Pair]:
    """As `own_pairs`, but all clips of one filmed video have the first frame of its first clip as
    their reference, as the protocols have it of whole videos."""
    first = {}
    for clip in sorted(clips.values(), key=lambda clip: clip.name):
        first.setdefault(_video(clip), clip.name)
    return [
        _pair(first[_video(clip)], name, name, clips, frames, stride, name)
        for name, clip in clips.items()
    ]


def _video(clip):
    return clip.name if clip.source.startswith(PUPPETS) else clip.source


def cross_pairs(
    clips: Mapping[str, Entry], frames: int | None = None, stride: int = 1
) -> list[Pair]:
    """Puppets that perform the same motion drive each other: the truth is the reference's own clip.

    Raises UserError where no two clips share a motion; of filmed people nobody knows the truth.
    """
    puppets = [clip for clip in clips.values() if clip.source.startswith(PUPPETS)]
    pairs = []
    for _, group in groupby(sorted(puppets, key=lambda clip: clip.source), lambda c: c.source):
        names = [clip.name for clip in group]
        for own, other in zip(names, [*names[1:], names[0]]):
            if own != other:
                pairs.append(_pair(own, other, own, clips, frames, stride))
    if not pairs:
        raise UserError(
            "no two clips are known to show the same motion; draw some with"
            " `python -m data_prep puppets --pairs`, or name them in a --pairs-file"
        )
    return sorted(pairs, key=lambda pair: pair.name)


def _pair(reference, driving, truth, clips, frames, stride, name=None):
    length = min(clips[driving].frames, clips[truth].frames)
    first = min(1, length - 1) if reference == truth else 0
    count = (length - first - 1) // stride + 1
    name = name or (reference if reference == driving else f"{reference}, as {driving}")
    return Pair(name, reference, driving, truth, min(count, frames or count), 0, first, stride)


def read_pairs(path: str | Path, clips: Mapping[str, Entry]) -> list[Pair]:
    """The pairs of a file. Raises UserError for what is malformed or not among the clips."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); correct it") from error
    lines = value.get("pairs") if isinstance(value, dict) else None
    if not isinstance(lines, list) or not lines:
        raise UserError(f"{path}: has no list of pairs under 'pairs'; see docs/evaluation.md")
    pairs = []
    for number, line in enumerate(lines, 1):
        where = f"{path}: pair {number}"
        pair = _parse(line, where)
        for clip, last in (
            (pair.reference, pair.reference_frame),
            (pair.driving, pair.numbers[-1]),
            (pair.truth, pair.numbers[-1]),
        ):
            if clip not in clips:
                raise UserError(f"{where}: there is no clip {clip!r} in the data")
            if last >= clips[clip].frames:
                raise UserError(
                    f"{where}: {clip!r} has {clips[clip].frames} frames, not {last + 1}"
                )
        pairs.append(pair)
    if len({file_name(pair.name) for pair in pairs}) < len(pairs):
        raise UserError(f"{path}: two pairs have one name; give each its own")
    return pairs


def file_name(name: str) -> str:
    """A pair's name as that of a file, without a suffix."""
    return name.replace("/", "__")


def _parse(line, where):
    fields = {field.name: field for field in dataclasses.fields(Pair)}
    if not isinstance(line, dict):
        raise UserError(f"{where} is not an object; see docs/evaluation.md")
    for key, value in line.items():
        if key not in fields:
            raise UserError(f"{where}: has the unknown entry {key!r}; known: {', '.join(fields)}")
        kind = fields[key].type  # a string, by the import of annotations
        least = 1 if key in ("frames", "stride") else 0
        if type(value).__name__ != kind or (kind == "int" and value < least):
            raise UserError(f"{where}: {key} is {value!r}")
    missing = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and name not in line
    ]
    if missing:
        raise UserError(f"{where}: has no {missing[0]}")
    if not 0 < len(file_name(line["name"]).encode()) <= 200:
        raise UserError(f"{where}: the name is empty or longer than 200 bytes; it names files")
    return Pair(**line)
