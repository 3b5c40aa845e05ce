"""Clip directories -> records: checked, without near duplicates, split by source video.

OUT/animate_clips/1.0.0   the data set (animate_jax.data.records.open_records reads it)
OUT/splits.jsonl          name, source and split of every record
OUT/drops.jsonl           source, clip, reason and detail of every clip that was left out
"""

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from animate_jax.data.records import NAME
from animate_jax.errors import UserError, UserNote
from animate_jax.files import check_place, replacing_directory
from animate_jax.pose.keypoints import POINTS, load_keypoints
from animate_jax.video.reading import read_frames
from data_prep.clip_directory import Clip, read_clips, write_json_lines
from data_prep.duplicates import Thumbnails, near_duplicates, thumbnails
from data_prep.shards import SHARD_BYTES, Record, write_shards
from data_prep.split import TRAIN, VALIDATION, assign_splits

SPLITS_FILE, DROPS_FILE = "splits.jsonl", "drops.jsonl"
NEAR_DUPLICATE = "near duplicate"


@dataclass(frozen=True)
class Written:
    """How many records each split has, and what was dropped: source, clip, reason and detail."""

    train: int
    validation: int
    drops: list[dict]


def check_share(validation: float) -> None:
    if not 0 <= validation < 1:
        raise UserError(f"a share of {validation} for validation; give one from 0 to below 1")


def write_records(
    clips: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    validation: float = 0.1,
    seed: int = 0,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = True,
) -> Written:
    """Writes the clips of one or more clip directories into the directory `out`.

    validation: about this share of the sources, below 1, is kept from training; the choice depends
    on the seed. The same clips give the same bytes. `out` appears whole or not at all. Raises
    UserError where `out` exists (unless `overwrite`, which replaces nothing but earlier records)
    and where a clip does not fit its metadata or its keypoints.
    """
    check_share(validation)
    directories = [clips] if isinstance(clips, str | os.PathLike) else list(clips)
    out = Path(out)
    check_place(out)
    _check_target(out, overwrite)
    named = _named([Path(directory) for directory in directories])
    if not named:
        raise UserError(f"{', '.join(map(str, directories))}: no clips, so nothing to write")
    names, entries = list(named), list(named.values())
    summaries = _examine(entries, progress)
    repeats = near_duplicates(summaries, progress=progress)
    drops = [
        {
            "source": entries[index].source,
            "clip": names[index],
            "reason": NEAR_DUPLICATE,
            "detail": f"of {names[first]}",
        }
        for index, first in sorted(repeats.items())
    ]
    kept = [index for index in range(len(entries)) if index not in repeats]
    splits = assign_splits(
        [entries[index].source for index in kept],
        validation=validation,
        seed=seed,
        fixed=_fixed_splits(entries[index] for index in kept),
    )
    records = {TRAIN: [], VALIDATION: []}
    for index in kept:
        records[splits[entries[index].source]].append(_record(names[index], entries[index]))
    if validation > 0 and not records[VALIDATION]:
        warnings.warn(
            UserNote("all clips come from one source, so there is nothing to validate on"),
            stacklevel=2,
        )
    lines = [
        {"name": names[i], "source": entries[i].source, "split": splits[entries[i].source]}
        for i in kept
    ]
    licence = "; ".join(sorted({entries[index].licence for index in kept}))
    bar = tqdm(total=len(kept), desc="records", unit="clip", disable=not progress)
    try:
        with bar, replacing_directory(out) as directory:
            write_shards(
                directory, records, shard_bytes=shard_bytes, licence=licence, written=bar.update
            )
            write_json_lines(directory / SPLITS_FILE, lines)
            write_json_lines(directory / DROPS_FILE, drops)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    return Written(len(records[TRAIN]), len(records[VALIDATION]), drops)


def _check_target(out, overwrite):
    if out.is_dir():
        present = {entry.name for entry in out.iterdir()} - {".DS_Store"}  # by macOS, anywhere
        if present and not overwrite:
            raise UserError(f"{out}: exists; choose another directory or add --overwrite")
        if not present <= {NAME, SPLITS_FILE, DROPS_FILE}:
            raise UserError(f"{out}: holds other files than records; choose another directory")
    elif out.exists():
        raise UserError(f"{out}: is a file; choose another name")


def _named(directories) -> dict[str, Clip]:
    """Clips by name; where there are several directories, theirs come before it."""
    if len(directories) == 1:
        return {clip.name: clip for clip in read_clips(directories[0])}
    labels: dict[str, Path] = {}
    for directory in directories:
        name = label = directory.resolve().name
        number = 2
        while label in labels:
            label, number = f"{name}-{number}", number + 1
        labels[label] = directory
    return {
        f"{label}/{clip.name}": clip
        for label, directory in labels.items()
        for clip in read_clips(directory)
    }


def _examine(entries: Sequence[Clip], progress: bool) -> list[Thumbnails]:
    """Decodes every clip, several at a time; raises UserError for the first that is wrong."""
    # NumPy files are read by this thread alone: their headers go through `ast`, which before
    # Python 3.11.8 fails at random where several threads use it.
    for clip in entries:
        check_points(clip)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(check_frames, entries)
        bar = tqdm(results, desc="checking", total=len(entries), unit="clip", disable=not progress)
        try:
            return list(bar)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def check_points(clip: Clip) -> None:
    """Raises UserError unless a clip's keypoints are valid and fit its metadata."""
    keypoints = load_keypoints(clip.keypoints_path)
    said = {
        "frames": (len(keypoints.points), clip.frames),
        "width": (keypoints.width, clip.width),
        "height": (keypoints.height, clip.height),
        "fps": (keypoints.fps, clip.fps),
    }
    for what, (there, expected) in said.items():
        if abs(there - expected) > 1e-3 * expected:
            raise UserError(
                f"{clip.keypoints_path}: {what} {there:g}, but the metadata of the clip says"
                f" {expected:g}; estimate its poses again"
            )


def check_frames(clip: Clip) -> Thumbnails:
    """Thumbnails of a clip; raises UserError unless all its frames can be read, and are so many
    and so large as its metadata says."""
    result = thumbnails(_sized(clip), clip.fps)
    if result.frames != clip.frames:
        raise UserError(
            f"{clip.path}: {result.frames} frames can be read, but its metadata says"
            f" {clip.frames}; write the clip again"
        )
    return result


def _sized(clip):
    for frame in read_frames(clip.path):
        height, width = frame.shape[:2]
        if (width, height) != (clip.width, clip.height):
            raise UserError(
                f"{clip.path}: {width}x{height} pixels, but its metadata says"
                f" {clip.width}x{clip.height}; write the clip again"
            )
        yield frame


def _fixed_splits(entries: Iterable[Clip]) -> dict[str, str]:
    fixed: dict[str, str] = {}
    for clip in entries:
        if clip.split is not None and fixed.setdefault(clip.source, clip.split) != clip.split:
            raise UserError(
                f"{clip.path}: its metadata asks for {clip.split}, but other clips of the source"
                f" {clip.source} are for {fixed[clip.source]}; give a source one split"
            )
    return fixed


def _record(name: str, clip: Clip) -> Record:
    size = clip.path.stat().st_size + clip.frames * POINTS * 3 * 4
    return Record(name, size, lambda: clip_record(name, clip))


def clip_record(name: str, clip: Clip) -> dict:
    """A clip as its record, see `animate_jax.data.records`."""
    return {
        "name": name,
        "clip": clip.path.read_bytes(),
        "keypoints": load_keypoints(clip.keypoints_path).points,
        "frames": clip.frames,
        "width": clip.width,
        "height": clip.height,
        "fps": clip.fps,
        "source": clip.source,
        "licence": clip.licence,
    }
