"""A clip directory: clips/, keypoints/ and metadata.jsonl with one JSON object per clip."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from animate_jax.data.records import METADATA
from animate_jax.errors import UserError

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Clip:
    """What a line of metadata.jsonl says of a clip.

    name: the file's below clips/, without suffix. split: "train" or "validation" where the line
    asks for one, else None.
    """

    directory: Path
    name: str
    clip: str
    keypoints: str
    frames: int
    fps: float
    width: int
    height: int
    source: str
    licence: str
    split: str | None = None

    @property
    def path(self) -> Path:
        return self.directory / self.clip

    @property
    def keypoints_path(self) -> Path:
        return self.directory / self.keypoints

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


def read_clips(directory: str | os.PathLike) -> list[Clip]:
    """The clips of a directory, in the order of metadata.jsonl; may be none.

    Raises UserError, naming the line, where the file or a field is missing or malformed, where a
    path leads out of the directory and where two clips have one name.
    """
    directory = Path(directory)
    path = directory / METADATA
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file; {directory} should be a clip directory, as"
            " `python -m data_prep puppets` and `build` write"
        )
    clips: dict[str, Clip] = {}
    for number, line in enumerate(read_json_lines(path), 1):
        try:
            clip = _clip(directory, line)
        except (KeyError, ValueError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}: line {number} {what}; correct it") from error
        if clip.name in clips:
            raise UserError(f"{path}: line {number} names {clip.clip} again; keep one of them")
        clips[clip.name] = clip
    return list(clips.values())


def read_json_lines(path: str | os.PathLike) -> list[dict]:
    """The JSON objects of a file with one a line; raises UserError for anything else."""
    path, objects = Path(path), []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); write it again") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error}); correct it") from error
        if not isinstance(value, dict):
            raise UserError(f"{path}: line {number} is not a JSON object; correct it")
        objects.append(value)
    return objects


def write_json_lines(path: str | os.PathLike, objects: list[dict]) -> None:
    """One JSON object a line, readable by read_json_lines. Raises OSError."""
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in objects)
    Path(path).write_text(text, encoding="utf-8")


def _clip(directory, line):
    clip, keypoints = _relative(line, "clip"), _relative(line, "keypoints")
    path = PurePosixPath(clip)
    name = path.relative_to("clips") if path.parts[0] == "clips" else path
    split = line.get("split")
    if split not in (None, *SPLITS):
        raise ValueError(f"has the split {split!r}, known are {' and '.join(SPLITS)}")
    return Clip(
        directory,
        str(name.with_suffix("")),
        clip,
        keypoints,
        frames=_whole(line, "frames"),
        fps=_rate(line),
        width=_whole(line, "width"),
        height=_whole(line, "height"),
        source=_text(line, "source"),
        licence=_text(line, "licence"),
        split=split,
    )


def _text(line, key):
    value = line[key]
    if not isinstance(value, str) or not value:
        raise ValueError(f"has {value!r} for {key}, which should be text")
    return value


def _relative(line, key):
    value = _text(line, key)
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"has the {key} {value!r}, which is not a file in this directory")
    return value


def _whole(line, key):
    value = line[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"has {value!r} for {key}, which should be a whole number above 0")
    return value


def _rate(line):
    value = line["fps"]
    if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"has {value!r} for fps, which should be a number above 0")
    return float(value)
