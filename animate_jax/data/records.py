"""Reads the records that `python -m data_prep records` writes.

They are a tensorflow-datasets data set in array_record shards; TensorFlow itself is not needed, and
tensorflow-datasets is imported when the first record is read. Without this module:
`tfds.builder_from_directory(".../animate_clips/1.0.0").as_data_source("train")`.

array_record reads local files only. Records in a bucket are copied to this machine's disk first,
once: every process of a pod reads from all of them.
"""

import functools
import hashlib
import json
import os
import shutil
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

from etils import epath
from tqdm import tqdm

from animate_jax.errors import UserError, require_access
from animate_jax.files import cache_directory, is_local, replacing

NAME, VERSION = "animate_clips", "1.0.0"
INFO = "dataset_info.json"
METADATA = "metadata.jsonl"  # of a directory of clips, which records are made of
# Where a data set may lie below the path that a user gives: the version itself, its parents, the
# directory of a build, a directory of builds.
_PLACES = ("", "*", f"{NAME}/*", f"*/{NAME}/*", f"*/records/{NAME}/*")


class RecordSource:
    """Random access to the records of a split: `len(source)` and `source[i]`.

    A record is a dict: name str, clip bytes (an encoded mp4), keypoints float32 (frames, 134, 3) in
    pixels of the clip with scores in [0, 1], frames, width, height int, fps float, source and
    licence str. Shards are opened when they are first read; a pickled source opens its own.
    Raises IndexError outside the split and UserError for a damaged shard.
    """

    def __init__(self, directory: str, split: str, shards: dict[str, int], size: int):
        self.directory, self.split = directory, split
        self._shards, self._size = shards, size  # records by file name; bytes of all records
        self._length = sum(shards.values())
        self._opened = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:
        index = index.__index__()
        if not 0 <= index < self._length:
            raise IndexError(f"record {index} of {self._length}")
        try:
            if self._opened is None:
                self._opened = _open(self.directory, self.split)
            record = self._opened[index]
            # From a damaged shard, records of nothing but None may come: they have no texts.
            texts = {name: record[name].decode() for name in ("name", "source", "licence")}
        except ImportError as error:
            raise UserError(
                f"reading records needs a package ({error}); install:"
                " pip install 'animate-jax[data]'"
            ) from error
        except Exception as error:  # array_record and protobuf have no common one
            require_access(Path(self.directory, self._shard_of(index)), error)
            reason = " ".join(str(error).split())
            raise UserError(
                f"{Path(self.directory, self._shard_of(index))}: record {index} of {self.split}"
                f" cannot be read ({reason}); copy the file again, or write the records again"
            ) from error
        return {**record, **texts}

    def __getstate__(self):
        return {**self.__dict__, "_opened": None}

    def __repr__(self) -> str:
        # Grain compares it when a run goes on: the same records elsewhere are the same.
        return (
            f"RecordSource({NAME} {Path(self.directory).name}, split={self.split},"
            f" records={self._length}, bytes={self._size})"
        )

    def _shard_of(self, index):
        ends = accumulate(self._shards.values())
        return next(name for name, end in zip(self._shards, ends, strict=True) if index < end)


def open_records(path: str | os.PathLike, split: str) -> RecordSource:
    """The records of a split, "train" or "validation".

    `path` is the directory of the version, or one above it that holds exactly one such data set: a
    directory of records, of a build, of builds; local or in a bucket (`gs://...`), see
    `copied_records`. Raises UserError when there is none or more than one, when it has no such
    split, and when shards are missing.
    """
    directory, splits = _splits(path)
    if split not in splits:
        known = ", ".join(splits)
        raise UserError(f"{directory}: there is no split {split!r}; choose one of: {known}")
    lengths = [int(length) for length in splits[split]["shardLengths"]]
    shards = {shard_name(split, i, len(lengths)): n for i, n in enumerate(lengths)}
    missing = [name for name in shards if not (directory / name).is_file()]
    if missing:
        raise UserError(
            f"{directory / missing[0]}: this shard is missing, one of {len(missing)} that are;"
            " copy the data set again"
        )
    return RecordSource(str(directory), split, shards, int(splits[split].get("numBytes", 0)))


def record_splits(path: str | os.PathLike) -> list[str]:
    """The names of the splits that records have; `path` and errors as of `open_records`."""
    return list(_splits(path)[1])


def _splits(path):
    directory = _find(Path(path)) if is_local(path) else _copy_of(os.fspath(path))
    info = _read_info(directory / INFO)
    return directory, {entry["name"]: entry for entry in info.get("splits", [])}


@functools.cache  # validation opens the same ones again and again
def _copy_of(url):
    return copied_records(_find(epath.Path(url)))


def copied_records(directory: epath.Path) -> Path:
    """The copy of a bucket's data set in the cache directory, made now unless it is there.

    Files of the right size are not copied again, so an interrupted copy goes on. Raises UserError
    where the disk has no room for them.
    """
    names = [file.name for file in directory.iterdir()]
    names = sorted(n for n in names if n.startswith(f"{NAME}-") or n.endswith(".json"))
    sizes = {name: directory.joinpath(name).stat().length for name in names}
    # Records that were written anew under the same name are others.
    content = repr((os.fspath(directory), sizes, (directory / INFO).read_text()))
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    copy = cache_directory() / "records" / digest / VERSION
    missing = {
        name: size
        for name, size in sizes.items()
        if not (copy / name).is_file() or (copy / name).stat().st_size != size
    }
    if not missing:
        return copy
    copy.mkdir(parents=True, exist_ok=True)
    needed, free = sum(missing.values()), shutil.disk_usage(copy).free
    if needed > free:
        raise UserError(
            f"{directory}: {needed / 1e9:.1f} GB of records, but {copy} has {free / 1e9:.1f} GB"
            " left; set ANIMATE_JAX_CACHE to a larger disk, or mount the bucket and give that path"
        )
    with tqdm(total=needed, desc="copying records", unit="B", unit_scale=True) as bar:
        for name, size in missing.items():
            with replacing(copy / name) as temporary:
                (directory / name).copy(temporary)
            bar.update(size)
    return copy


def shard_name(split: str, index: int, count: int) -> str:
    """File name of one of a split's `count` shards, as tensorflow-datasets has it."""
    return f"{NAME}-{split}.array_record-{index:05d}-of-{count:05d}"


def holds_records(path: str | os.PathLike) -> bool:
    """Whether there are records, one set or more, where `open_records` looks for them."""
    return bool(_found(Path(path)))


def _found(path):
    return {
        info.parent.resolve() if is_local(path) else info.parent
        for place in _PLACES
        for info in path.glob(f"{place}/{INFO}" if place else INFO)
        if _read_info(info).get("name") == NAME
    }


def _find(path):
    if not path.is_dir():
        raise UserError(f"{path}: there is no such directory; check the path")
    found = _found(path)
    if not found:
        clips, out = "DIR", path if is_local(path) else "RECORDS, and copy them there"
        if (path / METADATA).exists():  # these are clips, of which records are made
            clips, out = path, "RECORDS"
        raise UserError(
            f"{path}: holds no records; write some with: python -m data_prep records"
            f" --clips {clips} --out {out}"
        )
    if len(found) > 1:
        names = ", ".join(map(str, sorted(found)))
        raise UserError(f"{path}: holds {len(found)} data sets ({names}); name one of them")
    return found.pop()


def _read_info(path):
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy the data set again") from error
    return info if isinstance(info, dict) else {}


def _allow_open_files(wanted: int = 65536):
    """Every shard that is read from stays open, and many systems allow a process 1024 files unless
    it asks for more."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = wanted if hard == unlimited else min(wanted, hard)
    if soft != unlimited and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open(directory, split):
    import tensorflow_datasets as tfds  # takes a second, and workers import it for themselves

    _allow_open_files()
    return tfds.builder_from_directory(directory).as_data_source(split)
