"""Where the videos of a collection are: four layouts, each a function of the names of its files.

folder       videos in any folders below DIR
meta-json    DIR is the JSON list of {"video_path", "kps_path"} that the PyTorch reproductions
             train from; their skeleton videos are not used, keypoints are estimated anew
ubc-fashion  train/*.mp4 and test/*.mp4 (UBC Fashion, Zablotskaia et al. 2019); test validates
tiktok       00001/images/0001.png, ... (TikTok, Jafarian and Park 2021), 30 frames a second
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from animate_jax.errors import UserError
from animate_jax.video.reading import natural_key
from data_prep.places import is_remote, join, list_files, read_bytes

LAYOUTS = ("folder", "meta-json", "ubc-fashion", "tiktok")
VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp"),
    *(".mts", ".m2ts", ".ts", ".ogv", ".gif"),
)
TIKTOK_FPS = 30.0
PICTURES = re.compile(r"(?:(.*)/)?([^/]+)/images/[^/]+\.(?:png|jpe?g)", re.IGNORECASE)


@dataclass(frozen=True)
class Video:
    """One video file, or directory of pictures with the rate `fps` they were taken at.

    source: its name in records and messages, a path relative to the collection, `printable`.
    split: "train" or "validation" where the collection says so. size: bytes, to notice that it was
    replaced.
    """

    source: str
    path: str
    fps: float | None = None
    split: str | None = None
    size: int = 0

    @property
    def key(self) -> str:
        """A name for files: readable, free of separators, and different for every source."""
        readable = re.sub(r"[^A-Za-z0-9]+", "_", os.path.splitext(self.source)[0]).strip("_")
        return f"{readable[-40:]}-{hashlib.sha256(self.source.encode()).hexdigest()[:8]}"


def printable(text: str) -> str:
    """`text` with escapes for what UTF-8 cannot hold: bytes of file names in another encoding."""
    return text.encode(errors="backslashreplace").decode()


def find_videos(
    place: str | os.PathLike, layout: str = "folder", *, without: str | os.PathLike | None = None
) -> list[Video]:
    """The videos of a collection in natural order (take2 before take10).

    `without` is a folder that is left out: the one that results go to. Raises UserError when there
    is no such place or it holds no video.
    """
    if layout not in LAYOUTS:
        raise UserError(f"there is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    if layout == "meta-json":
        videos = _from_meta_json(place)
    else:
        if not is_remote(place) and not Path(place).is_dir():
            kind = "is not a directory" if Path(place).exists() else "there is no such directory"
            raise UserError(f"{place}: {kind}; give the one that holds the videos")
        names = list_files(place)
        names = {n: size for n, size in names.items() if not re.search(r"(^|/)\.", n)}
        if without is not None and not is_remote(place) and not is_remote(without):
            out = Path(os.path.relpath(os.path.realpath(without), os.path.realpath(place)))
            if out == Path("."):
                raise UserError(f"{without}: is where the videos are; give --out another place")
            names = {n: size for n, size in names.items() if not Path(n).is_relative_to(out)}
        find = {"folder": _in_folders, "ubc-fashion": _in_ubc_fashion, "tiktok": _in_tiktok}
        videos = find[layout](place, names)
    if not videos:
        raise UserError(f"{place}: holds no videos in the layout {layout}; {_EXPECTED[layout]}")
    return videos


_EXPECTED = {
    "folder": f"expected files ending in {', '.join(VIDEO_SUFFIXES[:6])}, ...",
    "meta-json": 'expected [{"video_path": "a.mp4"}, ...]',
    "ubc-fashion": "expected train/*.mp4 and test/*.mp4",
    "tiktok": "expected 00001/images/0001.png, ...",
}


def _in_folders(place, names: Mapping[str, int]) -> list[Video]:
    chosen = [n for n in names if n.lower().endswith(VIDEO_SUFFIXES)]
    chosen.sort(key=natural_key)
    return [Video(printable(n), join(place, n), size=names[n]) for n in chosen]


def _in_ubc_fashion(place, names: Mapping[str, int]) -> list[Video]:
    splits = {"train": "train", "test": "validation"}
    chosen = [n for n in names if re.fullmatch(r"(train|test)/[^/]+\.mp4", n, re.IGNORECASE)]
    chosen.sort(key=natural_key)
    return [
        Video(printable(n), join(place, n), split=splits[n.split("/")[0].lower()], size=names[n])
        for n in chosen
    ]


def _in_tiktok(place, names: Mapping[str, int]) -> list[Video]:
    sizes = {}
    for name, size in names.items():
        if match := PICTURES.fullmatch(name):
            folder = "/".join(part for part in match.groups() if part)
            sizes[folder] = sizes.get(folder, 0) + size
    return [
        Video(
            printable(folder),
            join(place, folder, "images"),
            fps=TIKTOK_FPS,
            split=_tiktok_split(folder),
            size=sizes[folder],
        )
        for folder in sorted(sizes, key=natural_key)
    ]


def _tiktok_split(folder):
    """No training sees the videos that DisCo tests on, nor the one after; others go anywhere."""
    return "validation" if re.fullmatch("003(3[5-9]|40)", folder.rsplit("/", 1)[-1]) else None


def _from_meta_json(path) -> list[Video]:
    if not is_remote(path) and Path(path).is_dir():
        raise UserError(f"{path}: is a directory; for meta-json give the .json file itself")
    content = read_bytes(path)
    if content is None:
        raise UserError(f"{path}: there is no such file; give the .json file of the collection")
    try:
        entries = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); {_EXPECTED['meta-json']}") from error
    if not isinstance(entries, list):
        raise UserError(f"{path}: not a list; {_EXPECTED['meta-json']}")
    videos = []
    for number, entry in enumerate(entries):
        name = entry.get("video_path") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise UserError(f"{path}: entry {number} has no video_path; {_EXPECTED['meta-json']}")
        where, size = _locate(name, path)
        videos.append(Video(printable(name), where, size=size))
    return videos


def _locate(name, meta_json):
    """Where a named video is, beside the JSON file or in the working directory, and its bytes."""
    if is_remote(name):
        return name, 0
    if is_remote(meta_json):
        return join(os.fspath(meta_json).rsplit("/", 1)[0], name), 0
    beside = Path(meta_json).parent / name
    for candidate in (beside, Path(name)):
        if candidate.is_file():
            return str(candidate), candidate.stat().st_size
    return str(beside), 0
