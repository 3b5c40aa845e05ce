"""On Apache Beam's own local runner; without apache_beam (the extra `beam`) there is no test."""

import pytest

beam = pytest.importorskip("apache_beam")

from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from apache_beam.io.filesystem import FileMetadata  # noqa: E402
from apache_beam.io.localfilesystem import LocalFileSystem  # noqa: E402
from PIL import Image  # noqa: E402

from animate_jax.video.reading import read_frames  # noqa: E402
from animate_jax.video.writing import write_video  # noqa: E402
from data_prep.__main__ import main  # noqa: E402
from data_prep.layouts import find_videos  # noqa: E402
from data_prep.places import delete, list_files, local_copy, read_bytes, write_bytes  # noqa: E402

CUT = ["--min-seconds", "0.5", "--size", "256", "--min-size", "100"]


class RemoteFileSystem(LocalFileSystem):
    """Stands for gs://: local files named remote:///path, and no directories."""

    @classmethod
    def scheme(cls):
        return "remote"

    def has_dirs(self):
        return False

    def _list(self, prefix):
        for path in Path(prefix.removeprefix("remote://")).rglob("*"):
            if path.is_file():
                yield FileMetadata(f"remote://{path}", path.stat().st_size)

    def _path_open(self, path, *rest, **more):
        path = path.removeprefix("remote://")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return super()._path_open(path, *rest, **more)

    def exists(self, path):
        return Path(path.removeprefix("remote://")).is_file()

    def delete(self, paths):
        super().delete([path.removeprefix("remote://") for path in paths])


@pytest.fixture(scope="module")
def collection(clips, tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for name, clip in (("one", "single/cam02"), ("two", "multi/cam04")):
        pictures = (Image.fromarray(f) for f in read_frames(clips[clip], stride=4, limit=12))
        frames = [np.asarray(picture.resize((144, 256))) for picture in pictures]
        write_video(root / f"{name}.mp4", frames, 15)
    (root / "broken.mp4").write_bytes(b"x" * 99)
    return root


def tree(out):
    paths = (path for path in sorted(Path(out).rglob("*")) if path.is_file())
    return {str(p.relative_to(out)): p.read_bytes() for p in paths if "work" not in p.parts}


def both_steps(videos, out, *running, work=()):
    running = [*map(str, work), *running]
    assert main(["clips", "--videos", str(videos), "--out", str(out), *CUT, *running]) == 0
    assert main(["poses", str(out), *running]) == 0
    return tree(out)


def test_beam_gives_the_same_bytes(collection, blazepose_models, tmp_path):
    local = both_steps(collection, tmp_path / "local", "--workers", "1")
    pipeline = both_steps(
        collection, tmp_path / "beam", "--runner", "beam", "--beam-args", "--direct_num_workers=1"
    )
    assert len(local) == 4 and pipeline == local
    remote = f"remote://{tmp_path}/bucket"
    for path in collection.iterdir():
        write_bytes(f"{remote}/videos/{path.name}", path.read_bytes())
    far = both_steps(
        f"{remote}/videos",
        tmp_path / "far",
        *("--runner", "beam"),
        work=("--work", f"{remote}/work"),
    )
    assert far == local
    assert not (tmp_path / "far" / "work").exists()
    names = set(list_files(f"{remote}/work"))
    assert {"settings.json", "videos.json"} < names and len(names) > 8


def test_remote_places(tmp_path):
    place = f"remote://{tmp_path}/place"
    assert list_files(place) == {} and read_bytes(f"{place}/a.mp4") is None
    for name in ("a.mp4", "deep/er/b.mp4"):
        write_bytes(f"{place}/{name}", name.encode())
    assert list_files(place) == {"a.mp4": 5, "deep/er/b.mp4": 13}
    assert read_bytes(f"{place}/a.mp4") == b"a.mp4"
    assert [v.path for v in find_videos(place)] == [f"{place}/a.mp4", f"{place}/deep/er/b.mp4"]
    with local_copy(f"{place}/a.mp4") as copy:
        assert copy.name == "a.mp4" and copy.read_bytes() == b"a.mp4"
    with local_copy(f"{place}/deep") as copy:
        assert (copy / "er" / "b.mp4").read_bytes() == b"deep/er/b.mp4"
    assert not copy.exists()
    delete(place)
    assert list_files(place) == {}
