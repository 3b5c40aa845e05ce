"""Which frames a sample takes, and what is said of damaged records."""

import dataclasses

import numpy as np
import pytest
from synthetic_records import dotted_record

from animate_jax.data.config import DataConfig, SetConfig
from animate_jax.data.sample import choose_frames, make_sample
from animate_jax.errors import UserError
from animate_jax.pose import skeleton as sk

PICTURES = DataConfig(sets=(SetConfig("dots"),), height=32, width=32, margin=10)


def draws(count, times=400, **changes):
    config = dataclasses.replace(PICTURES, **changes)
    rng = np.random.default_rng(0)
    return [choose_frames(np.ones(count, bool), config, rng) for _ in range(times)]


def test_references_keep_the_margin_where_the_clip_allows():
    pairs = [(reference, int(target)) for reference, (target,) in draws(25)]
    assert min(abs(a - b) for a, b in pairs) == 10
    assert {target for _, target in pairs} == set(range(25))
    assert {reference for reference, _ in pairs} == set(range(25))
    # In a clip of 15, frames 5 to 9 have none so far away: the end that is farther is taken.
    for reference, (target,) in draws(15):
        away = abs(reference - target)
        assert away >= 10 or away == max(target, 14 - target)
    assert [draw for draw in draws(1, 5)] == [(0, np.array([0]))] * 5


def test_references_and_single_frames_show_somebody():
    seen = np.arange(60) % 20 > 11
    rng = np.random.default_rng(0)
    for frames in (1, 5):
        config = dataclasses.replace(PICTURES, frames=frames)
        taken = [choose_frames(seen, config, rng) for _ in range(400)]
        assert {reference for reference, _ in taken} == set(np.flatnonzero(seen))
        if frames == 1:
            assert {int(target) for _, (target,) in taken} == set(np.flatnonzero(seen))
            away = [abs(reference - int(target)) for reference, (target,) in taken]
            assert min(away) == 13  # in the next group: one of eight frames has none 10 apart
    nobody = [choose_frames(np.zeros(5, bool), PICTURES, rng)[1] for _ in range(100)]
    assert {int(target) for (target,) in nobody} == set(range(5))


def test_clips_are_evenly_spaced_and_references_anywhere():
    taken = draws(40, frames=5, stride=4)
    assert {tuple(np.diff(frames)) for _, frames in taken} == {(4,) * 4}
    assert {int(frames[0]) for _, frames in taken} == set(range(24))
    assert {reference for reference, _ in taken} == set(range(40))


@pytest.mark.parametrize(("count", "stride"), [(17, 4), (16, 3), (13, 3), (9, 2), (8, 1), (5, 1)])
def test_short_clips_take_a_smaller_stride(count, stride):
    for _, frames in draws(count, 50, frames=5, stride=4):
        assert np.diff(frames).tolist() == [stride] * 4
        assert 0 <= frames[0] and frames[-1] < count


def test_very_short_clips_run_forwards_and_backwards():
    taken = {tuple(frames.tolist()) for _, frames in draws(3, frames=6)}
    there_and_back = [0, 1, 2, 1] * 3
    assert taken == {tuple(there_and_back[start : start + 6]) for start in range(4)}
    assert all(frames.tolist() == [0] * 6 for _, frames in draws(1, 20, frames=6))
    assert {tuple(f.tolist()) for _, f in draws(2, frames=3)} == {(0, 1, 0), (1, 0, 1)}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The nose falls by 8 pixels a frame."""
    places = np.stack([np.full(5, 32), 12 + 8 * np.arange(5)], axis=1)
    folder = tmp_path_factory.mktemp("falling")
    return dotted_record(folder, {sk.NOSE: places}, 64, 64, radius=4)


def brightest_row(picture):
    return np.argmax(picture[:, 32].astype(int).sum(-1))


def test_frames_and_keypoints_are_those_that_were_chosen(record):
    """Also where a frame is taken more than once."""
    config = dataclasses.replace(PICTURES, height=64, width=64, frames=9, crop="pad", flip=0.0)
    seen = set()
    for seed in range(8):
        sample = make_sample(record, config, np.random.default_rng(seed))
        reference, frames = choose_frames(np.ones(5, bool), config, np.random.default_rng(seed))
        np.testing.assert_array_equal(sample["keypoints"], record["keypoints"][frames])
        expected = record["keypoints"][reference]
        np.testing.assert_array_equal(sample["reference_keypoints"], expected)
        assert sample["first"] == frames[0]
        rows = [brightest_row(frame) for frame in sample["frames"]]
        np.testing.assert_allclose(rows, 12 + 8 * frames, atol=4)
        np.testing.assert_allclose(brightest_row(sample["reference"]), 12 + 8 * reference, atol=4)
        seen.add(reference)
    assert len(seen) > 2


def test_skeletons_without_face_and_hands(record):
    """Nothing else differs; the points keep their places."""
    seen = {**record, "keypoints": record["keypoints"].copy()}
    seen["keypoints"][..., 2] = 1
    whole, body = (
        make_sample(seen, dataclasses.replace(PICTURES, body_only=p), np.random.default_rng(2))
        for p in (0.0, 1.0)
    )
    assert (whole["keypoints"][..., 2] == 1).all()
    assert (body["keypoints"][:, : sk.FACE_START, 2] == 1).all()
    assert (body["keypoints"][:, sk.FACE_START :, 2] == 0).all()
    np.testing.assert_array_equal(body["keypoints"][..., :2], whole["keypoints"][..., :2])
    np.testing.assert_array_equal(body["frames"], whole["frames"])
    assert (seen["keypoints"][..., 2] == 1).all()


def test_damaged_records_are_named(record):
    rng = np.random.default_rng(0)
    damaged = {**record, "clip": record["clip"][:500]}
    with pytest.raises(UserError, match="record dots: the clip cannot be decoded.*write"):
        make_sample(damaged, PICTURES, rng)
    longer = {**record, "keypoints": np.tile(record["keypoints"], (9, 1, 1))}
    with pytest.raises(UserError, match="record dots: the clip has 5 frames, none with number"):
        make_sample(longer, PICTURES, rng)
    with pytest.raises(UserError, match="dots: its pictures have 64x64 pixels.* 96x64"):
        make_sample({**record, "width": 96}, PICTURES, rng)
