"""Where files lie, and files and directories that appear whole or not at all.

Both helpers for the latter hand out a temporary name beside the target, so that taking the
target's place is a rename within one file system. Whatever ends the block early, an interrupt
included, removes the temporary and leaves the target as it was.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from etils import epath

from animate_jax.errors import UserError

_BUCKET = re.compile(r"(?:gs|s3):/")  # pathlib leaves one of two slashes
_LONGEST = 255  # bytes of a name, on nearly all file systems


def check_place(path: str | os.PathLike) -> None:
    """Raises UserError unless a file or directory could be created at `path`, on a disk."""
    if _BUCKET.match(os.fspath(path)):
        raise UserError(
            f"{path}: this goes to a disk only; write it here, then copy it there, for Google's"
            " buckets with: gcloud storage cp -r"
        )
    if len(os.fsencode(os.path.basename(os.path.abspath(path)))) > _LONGEST:
        raise UserError(f"{path}: the name is longer than {_LONGEST} bytes; choose a shorter one")
    ancestor = Path(os.path.abspath(path)).parent
    while not os.path.lexists(ancestor):
        ancestor = ancestor.parent
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
        raise UserError(
            f"{path}: {ancestor} is no directory that can be written to; choose another"
        )


def check_file(path: str | os.PathLike, overwrite: bool) -> None:
    """Raises UserError unless a file could be written at `path`, on a disk."""
    check_place(path)
    if Path(path).is_dir():
        raise UserError(f"{path}: is a directory; choose another name")
    if Path(path).exists() and not overwrite:
        raise UserError(f"{path}: already exists; choose another name or add --overwrite")


def check_kept(
    outputs: Iterable[str | os.PathLike], inputs: Iterable[str | os.PathLike | None]
) -> None:
    """Raises UserError for an output that would take the place of what is read, or of what holds
    it."""
    for path in filter(None, inputs):
        read = os.path.realpath(path)
        for output in outputs:
            place = os.path.realpath(output)
            if os.path.commonpath([place, read]) == place:
                raise UserError(f"{output}: is, or holds, {path}; choose another name")


@contextmanager
def replacing(path: str | os.PathLike, *, parents: bool = True) -> Iterator[Path]:
    """A name to write a file under; the file is at `path` once the block has succeeded.

    Missing parent directories are created unless `parents` is False; a file that was there is
    replaced. Raises OSError.
    """
    path = Path(path)
    temporary = _beside(path, "part")
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        # Otherwise a power failure could leave the new name with none of the contents.
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def replacing_directory(path: str | os.PathLike) -> Iterator[Path]:
    """A new empty directory that is at `path` once the block has succeeded.

    Missing parent directories are created; a directory that was there is replaced, so ask the user
    first. Raises OSError.
    """
    path = Path(os.path.realpath(path))  # a link stays, and what it points to is replaced
    temporary, old = _beside(path, "part"), _beside(path, "old")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(temporary, path)
        except BaseException:
            if old.exists():
                os.rename(old, path)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def cache_directory() -> Path:
    """$ANIMATE_JAX_CACHE, else $XDG_CACHE_HOME/animate_jax, else ~/.cache/animate_jax."""
    if own := os.environ.get("ANIMATE_JAX_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "animate_jax"


def directory_path(path: str | os.PathLike) -> epath.Path:
    """The absolute path that Orbax asks for; a bucket's is one already."""
    text = os.fspath(path)
    return epath.Path(text if "://" in text else os.path.abspath(os.path.expanduser(text)))


def make_directory(path: str | os.PathLike) -> epath.Path:
    """`directory_path`, made a directory unless it is one; raises UserError where it cannot be."""
    place = directory_path(path)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: no directory, and none can be made there ({reason})") from error
    return place


def is_local(path: str | os.PathLike) -> bool:
    """Whether a path is no bucket's, such as gs://bucket/folder."""
    return "://" not in os.fspath(path)


def _beside(path: Path, kind: str) -> Path:
    ending = f".{os.getpid()}.{kind}"
    room = _LONGEST - 1 - len(ending)
    name = path.name
    if len(os.fsencode(name)) > room:
        name = os.fsencode(name)[:room].decode(errors="ignore")
    return path.with_name(f".{name}{ending}")
