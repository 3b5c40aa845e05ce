"""Clip directories to records."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from animate_jax.data.records import open_records
from animate_jax.errors import UserError, UserNote
from animate_jax.pose.keypoints import Keypoints, load_keypoints
from animate_jax.video.reading import probe_video, read_frames
from animate_jax.video.writing import write_video
from data_prep import shards
from data_prep.__main__ import main
from data_prep.clip_directory import read_clips
from data_prep.duplicates import is_near_duplicate, near_duplicates, thumbnails
from data_prep.puppets.body import place_body
from data_prep.puppets.character import random_character
from data_prep.puppets.draw import draw_frames
from data_prep.puppets.generate import PuppetSet, generate
from data_prep.puppets.moves import random_motion
from data_prep.puppets.scene import random_backdrop, random_camera
from data_prep.records import check_frames, write_records
from data_prep.split import assign_splits


@pytest.fixture(scope="module")
def puppets(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sets") / "puppets"
    generate(PuppetSet(8, 128, 128, 5, frames=30, group=2), directory, progress=False)
    return directory


@pytest.fixture
def copy(puppets, tmp_path):
    return shutil.copytree(puppets, tmp_path / "puppets")


def write(clips, out, **options):
    return write_records(clips, out, progress=False, **options)


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write_lines(directory, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metadata.jsonl").write_text(text)


def add_clip(directory, name, frames, fps, source, **options):
    """Appends a clip of its own source, encoded with FFmpeg's `options`; its points are zeros."""
    height, width = frames[0].shape[:2]
    write_video(directory / f"clips/{name}.mp4", frames, fps, options=options or None)
    points = np.zeros((len(frames), 134, 3), np.float32)
    Keypoints(points, fps, width, height).save(directory / f"keypoints/{name}.npz")
    line = {"clip": f"clips/{name}.mp4", "keypoints": f"keypoints/{name}.npz", "fps": fps}
    line |= {"frames": len(frames), "width": width, "height": height}
    line |= {"source": source, "licence": "CC0-1.0"}
    with open(directory / "metadata.jsonl", "a") as lines:
        lines.write(json.dumps(line) + "\n")


def resized(frames, width, height):
    size = width, height
    return [np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in frames]


def files(directory):
    paths = sorted(path for path in Path(directory).rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def test_what_is_written_comes_back(puppets, tmp_path):
    written = write(puppets, tmp_path / "records", validation=0.25)
    assert (written.train + written.validation, written.drops) == (8, [])
    assert written.train >= 2 and written.validation >= 2
    clips = {clip.name: clip for clip in read_clips(puppets)}
    splits = {line["name"]: line["split"] for line in read_lines(tmp_path / "records/splits.jsonl")}
    sources = {"train": set(), "validation": set()}
    for split in sources:
        source = open_records(tmp_path, split)
        for record in (source[i] for i in range(len(source))):
            clip = clips.pop(record["name"])
            assert record["clip"] == clip.path.read_bytes()
            expected = load_keypoints(clip.keypoints_path).points
            np.testing.assert_array_equal(record["keypoints"], expected)
            for field in ("frames", "width", "height", "fps", "source", "licence"):
                assert record[field] == getattr(clip, field)
            assert splits[record["name"]] == split
            sources[split].add(record["source"])
    assert not clips
    assert not sources["train"] & sources["validation"]
    assert sources["train"] | sources["validation"] == {f"puppets-5/00000{i}" for i in range(4)}


# Another process, where nothing finds TensorFlow: it must not be needed, and protobuf orders
# fields differently in every process if it may.
IN_ANOTHER_PROCESS = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != "tensorflow":
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
try:
    import tensorflow
except ImportError:
    pass
else:
    raise AssertionError("TensorFlow is not hidden")
from data_prep.records import write_records
write_records(sys.argv[1], sys.argv[2], progress=False)
import tensorflow_datasets as tfds
source = tfds.data_source("animate_clips", data_dir=sys.argv[2], split="train")
builder = tfds.builder_from_directory(f"{sys.argv[2]}/animate_clips/1.0.0")
again = builder.as_data_source(split="train")
assert len(source) == len(again) == builder.info.splits["train"].num_examples
print(*(record["name"].decode() for record in source))
assert [len(r["clip"]) for r in source] == [len(r["clip"]) for r in again]
assert all(r["keypoints"].shape == (30, 134, 3) for r in source)
"""


def test_the_same_clips_give_the_same_bytes_without_tensorflow(puppets, tmp_path):
    write(puppets, tmp_path / "here")
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, puppets, tmp_path / "there"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ours = open_records(tmp_path / "here", "train")
    assert output.split() == [ours[i]["name"] for i in range(len(ours))]
    assert files(tmp_path / "here") == files(tmp_path / "there")
    assert len(files(tmp_path / "here")) == 7


def test_shards_are_bounded(puppets, tmp_path):
    write(puppets, tmp_path / "records", shard_bytes=120_000, validation=0)
    paths = list(tmp_path.rglob("*array_record*"))
    assert len(paths) > 2
    padding = 2 * 65536  # of a shard of any size
    assert all(path.stat().st_size <= 120_000 + padding for path in paths)
    source = open_records(tmp_path, "train")
    assert sorted(source[i]["name"] for i in range(8)) == [f"{i:06d}" for i in range(8)]


def test_puppets_of_one_motion_are_no_duplicates(puppets):
    """Nor are people who move alike before one background."""
    summaries = [check_frames(clip) for clip in read_clips(puppets)]
    assert near_duplicates(summaries) == {}
    motion = random_motion(3, 30, 15, "dance")
    bodies = [place_body(random_character(seed), motion) for seed in range(6)]
    camera = random_camera(1, bodies, 128, 128)
    backdrop = random_backdrop(2, camera, 4)
    people = [thumbnails(draw_frames(body, camera, backdrop), 15) for body in bodies]
    assert near_duplicates(people) == {}


@pytest.mark.parametrize("kind", ["dance", "walk", "wave", "idle"])
def test_takes_of_one_person_before_one_background_are_no_duplicates(kind):
    motions = [random_motion(seed, 30, 15, kind) for seed in range(4)]
    bodies = [place_body(random_character(4), motion) for motion in motions]
    camera = random_camera(1, bodies, 128, 128)
    backdrop = random_backdrop(2, camera, 4)
    takes = [list(draw_frames(body, camera, backdrop)) for body in bodies]
    assert near_duplicates([thumbnails(take, 15) for take in takes]) == {}
    still = [thumbnails(take[:1] * 20, 15) for take in takes]
    same = thumbnails(takes[0][:1] * 22, 15)
    assert near_duplicates([*still, same]) == {4: 0}


def test_other_encodings_of_a_clip_are_near_duplicates(copy, tmp_path):
    """Smaller, coarser, and trimmed; the first clip stays, whichever it is."""
    clips = read_clips(copy)[::2]
    for clip in clips:
        frames = list(read_frames(clip.path))
        add_clip(copy, f"{clip.name}-small", resized(frames, 64, 64), 15.0, "b", crf="20")
        add_clip(copy, f"{clip.name}-coarse", frames, 15.0, "c", crf="35")
        add_clip(copy, f"{clip.name}-start", frames[2:], 15.0, "d", crf="28")
        add_clip(copy, f"{clip.name}-end", frames[1:-2], 15.0, "e")
        add_clip(copy, f"{clip.name}-part", frames[:-10], 15.0, "f")
    written = write(copy, tmp_path / "records")
    expected = [
        {
            "source": source,
            "clip": f"{clip.name}-{how}",
            "reason": "near duplicate",
            "detail": f"of {clip.name}",
        }
        for clip in clips
        for how, source in (("small", "b"), ("coarse", "c"), ("start", "d"), ("end", "e"))
    ]
    assert written.drops == expected
    assert read_lines(tmp_path / "records/drops.jsonl") == expected
    assert written.train + written.validation == 8 + 4  # the third that is cut off is no trifle


def test_repeats_of_a_repeat_are_compared_with_the_first():
    motion = random_motion(8, 60, 15, "dance")
    body = place_body(random_character(4), motion)
    camera = random_camera(1, [body], 128, 128)
    frames = list(draw_frames(body, camera, random_backdrop(2, camera, 4)))
    lengths = [thumbnails(frames[:count], 15) for count in (60, 52, 45, 58)]
    assert is_near_duplicate(lengths[1], lengths[2])
    assert near_duplicates(lengths) == {1: 0, 3: 0}
    assert near_duplicates([]) == {}


def test_real_people(clips):
    """A take that is shortened and shrunk, at two rates, against its halves and its reverse."""
    faster = resized(read_frames(clips["single/cam01"], limit=80), 540, 960)
    camera = faster[::2]
    small = resized(camera, 216, 384)
    whole, again = thumbnails(camera, 30), thumbnails(small[2:-2], 30)
    assert is_near_duplicate(whole, again) and is_near_duplicate(again, whole)
    assert not is_near_duplicate(thumbnails(small[:20], 30), thumbnails(small[20:], 30))
    assert not is_near_duplicate(whole, thumbnails(camera[::-1], 30))
    assert is_near_duplicate(whole, thumbnails(faster, 60))


def test_splits_depend_on_source_and_seed_alone():
    sources = [f"videos/{i}.mp4" for i in range(2000)]
    first = assign_splits(sources, validation=0.1, seed=0)
    share = list(first.values()).count("validation") / 2000
    assert 0.08 < share < 0.12
    fewer = assign_splits(sources[500:1500], validation=0.1, seed=0)
    assert fewer.items() <= first.items()
    assert assign_splits(reversed(sources), validation=0.1, seed=0) == first
    other = assign_splits(sources, validation=0.1, seed=1)
    moved = sum(first[source] != other[source] for source in sources)
    assert 0.13 < moved / 2000 < 0.23
    more = assign_splits(sources, validation=0.2, seed=0)
    assert all(more[s] == "validation" for s in sources if first[s] == "validation")
    assert set(assign_splits(sources, validation=0, seed=0).values()) == {"train"}


@pytest.mark.parametrize("validation", [0.001, 0.5, 0.999])
def test_both_splits_have_a_source(validation):
    for seed in range(20):
        splits = assign_splits(["a", "b"], validation=validation, seed=seed)
        assert sorted(splits.values()) == ["train", "validation"]
    assert assign_splits(["a"], validation=0.001, seed=0) == {"a": "train"}


def test_fixed_splits_win(copy, tmp_path):
    lines = read_lines(copy / "metadata.jsonl")
    fixed = {"puppets-5/000000": "validation", "puppets-5/000002": "train"}
    for line in lines[::2]:  # one clip of each source
        if line["source"] in fixed:
            line["split"] = fixed[line["source"]]
    write_lines(copy, lines)
    for seed in range(5):
        write(copy, tmp_path / "records", seed=seed, overwrite=True)
        splits = {(s["source"], s["split"]) for s in read_lines(tmp_path / "records/splits.jsonl")}
        assert fixed.items() <= splits and len(splits) == 4
    lines[1]["split"] = "train"
    write_lines(copy, lines)
    with pytest.raises(UserError, match="000001.mp4: its metadata asks for train, but other"):
        write(copy, tmp_path / "new")


def test_one_source_is_for_training(copy, tmp_path):
    write_lines(copy, read_lines(copy / "metadata.jsonl")[:2])
    with pytest.warns(UserNote, match="nothing to validate on"):
        written = write(copy, tmp_path / "records")
    assert (written.train, written.validation) == (2, 0)


def test_several_directories(puppets, copy, tmp_path):
    """Names tell where clips are from; what is in both is taken once."""
    other = tmp_path / "others"
    generate(PuppetSet(2, 128, 160, 6, frames=20), other, progress=False)
    written = write([puppets, other, copy], tmp_path / "records", validation=0)
    assert [drop["clip"] for drop in written.drops] == [f"puppets-2/00000{i}" for i in range(8)]
    source = open_records(tmp_path / "records", "train")
    records = {source[i]["name"]: source[i]["height"] for i in range(10)}
    assert records == {f"puppets/00000{i}": 128 for i in range(8)} | {
        f"others/00000{i}": 160 for i in range(2)
    }


def change(field, value):
    def break_it(directory):
        lines = read_lines(directory / "metadata.jsonl")
        lines[3][field] = value
        write_lines(directory, lines)

    return break_it


def change_points(**values):
    def break_it(directory):
        path = directory / "keypoints/000003.npz"
        kept = load_keypoints(path)
        fields = {"points": kept.points, "fps": np.float64(kept.fps)}
        size = np.array([kept.width, kept.height], np.int32)
        np.savez(path, **{**fields, "size": size, **values})

    return break_it


def without(field):
    def break_it(directory):
        lines = read_lines(directory / "metadata.jsonl")
        del lines[3][field]
        write_lines(directory, lines)

    return break_it


def shorten_clip(directory):
    path = directory / "clips/000003.mp4"
    frames = list(read_frames(path))[:-1]
    write_video(path, frames, probe_video(path).fps, overwrite=True)


def shrink_clip(directory):
    path = directory / "clips/000003.mp4"
    write_video(path, resized(read_frames(path), 64, 96), 15.0, overwrite=True)


def damage_clip(directory):
    path = directory / "clips/000003.mp4"
    path.write_bytes(b"no video at all")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (change("frames", 31), "000003.npz: frames 30, but the metadata of the clip says 31"),
        (change("width", 64), "000003.npz: width 128, but .* says 64"),
        (change("fps", 30.0), "000003.npz: fps 15, but .* says 30"),
        (change("frames", 0), "metadata.jsonl: line 4 has 0 for frames"),
        (change("fps", "fast"), "line 4 has 'fast' for fps"),
        (change("fps", float("inf")), "line 4 has inf for fps"),
        (change("source", 7), "line 4 has 7 for source, which should be text"),
        (change("split", "test"), "line 4 has the split 'test'"),
        (change("clip", "../clips/000003.mp4"), "line 4 has the clip .* not a file in this"),
        (change("clip", "/etc/passwd"), "line 4 has the clip '/etc/passwd'"),
        (change("clip", "clips/000001.mp4"), "line 4 names clips/000001.mp4 again"),
        (change("clip", "clips/no.mp4"), "no.mp4: there is no such video"),
        (without("licence"), "line 4 has no 'licence'"),
        (without("source"), "line 4 has no 'source'"),
        (change_points(points=np.full((30, 134, 3), np.nan, np.float32)), "contain NaN"),
        (change_points(points=np.zeros((29, 134, 3), np.float32)), "frames 29, but .* says 30"),
        (lambda d: (d / "keypoints/000003.npz").unlink(), "no such keypoint file"),
        (shorten_clip, "000003.mp4: 29 frames can be read, but its metadata says 30"),
        (shrink_clip, "000003.mp4: 64x96 pixels, but its metadata says 128x128"),
        (damage_clip, "000003.mp4: not a readable video"),
        (lambda d: (d / "metadata.jsonl").write_text("{\n"), "line 1 is not JSON"),
        (lambda d: (d / "metadata.jsonl").write_text("[1]\n"), "line 1 is not a JSON object"),
        (lambda d: (d / "metadata.jsonl").write_text(""), "no clips, so nothing to write"),
        (lambda d: (d / "metadata.jsonl").unlink(), "there is no such file; .* clip directory"),
    ],
)
def test_what_does_not_fit_is_refused(copy, tmp_path, break_it, message):
    break_it(copy)
    with pytest.raises(UserError, match=message) as caught:
        write(copy, tmp_path / "records")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["puppets"]


def test_earlier_records_stay_until_new_ones_are_whole(copy, tmp_path, monkeypatch):
    out = tmp_path / "records"
    write(copy, out)
    before = files(out)
    with pytest.raises(UserError, match="exists; choose another directory or add --overwrite"):
        write(copy, out)
    calls = itertools.count()

    def fail(path):
        if next(calls) == 4:
            raise UserError("the disk is gone")
        return load_keypoints(path)

    write_lines(copy, read_lines(copy / "metadata.jsonl")[:6])
    with monkeypatch.context() as patch, pytest.raises(UserError, match="the disk is gone"):
        summaries = [check_frames(clip) for clip in read_clips(copy)]
        patch.setattr("data_prep.records._examine", lambda *_: summaries)
        patch.setattr("data_prep.records.load_keypoints", fail)
        write(copy, out, overwrite=True)
    assert files(out) == before
    assert sorted(os.listdir(tmp_path)) == ["puppets", "records"]
    (out / ".DS_Store").touch()
    write(copy, out, overwrite=True)
    assert files(out) != before
    (out / "letters.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files than records"):
        write(copy, out, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        write(copy, tmp_path / "file")


def test_command_line(puppets, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["records", "--clips", str(puppets), "--out", str(out), "--validation", "0.5"]
    assert main(arguments) == 0
    sources = [len(open_records(out, split)) for split in ("train", "validation")]
    said = f"{sources[0]} clips for training, {sources[1]} for validation; 0 near duplicates"
    assert said in capsys.readouterr().out
    assert main(arguments) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--seed", "3"]) == 0
    assert main([*arguments[:-1], "1"]) == 2
    assert "a share of 1.0 for validation" in capsys.readouterr().err
    assert main(["records", "--clips", str(tmp_path), "--out", str(tmp_path / "new")]) == 2


def test_missing_package_is_named(puppets, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    with pytest.raises(UserError, match=r"pip install 'animate-jax\[data\]'"):
        shards.write_shards(tmp_path, {})
