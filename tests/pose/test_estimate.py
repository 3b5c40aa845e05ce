import numpy as np
import pytest
import skimage.data

from animate_jax.errors import UserError, UserNote
from animate_jax.pose.estimate import (
    Estimator,
    estimate_keypoints,
    estimate_picture,
    load_estimator,
)
from animate_jax.pose.keypoints import POINTS, load_keypoints
from animate_jax.pose.tracking import Person, box_of
from animate_jax.video.reading import probe_video, read_frames


def test_a_clip_becomes_keypoints(clips, estimator, tmp_path, capfd):
    path = clips["single/cam02"]
    info = probe_video(path)
    assert (info.width, info.height, info.fps, info.frames_hint) == (1080, 1920, 60.0, 100)
    keypoints = estimate_keypoints(
        read_frames(path, stride=2),
        backend=estimator,
        fps=info.fps / 2,
        width=info.width,
        height=info.height,
        total=50,
    )
    assert "50/50" in capfd.readouterr().err
    assert keypoints.points.shape == (50, POINTS, 3) and keypoints.fps == 30
    assert (keypoints.points[:, :18, 2] > 0.3).mean() > 0.85
    steps = np.linalg.norm(np.diff(keypoints.points[:, :18, :2], axis=0), axis=-1)
    # The network exchanges left and right in a third of these frames; about 660 pixels height.
    assert np.median(steps) < 20 and np.percentile(steps, 90) < 70
    keypoints.save(tmp_path / "pose.npz")
    np.testing.assert_array_equal(load_keypoints(tmp_path / "pose.npz").points, keypoints.points)


def test_person_selects_a_track(clips, estimator):
    frames = list(read_frames(clips["multi/cam04"], stride=3, limit=8))
    size = dict(width=frames[0].shape[1], height=frames[0].shape[0], fps=20, progress=False)
    both = [estimate_keypoints(frames, backend=estimator, person=i, **size).points for i in (0, 1)]
    default = estimate_keypoints(frames, backend=estimator, **size).points
    np.testing.assert_array_equal(default, both[0])
    assert np.linalg.norm(both[0][:, 1, :2] - both[1][:, 1, :2], axis=1).min() > 100
    with pytest.raises(UserError, match="no person 7"):
        estimate_keypoints(frames, backend=estimator, person=7, **size)


def test_picture_takes_the_largest_person(blazepose_models):
    det, pose = blazepose_models
    points = estimate_picture(skimage.data.astronaut(), det=det, pose=pose)
    assert points.shape == (POINTS, 3) and points.dtype == np.float32
    assert 280 < points[5, 0] < 330

    def two(frame, index, state):
        people = []
        for size in (50, 90):
            body = np.zeros((POINTS, 3), np.float32)
            body[:2] = [[0, 0, 1], [size, size, 1]]
            people.append(Person(body, box_of(body)))
        return people, state

    assert estimate_picture(np.zeros((99, 99, 3), np.uint8), Estimator(two))[1, 0] == 90


def test_state_goes_from_frame_to_frame():
    seen = []

    def find(frame, index, state):
        seen.append((index, state))
        return [Person(np.ones((POINTS, 3), np.float32), np.array([0, 0, 9, 9.0]))], index

    frames = [np.zeros((8, 8, 3), np.uint8)] * 3
    options = dict(backend=Estimator(find), fps=8, width=8, height=8, progress=False)
    estimate_keypoints(iter(frames), **options)
    assert seen == [(0, None), (1, 0), (2, 1)]
    with pytest.raises(UserError, match="no frames"):
        estimate_keypoints([], **options)
    with pytest.raises(UserError, match="frame 1 is uint8"):
        estimate_keypoints([frames[0], frames[0][:4]], **options)


def test_frames_are_filled_only_where_nobody_is_followed():
    filled = []

    def person(place):
        points = np.full((POINTS, 3), place, np.float32)
        points[:, 2] = 1
        return Person(points, np.array([0, 0, 9, 9.0]))

    def find(frame, index, state):
        return [person(5)] if index in (2, 4) else [], state

    def fill(frame):
        filled.append(frame)
        return person(7)

    frames = [np.zeros((8, 8, 3), np.uint8)] * 37
    options = dict(fps=8, width=8, height=8, smooth=False, progress=False)
    points = estimate_keypoints(frames, backend=Estimator(find, fill), **options).points
    # Followed from frame 2 on, and for 30 frames after frame 4.
    assert points[:, 0, 0].tolist() == [7, 7, 5, 0, 5, *[0] * 30, 7, 7]
    assert len(filled) == 4
    alone = estimate_keypoints(frames, backend=Estimator(find), **options).points
    assert alone[:, 0, 0].tolist() == [0, 0, 5, 0, 5, *[0] * 32]


def test_who_comes_back_after_long_is_the_same_person_and_told():
    def find(frame, index, state):
        points = np.zeros((POINTS, 3), np.float32)
        points[:24] = [[index + y, 2 * y, 1] for y in range(24)]
        return [] if 5 <= index < 45 else [Person(points, box_of(points))], state

    frames = [np.zeros((64, 80, 3), np.uint8)] * 48
    options = dict(backend=Estimator(find), fps=8, width=80, height=64, progress=False)
    with pytest.warns(UserNote, match="found again 1 times, first in frame 45"):
        points = estimate_keypoints(frames, **options).points
    assert np.flatnonzero(points[:, 0, 2]).tolist() == [0, 1, 2, 3, 4, 45, 46, 47]
    alone = estimate_keypoints(frames, person=1, **options).points
    assert np.flatnonzero(alone[:, 0, 2]).tolist() == [45, 46, 47]


def test_nobody_is_an_error(estimator):
    empty = [np.full((64, 48, 3), 90, np.uint8)] * 2
    options = dict(backend=estimator, fps=8, width=48, height=64, progress=False)
    with pytest.raises(UserError, match="no person was found"):
        estimate_keypoints(empty, **options)
    with pytest.raises(UserError, match="no person was found"):
        estimate_picture(empty[0], estimator)


def test_unknown_backend():
    with pytest.raises(UserError, match="choose one of blazepose, dwpose"):
        load_estimator("openpose")
