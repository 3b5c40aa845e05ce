import json

import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.pose.estimate import Estimator
from animate_jax.pose.keypoints import BODY, FEET, POINTS, load_keypoints
from animate_jax.pose.smoothing import smooth_keypoints
from animate_jax.pose.tracking import Person, box_of, mirrored_names
from animate_jax.video.writing import write_video
from data_prep.poses import Clip, PoseSettings, looking_twice, people_fault, pose_clip

SETTINGS = PoseSettings()
FRAMES = 40


def person(x, height=100.0, confident=18, y=20.0):
    """A body at x; of its 18 points the first `confident` have score 0.9 and the others 0.2."""
    points = np.zeros((POINTS, 3), np.float32)
    points[BODY.start : FEET.stop, 0] = x + 10 * np.cos(np.arange(24))
    points[BODY.start : FEET.stop, 1] = y + height * ((np.arange(24) * 5) % 18) / 17
    points[BODY.start : FEET.stop, 2] = np.where(np.arange(24) < confident, 0.9, 0.2)
    box = np.array([x - 10, y, x + 10, y + height], np.float32)
    return Person(points, box if confident < 18 else box_of(points))


def alone(frames=FRAMES):
    return [[person(50 + i)] for i in range(frames)]


def reason(detections, **settings):
    fault = people_fault(detections, PoseSettings(**settings))
    return fault and fault["reason"]


def test_one_person_is_no_fault_and_nobody_is():
    assert reason(alone()) is None
    assert reason([[]] * FRAMES) == "no person"
    away = [people if i >= 8 else [] for i, people in enumerate(alone())]
    assert reason(away) is None  # seen in exactly 80 %
    assert reason(away[:-1] + [[]]) == "no person"
    assert reason(away[:-1] + [[]], min_person=0.7) is None


def test_a_second_person_is_counted_by_frames_and_size():
    def beside(frames, height):
        detections = alone()
        for frame in range(frames):
            detections[frame].append(person(300, height))
        return detections

    assert reason(beside(4, 100)) is None  # in exactly 10 %
    assert reason(beside(5, 100)) == "several people"
    assert reason(beside(5, 100), max_second=0.2) is None
    assert reason(beside(FRAMES, 24)) is None  # far away
    assert reason(beside(FRAMES, 26)) == "several people"
    fault = people_fault(beside(10, 100), SETTINGS)
    assert fault["detail"] == "a second person in 25% of the frames"


def test_two_people_who_take_turns_are_not_followed_as_one():
    turns = [[person(50)] if i < 20 else [person(400)] for i in range(FRAMES)]
    assert reason(turns) == "no person"
    assert "50% of the frames" in people_fault(turns, SETTINGS)["detail"]


def test_someone_seen_now_and_then_is_there_in_between():
    detections = alone()
    for frame in (0, 10):
        detections[frame].append(person(300))
    assert people_fault(detections, SETTINGS)["detail"] == "a second person in 28% of the frames"
    detections = alone(80)
    for frame in (0, 40, 79):  # more than a second apart
        detections[frame].append(person(300))
    assert reason(detections) is None


def test_two_mistakes_of_the_network_are_nobody():
    """Seen at either end, never between: what a painted-over picture makes of noise."""
    detections = alone(20)
    for frame, height in ((0, 60), (15, 13)):
        detections[frame].append(person(75, height))
    assert reason(detections) is None
    detections[15][1:] = [person(75, 60)]
    assert reason(detections) is None


def test_looking_twice_finds_who_stands_beside():
    """A network that only ever sees the leftmost of the white bodies in the picture."""
    looks = []

    def find(frame, index, state):
        looks.append((index, state))
        columns = np.flatnonzero((frame == 255).all(axis=(0, 2)))
        people = [person(columns[0] + 10.0)] if len(columns) else []
        return people, "followed"

    frame = np.full((140, 300, 3), 60, np.uint8)
    frame[:, 50:70] = 255
    two = frame.copy()
    two[:, 200:220] = 255
    estimator, state = looking_twice(Estimator(find)), None
    counts = []
    for index, picture in enumerate([frame] * 6 + [two] * 6):
        people, state = estimator.find(picture, index, state)
        counts.append(len(people))
    assert counts == [1] * 10 + [2, 1]
    assert looks[:4] == [(0, None), (0, None), (1, "followed"), (2, "followed")]
    assert frame.max() == 255 and (frame[:, 50:70] == 255).all()  # painted on a copy


def shaking(confident=18):
    """An estimator that sees a body whose points jitter."""
    rng = np.random.default_rng(0)

    def find(frame, index, state):
        body = person(50 + index, confident=confident)
        body.points[BODY, :2] += rng.normal(size=(18, 2))
        return [body], None

    return Estimator(find)


@pytest.fixture
def clip(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (12, 120, 160, 3)).astype(np.uint8)
    write_video(tmp_path / "clip.mp4", frames, 20)
    return Clip("a-000", str(tmp_path / "clip.mp4"), 20.0, 160, 120)


def test_keypoints_of_a_clip(clip, tmp_path):
    files = {s: pose_clip(clip, shaking(), PoseSettings(smooth=s)) for s in (True, False)}
    keypoints = {}
    for smooth, parts in files.items():
        result = json.loads(parts["result.json"])
        assert result == {"drop": None, "person": 1.0, "confident": 1.0}
        (tmp_path / "k.npz").write_bytes(parts["keypoints.npz"])
        keypoints[smooth] = load_keypoints(tmp_path / "k.npz")
    assert (keypoints[True].fps, keypoints[True].width, keypoints[True].height) == (20.0, 160, 120)
    smoothed = smooth_keypoints(keypoints[False].points, 20.0)
    np.testing.assert_array_equal(keypoints[True].points, smoothed)
    assert len(smoothed) == 12 and not np.array_equal(smoothed, keypoints[False].points)
    again = pose_clip(clip, shaking(), SETTINGS)
    assert again == files[True]


def test_few_confident_points_are_a_drop(clip):
    def dropped(confident, **settings):
        files = pose_clip(clip, shaking(confident), PoseSettings(**settings))
        return json.loads(files["result.json"])["drop"], "keypoints.npz" in files

    assert dropped(9) == (None, True)
    drop, kept = dropped(8)
    assert drop["reason"] == "few keypoints" and not kept
    assert drop["detail"] == "44% of the body points on average are confident"
    assert dropped(8, min_keypoints=0.4) == (None, True)


def test_absent_frames_do_not_count_as_unsure(clip):
    def find(frame, index, state):
        return [person(50, confident=10)] if index < 10 else [], None

    result = json.loads(pose_clip(clip, Estimator(find), SETTINGS)["result.json"])
    assert result == {"drop": None, "person": 0.8333, "confident": 0.5556}


def test_sides_that_are_exchanged_for_some_frames_are_put_right(clip, tmp_path):
    def estimator(wrong):
        def find(frame, index, state):
            body = person(50 + index)
            points = mirrored_names(body.points) if index in wrong else body.points
            return [Person(points, body.box)], None

        return Estimator(find)

    keypoints = [
        pose_clip(clip, estimator(wrong), PoseSettings(smooth=False))["keypoints.npz"]
        for wrong in ((), (5, 6))
    ]
    assert keypoints[0] == keypoints[1]


def test_nobody_in_a_clip_is_a_drop(clip):
    files = pose_clip(clip, Estimator(lambda frame, index, state: ([], None)), SETTINGS)
    assert list(files) == ["result.json"]
    assert json.loads(files["result.json"])["drop"]["reason"] == "no person"


@pytest.mark.parametrize("name", ["min_person", "max_second", "min_keypoints"])
def test_impossible_shares(name):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} 1.5 is no share"):
        PoseSettings(**{name: 1.5})
