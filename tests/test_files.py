"""Files and directories appear whole or not at all."""

from pathlib import Path

import pytest

from animate_jax.errors import UserError
from animate_jax.files import (
    cache_directory,
    check_kept,
    check_place,
    replacing,
    replacing_directory,
)
from animate_jax.video.writing import check_output


def tree(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    for text in ("first", "second"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert temporary.parent == path.parent and temporary != path
    assert tree(tmp_path) == {"deep/a.txt": "second"}
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "no" / "a", parents=False) as file:
        file.write_text("")
    assert not (tmp_path / "no").exists()


def test_a_directory_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "d"
    for name in ("first", "second"):
        with replacing_directory(path) as temporary:
            (temporary / name).write_text(name)
    assert tree(tmp_path) == {"deep/d/second": "second"}
    assert [entry.name for entry in path.parent.iterdir()] == ["d"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_one_and_nothing_else(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("old")
    with pytest.raises(error), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        raise error
    with pytest.raises(error), replacing_directory(tmp_path / "d") as temporary:
        (temporary / "a").write_text("new")
        raise error
    assert tree(tmp_path) == {"a.txt": "old", "d/a": "old"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.txt", "d"]


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("ANIMATE_JAX_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("ANIMATE_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_directory() == tmp_path / "shared" / "animate_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "animate_jax"


def test_a_name_as_long_as_names_may_be(tmp_path):
    path = tmp_path / f"{'踊' * 83}.mp4"  # 253 bytes
    for _ in range(2):
        with replacing(path) as temporary:
            temporary.write_text("whole")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_is_read_is_not_written_over(tmp_path):
    (tmp_path / "frames").mkdir()
    read = tmp_path / "frames" / "000000.png"
    read.touch()
    (tmp_path / "link").symlink_to(read)
    for output in (read, tmp_path / "frames", tmp_path / "link"):
        with pytest.raises(UserError, match="is, or holds, "):
            check_kept([output], [None, read])
    check_kept([tmp_path / "frames" / "out.mp4", tmp_path / "frame"], [None, read])


@pytest.mark.parametrize("path", ["gs://bucket/out.mp4", Path("gs://bucket/records")])
def test_buckets_are_no_place_for_what_goes_to_a_disk(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gcloud storage cp"):
        check_place(path)
    with pytest.raises(UserError, match="gcloud storage cp"):
        check_output(path)  # before the work
    assert not list(tmp_path.iterdir())
