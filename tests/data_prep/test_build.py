"""Whole builds, of real clips made small and of what people leave in such folders."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from animate_jax.errors import UserError
from animate_jax.pose.keypoints import load_keypoints
from animate_jax.video.reading import read_frames
from animate_jax.video.writing import write_video
from data_prep import runners
from data_prep.__main__ import main
from data_prep.build import open_build

CUT = ["--min-seconds", "0.5", "--size", "256", "--min-size", "100", "--licence", "BSD-3-Clause"]
ROOT = Path(__file__).parents[2]


def small(path, *, limit, stride=4):
    pictures = (Image.fromarray(f) for f in read_frames(path, stride=stride, limit=limit))
    return [np.asarray(picture.resize((144, 256), Image.Resampling.BOX)) for picture in pictures]


@pytest.fixture(scope="module")
def collection(clips, tmp_path_factory):
    """One person; two people and then one after a cut; and six files that give nothing."""
    root = tmp_path_factory.mktemp("my vidéos")
    (root / "sub dir").mkdir()
    one, two = small(clips["single/cam02"], limit=20), small(clips["multi/cam04"], limit=16)
    write_video(root / "one person.mp4", one, 15)
    write_video(root / "sub dir" / "zwei Lüt.mp4", [*two, *one[::-1]], 15)
    write_video(root / "still.mp4", one[:1] * 15, 15)
    write_video(root / "short.mp4", one[:5], 15)
    write_video(root / "tiny.mp4", [frame[:90, :90] for frame in one[:3]], 15)
    (root / "broken.mp4").write_bytes((root / "one person.mp4").read_bytes()[:400])
    (root / "empty.mov").write_bytes(b"")
    Image.fromarray(one[0]).save(root / "photo.png")
    return root


def tree(out):
    """Every file that is not private -> its bytes."""
    paths = (path for path in sorted(Path(out).rglob("*")) if path.is_file())
    relative = ((path.relative_to(out), path) for path in paths)
    return {str(name): path.read_bytes() for name, path in relative if name.parts[0] != "work"}


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def built(collection, blazepose_models, tmp_path_factory):
    """The two steps in one process; nothing is interrupted."""
    out = tmp_path_factory.mktemp("built") / "out"
    assert run("clips", "--videos", collection, "--out", out, *CUT, "--workers", 1) == 0
    assert run("poses", out, "--workers", 1) == 0
    return out


def test_what_is_kept_and_what_is_dropped(built, collection):
    kept = lines(built / "metadata.jsonl")
    assert [(line["source"], line["frames"], line["start"]) for line in kept] == [
        ("one person.mp4", 20, 0.0),
        ("sub dir/zwei Lüt.mp4", 20, 1.067),
    ]
    for line in kept:
        assert (line["width"], line["height"], line["fps"]) == (144, 256, 15.0)
        assert line["licence"] == "BSD-3-Clause" and "split" not in line
        assert line["person"] == 1.0 and line["confident"] > 0.8
        frames = list(read_frames(built / line["clip"]))
        keypoints = load_keypoints(built / line["keypoints"])
        assert len(frames) == len(keypoints.points) == 20
        assert frames[0].shape == (256, 144, 3)
        assert (keypoints.width, keypoints.height, keypoints.fps) == (144, 256, 15.0)
    # The second clip is the first one backwards, up to what encoding it twice has changed; its
    # left and right need not agree, its neck does.
    there, back = (load_keypoints(built / line["keypoints"]).points[:, 1, :2] for line in kept)
    assert np.abs(there - back[::-1]).max() < 4 < np.abs(there - back).max()
    drops = lines(built / "drops.jsonl")
    assert [(drop["source"], drop["reason"], drop["scene"]) for drop in drops] == [
        ("broken.mp4", "unreadable", None),
        ("empty.mov", "unreadable", None),
        ("short.mp4", "too short", [0.0, 0.333]),
        ("still.mp4", "static", [0.0, 1.0]),
        ("sub dir/zwei Lüt.mp4", "several people", [0.0, 1.067]),
        ("tiny.mp4", "too small", None),
    ]
    assert all(drop["detail"] and str(collection) not in drop["detail"] for drop in drops)
    assert drops[4]["clip"].startswith("sub_dir_zwei_L_t-") and drops[0]["clip"] is None
    listed = {line[kind] for line in kept for kind in ("clip", "keypoints")}
    assert set(tree(built)) == listed | {"metadata.jsonl", "drops.jsonl", "notes.jsonl"}


def test_the_step_clips_alone(collection, tmp_path):
    assert run("clips", "--videos", collection, "--out", tmp_path, *CUT, "--workers", 1) == 0
    kept = lines(tmp_path / "metadata.jsonl")
    assert [line["frames"] for line in kept] == [20, 16, 20]
    assert not any("keypoints" in line for line in kept)
    names = {line["clip"] for line in kept}
    assert set(tree(tmp_path)) == names | {"metadata.jsonl", "drops.jsonl", "notes.jsonl"}


def test_build_is_the_steps_in_order(built, collection, tmp_path, capsys):
    arguments = "build", "--videos", collection, "--out", tmp_path / "out", *CUT, "--workers", 2
    assert run(*arguments) == 0
    assert "1 train, 1 validation" in capsys.readouterr().out
    whole = tree(tmp_path / "out")
    own = {name: content for name, content in whole.items() if name in tree(built)}
    assert own == tree(built)
    rest = set(whole) - set(own)
    assert "report.html" in rest and len(rest) > 4
    assert {name.split("/")[0] for name in rest} == {"records", "report.html"}
    assert run(*arguments) == 0
    assert tree(tmp_path / "out") == whole


def test_interrupted_and_continued(built, collection, tmp_path, monkeypatch, capsys):
    """Interrupted in both steps while a job wrote its files; continued by more workers."""
    stored = []

    def interrupt(place, files):
        stored.append(place)
        if len(stored) in (3, 9):
            half = {name: content[:20] for name, content in files.items() if name != "result.json"}
            real(place, {"garbage": b"", **half})
            raise KeyboardInterrupt
        return real(place, files)

    real = runners.store
    monkeypatch.setattr(runners, "store", interrupt)
    clips = "clips", "--videos", collection, "--out", tmp_path / "out", *CUT
    assert run(*clips, "--workers", 1) == 130
    assert run("poses", tmp_path / "out") == 2
    assert "5 of 7 videos are not cut into clips yet" in capsys.readouterr().err
    assert run(*clips, "--workers", 1) == 0
    assert len(stored) == 3 + 5  # what was finished is not done again
    assert run("poses", tmp_path / "out", "--workers", 1) == 130
    monkeypatch.undo()
    assert run("poses", tmp_path / "out", "--workers", 2) == 0
    assert tree(tmp_path / "out") == tree(built)


def test_killed_and_continued(built, collection, tmp_path, media_cache):
    """A real process with real workers, killed as soon as it has finished a video."""
    out = tmp_path / "out"
    arguments = ["clips", "--videos", str(collection), "--out", str(out), *CUT, "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("work/clips/*/result.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "metadata.jsonl").exists()
    assert run(*arguments) == 0
    assert run("poses", out) == 0
    assert tree(out) == tree(built)


def test_what_a_killed_build_left_is_removed(tmp_path):
    """And what a running one writes, or the system put there, is left alone."""
    out = tmp_path / "out"
    work = Path(open_build(out))

    def leave():
        for name in (".records.99999999.part", ".records.99999999.old", f".records.{alive}.part"):
            (out / name / "animate_clips").mkdir(parents=True, exist_ok=True)
        killed = f".metadata.jsonl.{os.getpid()}.part", ".report.html.99999999.part"
        for name in (*killed, ".DS_Store", "work/settings.json", "work/.DS_Store", *written):
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text("{}")

    def names(place):
        return {path.name for path in place.iterdir()}

    alive = os.getppid()
    written = "metadata.jsonl", "clips/a.mp4", "work/.videos.json.99999999.part"
    leave()
    kept = {".DS_Store", f".records.{alive}.part", "work"}
    open_build(out)
    assert names(out) == kept | {"metadata.jsonl", "clips"}
    leave()
    open_build(out, overwrite=True)
    assert names(out) == kept and names(work) == {".DS_Store"}
    (out / ".records.99999999.part").mkdir()
    with pytest.raises(UserError, match="no work of this command"):
        open_build(out)


def test_finished_work_is_not_done_again(built, collection, monkeypatch):
    before = tree(built)
    monkeypatch.setattr(runners, "store", lambda *job: pytest.fail("a job was done"))
    assert run("clips", "--videos", collection, "--out", built, *CUT) == 0
    assert run("poses", built) == 0
    assert tree(built) == before


def test_other_settings_are_refused_until_overwritten(collection, tmp_path, capsys):
    clips = "clips", "--videos", collection / "sub dir", "--out", tmp_path / "out", "--workers", 1
    assert run(*clips, *CUT) == 0
    before = tree(tmp_path / "out")
    assert run(*clips, *CUT, "--max-fps", 5, "--size", 128) == 2
    error = capsys.readouterr().err
    assert "--size was 256 and is 128, --max-fps was 30.0 and is 5.0" in error
    assert "--overwrite" in error
    assert tree(tmp_path / "out") == before
    assert run(*clips, *CUT, "--max-fps", 5, "--overwrite") == 0
    assert {line["fps"] for line in lines(tmp_path / "out" / "metadata.jsonl")} == {5.0}
    # Another licence is no other clip.
    assert run(*clips, *CUT, "--max-fps", 5, "--licence", "CC0-1.0") == 0
    assert {line["licence"] for line in lines(tmp_path / "out" / "metadata.jsonl")} == {"CC0-1.0"}


def test_videos_that_come_go_and_change(built, collection, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("one person.mp4", "still.mp4"):
        (videos / name).write_bytes((collection / name).read_bytes())
    clips = "clips", "--videos", videos, "--out", tmp_path / "out", *CUT, "--workers", 1
    assert run(*clips) == 0 and run("poses", tmp_path / "out") == 0
    (line,) = lines(tmp_path / "out" / "metadata.jsonl")
    assert line == lines(built / "metadata.jsonl")[0]
    # The video is replaced by the one with two people, and the other taken away.
    (videos / "still.mp4").unlink()
    film = collection / "sub dir" / "zwei Lüt.mp4"
    (videos / "one person.mp4").write_bytes(film.read_bytes())
    assert run(*clips) == 0 and run("poses", tmp_path / "out") == 0
    (line,) = lines(tmp_path / "out" / "metadata.jsonl")
    assert (line["source"], line["start"]) == ("one person.mp4", 1.067)
    (drop,) = lines(tmp_path / "out" / "drops.jsonl")
    assert drop["reason"] == "several people"


def test_directories_that_are_not_ours(collection, tmp_path, capsys):
    def refused(out, *more):
        assert run("clips", "--videos", collection, "--out", out, *CUT, *more) == 2
        return capsys.readouterr().err

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("years of work")
    assert "holds thesis.tex" in refused(tmp_path / "notes", "--overwrite")
    (tmp_path / "puppets" / "clips").mkdir(parents=True)
    assert "no work of this command" in refused(tmp_path / "puppets", "--overwrite")
    assert "is a file" in refused(tmp_path / "notes" / "thesis.tex")
    assert (tmp_path / "notes" / "thesis.tex").read_text() == "years of work"
    assert run("poses", tmp_path / "gone") == 2
    assert "run the step clips" in capsys.readouterr().err


def test_bad_values_are_told_before_the_work(collection, tmp_path, capsys):
    arguments = "build", "--videos", collection, "--out", tmp_path / "out", *CUT
    assert run(*arguments, "--validation", 2) == 2
    assert "a share of 2.0" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run(*arguments, "--work", tmp_path / "file") == 2
    assert "is a file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_usable_is_an_error_with_the_reasons(collection, tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("broken.mp4", "empty.mov", "still.mp4"):
        (videos / name).write_bytes((collection / name).read_bytes())
    assert run("clips", "--videos", videos, "--out", tmp_path / "out", *CUT) == 2
    error = capsys.readouterr().err
    assert "no usable clip is left; dropped: 1 static, 2 unreadable" in error
    assert len(lines(tmp_path / "out" / "drops.jsonl")) == 3
    assert run("clips", "--videos", tmp_path / "none", "--out", tmp_path / "out2", *CUT) == 2
    assert not (tmp_path / "out2").exists()


def test_meta_json_names_lead_nowhere_else(collection, tmp_path):
    """Names with dots, absolute ones and one listed twice write into DIR only."""
    name = "../" * 8 + "../evil.mp4"
    good = str(collection / "one person.mp4")
    entries = [{"video_path": path, "kps_path": ""} for path in (name, good, good)]
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    (place / "meta.json").write_text(json.dumps(entries))
    arguments = "--videos", place / "meta.json", "--layout", "meta-json", "--out", place / "out"
    assert run("clips", *arguments, *CUT, "--workers", 1) == 0
    assert {path.name for path in tmp_path.rglob("*")} >= {"meta.json", "out"}
    assert [path.name for path in place.iterdir() if path.name != "out"] == ["meta.json"]
    assert len(list(place.glob("out/clips/*.mp4"))) == 1
    drops = lines(place / "out" / "drops.jsonl")
    assert [(d["source"], d["reason"]) for d in drops] == [
        (name, "unreadable"),
        (good, "listed twice"),
    ]


def test_a_split_of_the_layout_reaches_the_metadata(collection, tmp_path):
    for name in ("train/a.mp4", "test/b.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes((collection / "one person.mp4").read_bytes())
    arguments = "--videos", tmp_path, "--layout", "ubc-fashion", "--out", tmp_path / "out"
    assert run("clips", *arguments, *CUT, "--workers", 1) == 0
    kept = lines(tmp_path / "out" / "metadata.jsonl")
    assert [(line["source"], line["split"]) for line in kept] == [
        ("test/b.mp4", "validation"),
        ("train/a.mp4", "train"),
    ]


def test_working_files_that_are_not_ours_are_kept(collection, tmp_path, capsys):
    for name in ("mine/thesis.tex", "out/work/thesis.tex"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("years of work")
    places = (tmp_path / "new", "--work", tmp_path / "mine"), (tmp_path / "out",)
    for out, *work in places:
        options = "--out", out, *work, "--overwrite"
        assert run("clips", "--videos", collection, *CUT, *options) == 2
        assert "holds thesis.tex; --overwrite removes only" in capsys.readouterr().err
    assert len([path.read_text() for path in tmp_path.rglob("thesis.tex")]) == 2
