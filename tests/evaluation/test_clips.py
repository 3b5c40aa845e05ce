"""What is evaluated: frames at the size that is compared, the character's pixels, and pairs."""

import dataclasses
import json
import shutil

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from synthetic_records import dot_places, dotted_record

from animate_jax.errors import UserError
from animate_jax.evaluation.clips import Entry, centre_crop, clip_frames, clip_masks, open_clips
from animate_jax.evaluation.folders import read_pair
from animate_jax.evaluation.pairs import Pair, cross_pairs, own_pairs, read_pairs, video_pairs
from animate_jax.pose import skeleton as sk
from animate_jax.video.writing import write_video
from data_prep.puppets.generate import PuppetSet, generate
from data_prep.records import write_records


def test_the_middle_is_seen_and_keypoints_follow(tmp_path):
    places = {
        sk.NOSE: [(110, 60), (112, 62), (115, 70)],
        sk.LEFT_ANKLE: [(90, 120), (90, 118), (88, 110)],
    }
    record = dotted_record(tmp_path, places, 200, 160)
    for size in ((96, 96), (64, 112), (120, 64)):
        frames, points = clip_frames(record, [2, 0, 2], size)
        assert frames.shape == (3, size[1], size[0], 3) and points.shape == (3, 134, 3)
        np.testing.assert_array_equal(frames[0], frames[2])
        for frame, known in zip(frames, points):
            for point, place in dot_places(frame).items():
                np.testing.assert_allclose(place, known[point, :2], atol=0.6)
    assert len(dot_places(frames[1])) == 2
    assert centre_crop((200, 160), (96, 96)).source == (20, 0, 180, 160)
    assert centre_crop((201, 161), (402, 322)).source == (0, 0, 200, 160)


@pytest.mark.parametrize("group, frames", [(1, 3), (3, 2)])
def test_masks_are_the_puppets_pixels(tmp_path, group, frames):
    """What differs between a puppet's frames is where it is in either of them, or its shadow."""
    wanted = PuppetSet(6, 120, 90, seed=8, frames=frames, fps=2.0, group=group)
    generate(wanted, tmp_path / "puppets", progress=False)
    for name, clip in open_clips(tmp_path / "puppets", "validation").items():
        record = clip.load()
        pictures, points = clip_frames(record, range(frames), (120, 90))
        masks = clip_masks(record, range(frames), (120, 90))
        assert masks.shape == (frames, 90, 120) and 0.01 < masks.mean() < 0.5
        for mask, body in zip(masks, points):
            seen = body[[sk.NECK, sk.RIGHT_HIP, sk.LEFT_HIP, sk.RIGHT_KNEE, sk.LEFT_KNEE], :2]
            x, y = seen.astype(int).T
            inside = (x >= 0) & (x < 120) & (y >= 0) & (y < 90)
            assert mask[y[inside], x[inside]].all(), name
        # Contours are not of the mask, so it is widened by two pixels.
        either = masks[0] | masks[-1]
        for axis in (0, 1):
            for shift in (-2, -1, 1, 2):
                either = either | np.roll(either, shift, axis)
        change = np.abs(pictures[0].astype(int) - pictures[-1]).max(-1) > 60
        assert (change & ~either).sum() <= 0.02 * change.sum() + 2, name
        # At another size it is the same mask.
        half = clip_masks(record, range(frames), (60, 44)).mean()
        assert abs(half / masks.mean() - 1) < 0.1


def test_nobody_knows_the_masks_of_others(tmp_path, puppets):
    record = next(iter(open_clips(puppets, "validation").values())).load()
    moved = {**record, "keypoints": record["keypoints"] + 1}
    for other in ({**record, "source": "me.mp4"}, {**record, "name": "x"}, moved):
        assert clip_masks(other, [0], (96, 128)) is None


def test_records_and_clip_directories_are_the_same(tmp_path, puppets):
    write_records(puppets, tmp_path / "records", validation=0.5, progress=False)
    directory = open_clips(puppets, "train")
    records = open_clips(tmp_path / "records", "all")
    assert list(directory) == list(records) == [f"00000{i}" for i in range(4)]
    assert len(open_clips(tmp_path / "records", "validation")) == 2
    for name, clip in directory.items():
        other = records[name]
        assert dataclasses.replace(clip, load=None) == dataclasses.replace(other, load=None)
        ours, theirs = clip.load(), other.load()
        np.testing.assert_array_equal(ours.pop("keypoints"), theirs.pop("keypoints"))
        assert ours == theirs
    build = tmp_path / "build"  # has both, and only its records know the splits
    shutil.copytree(puppets, build)
    shutil.copytree(tmp_path / "records", build / "records")
    assert len(open_clips(build, "validation")) == 2

    write_records(puppets, tmp_path / "one", validation=0, progress=False)
    assert list(open_clips(tmp_path / "one", "all")) == list(directory)
    with pytest.raises(UserError, match="holds no records"):
        open_clips(tmp_path / "nowhere" if (tmp_path / "nowhere").mkdir() else tmp_path / "nowhere",
                   "validation")  # fmt: skip


def entry(name, frames, source="a.mp4"):
    return Entry(name, frames, 64, 64, source, dict)


def test_own_pairs_leave_the_reference_out():
    clips = {name: entry(name, n) for name, n in (("a", 10), ("b", 4), ("c", 1))}
    pairs = own_pairs(clips, frames=3, stride=2)
    assert [pair.name for pair in pairs] == ["a", "b", "c"]
    assert [list(pair.numbers) for pair in pairs] == [[1, 3, 5], [1, 3], [0]]
    assert {pair.reference_frame for pair in pairs} == {0}
    assert list(own_pairs(clips)[0].numbers) == list(range(1, 10))


def test_all_clips_of_a_video_start_from_its_first_frame():
    sources = {"film-001": "film.mp4", "film-000": "film.mp4", "other-000": "other.mp4"}
    clips = {name: entry(name, 6, source) for name, source in sources.items()}
    clips |= {name: entry(name, 6, "puppets-0-0") for name in ("p0", "p1")}  # two characters
    pairs = {pair.name: pair for pair in video_pairs(clips, frames=4, stride=2)}
    references = {name: (pair.reference, list(pair.numbers)) for name, pair in pairs.items()}
    assert references == {
        "film-000": ("film-000", [1, 3, 5]),
        "film-001": ("film-000", [0, 2, 4]),
        "other-000": ("other-000", [1, 3, 5]),
        "p0": ("p0", [1, 3, 5]),
        "p1": ("p1", [1, 3, 5]),
    }
    assert all(pair.driving == pair.truth == name for name, pair in pairs.items())


def test_cross_pairs_join_those_of_one_motion(puppets):
    pairs = cross_pairs(open_clips(puppets, "validation"), frames=4)
    assert [(p.reference, p.driving, p.truth) for p in pairs] == [
        (a, b, a)
        for a, b in (("000000", "000001"), ("000001", "000000"))
        + (("000002", "000003"), ("000003", "000002"))
    ]
    assert len({pair.name for pair in pairs}) == 4
    films = {name: entry(name, 5) for name in "ab"}  # two parts of one film do not move alike
    with pytest.raises(UserError, match="--pairs-file"):
        cross_pairs(films)


def test_pairs_files(tmp_path):
    clips, path = {"a": entry("a", 5), "b": entry("b", 9)}, tmp_path / "pairs.json"
    line = {"name": "n", "reference": "a", "driving": "b", "truth": "b", "frames": 4}

    def read(*lines):
        path.write_text(json.dumps({"pairs": lines}))
        return read_pairs(path, clips)

    assert read(line | {"reference_frame": 4, "stride": 2, "first": 2}) == [
        Pair("n", "a", "b", "b", 4, 4, 2, 2)
    ]
    for wrong, message in (
        ({"reference_frame": 5}, "'a' has 5 frames, not 6"),
        ({"frames": 9}, "'b' has 9 frames, not 10"),
        ({"truth": "c"}, "pair 1: there is no clip 'c'"),
        ({"frames": 0}, "frames is 0"),
        ({"frames": True}, "frames is True"),
        ({"name": 3}, "name is 3"),
        ({"name": ""}, "name is empty"),
        ({"name": "踊" * 70}, "longer than 200 bytes"),
        ({"seed": 3}, "unknown entry 'seed'"),
    ):
        with pytest.raises(UserError, match=message):
            read(line | wrong)
    with pytest.raises(UserError, match="no driving"):
        read({key: value for key, value in line.items() if key != "driving"})
    with pytest.raises(UserError, match="one name"):
        read(line, line)
    with pytest.raises(UserError, match="one name"):  # of files
        read(line | {"name": "a/b"}, line | {"name": "a__b"})
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_pairs(path, clips)
    path.write_text(json.dumps({"pairs": [line]}), encoding="utf-8-sig")  # as Windows saves
    assert len(read_pairs(path, clips)) == 1
    with pytest.raises(UserError, match="no list of pairs"):
        read()


@pytest.mark.parametrize("tagged", [False, True])
def test_results_without_a_word_on_their_colours_are_ffmpegs(tmp_path, tagged):
    """As PyTorch's tools write them, from what they have read of the truth in the same way."""
    colour = np.full((784, 512, 3), (200, 60, 40), np.uint8)

    def write_untagged(path):
        frame = av.VideoFrame.from_ndarray(colour, "rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
            stream.height, stream.width, stream.pix_fmt = 784, 512, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(), "yuv420p")))
            container.mux(stream.encode())

    write_untagged(tmp_path / "truth.mp4")
    if tagged:
        write_video(tmp_path / "result.mp4", colour[None], 25)
    else:
        write_untagged(tmp_path / "result.mp4")
    result, truth = read_pair(tmp_path / "result.mp4", tmp_path / "truth.mp4")
    assert np.abs(result.astype(int) - (200, 60, 40)).mean() < 3
    as_ffmpeg_wrote_it = np.abs(truth.astype(int) - (200, 60, 40)).mean() < 3
    assert as_ffmpeg_wrote_it == (not tagged)  # else as a camera would have
