"""Files that may lie on this machine or, named like gs://bucket/folder, where Apache Beam reads.

Only what the preparation of data needs: list, read, write whole, and have a local copy for a
decoder that wants a file.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from animate_jax.errors import UserError
from animate_jax.files import replacing

RESULT = "result.json"  # a job is done when its folder holds this


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` is a URL such as gs://bucket/folder."""
    return "://" in os.fspath(path)


def join(place: str | os.PathLike, *names: str) -> str:
    """The path of something inside `place`, which may be remote."""
    return "/".join([os.fspath(place).rstrip("/") or "/", *names])


def list_files(place: str | os.PathLike) -> dict[str, int]:
    """Relative names, with "/", of all files below `place` -> bytes; {} when there is no place.

    Linked directories are followed, each one once.
    """
    if is_remote(place):
        start = os.fspath(place).rstrip("/") + "/"
        (match,) = _file_systems().match([f"{start}**"])
        return {found.path[len(start) :]: found.size_in_bytes for found in match.metadata_list}
    found, visited = {}, set()
    for directory, folders, names in os.walk(place, followlinks=True):
        visited.add(os.path.realpath(directory))
        inside = {name: os.path.realpath(os.path.join(directory, name)) for name in folders}
        folders[:] = [name for name in folders if inside[name] not in visited]
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isfile(path):
                relative = Path(os.path.relpath(path, place)).as_posix()
                found[relative] = os.path.getsize(path)
    return found


def read_bytes(path: str | os.PathLike) -> bytes | None:
    """What a file holds; None when there is no such file."""
    if is_remote(path):
        systems = _file_systems()
        if not systems.exists(os.fspath(path)):
            return None
        with systems.open(os.fspath(path)) as file:
            return file.read()
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file that appears whole or not at all, and replaces what was there."""
    if is_remote(path):
        with _file_systems().create(os.fspath(path)) as file:
            file.write(content)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def store(place: str | os.PathLike, files: Mapping[str, bytes]) -> None:
    """Writes a job's files into `place`, RESULT last: with it the job is done."""
    for name in sorted(files, key=lambda name: (name == RESULT, name)):
        write_bytes(join(place, name), files[name])


def delete(place: str | os.PathLike) -> None:
    """Removes a file, or a folder with all it holds, if it is there."""
    if is_remote(place):
        paths = [join(place, name) for name in list_files(place)]
        if _file_systems().exists(os.fspath(place)):
            paths.append(os.fspath(place))
        if paths:
            _file_systems().delete(paths)
    elif os.path.isdir(place) and not os.path.islink(place):
        shutil.rmtree(place)
    elif os.path.lexists(place):
        os.unlink(place)


@contextmanager
def local_copy(path: str | os.PathLike) -> Iterator[Path]:
    """The file, or the folder of files, at `path` as something on this machine."""
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / os.fspath(path).rsplit("/", 1)[-1]
        content = read_bytes(path)
        if content is not None:
            copy.write_bytes(content)
        else:
            for name in list_files(path):
                write_bytes(copy / name, read_bytes(join(path, name)))
        yield copy


def _file_systems():
    try:
        from apache_beam.io.filesystems import FileSystems
    except ImportError as error:
        raise UserError(
            "places such as gs:// need Apache Beam; run: pip install 'animate-jax[beam]'"
        ) from error
    return FileSystems
