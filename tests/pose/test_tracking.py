import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.pose.keypoints import POINTS
from animate_jax.pose.skeleton import MIRROR
from animate_jax.pose.tracking import (
    Person,
    box_of,
    joined,
    mirrored_names,
    overlap,
    select_track,
    steady_sides,
    track,
)


def person(x, y=200.0, height=200.0, mark=0.9):
    """A person whose points all carry the score `mark`, by which tests recognise them."""
    points = np.zeros((POINTS, 3), np.float32)
    points[:18, 0] = x + np.linspace(-height / 6, height / 6, 18)
    points[:18, 1] = y + np.linspace(-height / 2, height / 2, 18)
    points[:18, 2] = mark
    return Person(points, box_of(points))


def marks(points):
    return sorted({round(float(s), 2) for s in points[:, 0, 2]})


def test_overlap():
    assert overlap(np.array([0, 0, 2, 2.0]), np.array([1, 0, 3, 2.0])) == pytest.approx(1 / 3)
    assert overlap(np.array([0, 0, 1, 1.0]), np.array([2, 2, 3, 3.0])) == 0
    assert overlap(np.zeros(4), np.zeros(4)) == 0


def test_box_ignores_unsure_points():
    someone = person(100)
    points = someone.points.copy()
    points[5] = (900, 900, 0.1)
    assert box_of(points)[2] < 200
    assert box_of(np.zeros((POINTS, 3), np.float32)).tolist() == [0, 0, 0, 0]


def test_people_who_pass_each_other_keep_their_tracks():
    frames = [[person(100 + 12 * i, mark=0.9), person(500 - 12 * i, mark=0.8)] for i in range(34)]
    frames = [people[::-1] if i % 3 else people for i, people in enumerate(frames)]
    tracks = track(frames)
    assert [len(t.people) for t in tracks] == [34, 34]
    assert sorted(marks(t.points()) for t in tracks) == [[0.8], [0.9]]


def test_gaps_are_bridged_and_left_empty():
    frames = [[person(100 + 5 * i)] for i in range(40)]
    for i in range(12, 22):
        frames[i] = []
    (only,) = track(frames)
    points = only.points()
    assert points.shape == (40, POINTS, 3) and len(only.people) == 30
    assert np.all(points[12:22] == 0) and np.all(points[22, :18, 2] > 0)
    assert len(track(frames, max_gap=5)) == 2


def test_a_newcomer_elsewhere_is_somebody_else():
    frames = [[person(100)] for _ in range(5)] + [[person(900)] for _ in range(3)]
    assert [len(t.people) for t in track(frames)] == [5, 3]


def test_who_is_seen_alone_at_any_time_is_one_person():
    away = [[person(100)]] * 20 + [[]] * 40 + [[person(100)]] * 20
    closer = [[person(100, height=200)]] * 10 + [[person(400, y=900, height=900)]] * 5
    running = [[person(100 + 90 * i)] for i in range(10)]
    for frames, parts in ((away, 2), (closer, 2), (running, 10)):
        tracks = track(frames)
        assert len(tracks) == parts
        (one,) = joined(tracks)
        assert list(one.people) == [i for i, people in enumerate(frames) if people]
    beside = [[person(100)]] * 20 + [[person(100), person(900)]] * 3 + [[person(900)]] * 40
    tracks = track(beside)
    assert joined(tracks) == tracks and len(tracks) == 2
    # A network that sees one of two people at a time, now this one and now that.
    turns = [[person(100 if i // 5 % 2 else 900)] for i in range(40)]
    assert len(joined(track(turns))) == 2
    assert joined([]) == []


def test_one_detection_serves_one_track():
    frames = [[person(100, mark=0.9), person(180, mark=0.8)] for _ in range(4)]
    frames += [[person(104, mark=0.9)] for _ in range(4)]
    tracks = track(frames)
    assert [len(t.people) for t in tracks] == [8, 4]
    assert marks(tracks[0].points()) == [0.9]


def test_who_dances_is_missed_once_and_stays_before_a_small_bystander():
    frames = [[person(300, height=400, mark=0.8), person(900, height=40, mark=0.5)]] * 60
    frames[30] = frames[30][1:]
    assert marks(select_track(track(frames))) == [0.0, 0.8]


def test_selection_by_presence():
    frames = [
        [person(100, height=150, mark=0.5), person(600, height=200, mark=0.6)] for _ in range(6)
    ]
    for people in frames[:3]:
        people.append(person(1200, height=250, mark=0.7))
    tracks = track(frames)
    assert marks(select_track(tracks)) == [0.6]
    assert marks(select_track(tracks, 0)) == [0.6]
    assert marks(select_track(tracks, 1)) == [0.5]
    assert marks(select_track(tracks[::-1], 2)) == [0.0, 0.7]
    with pytest.raises(UserError, match="no person 3: 3 found"):
        select_track(tracks, 3)
    with pytest.raises(UserError, match="no person -1"):
        select_track(tracks, -1)
    with pytest.raises(UserError, match="no person was found"):
        select_track(track([[], []]))


def walker(frames=40):
    """Right side at x about 300, left side at about 200; limbs swing by 20 pixels."""
    points = np.zeros((frames, POINTS, 3), np.float32)
    points[:, :24, 2] = 0.9
    points[:, :24, 1] = np.linspace(100, 500, 24)
    points[:, :24, 0] = 250
    right = [2, 3, 4, 8, 9, 10, 14, 16, 21, 22, 23]
    swing = 20 * np.sin(np.arange(frames) / 5)[:, None]
    points[:, right, 0] = 300 + swing
    points[:, MIRROR[right], 0] = 200 - swing
    points[:, MIRROR[right], 1] = points[:, right, 1]
    return points


def test_exchanged_sides_are_put_right():
    truth = walker()
    seen = truth.copy()
    wrong = [7, 8, 9, 10, 11, 20, 30, 31]
    seen[wrong] = mirrored_names(seen[wrong])
    np.testing.assert_array_equal(steady_sides(seen), truth)
    np.testing.assert_array_equal(steady_sides(truth), truth)
    seen[15:18] = 0  # a gap
    expected = truth.copy()
    expected[15:18] = 0
    np.testing.assert_array_equal(steady_sides(seen), expected)


@pytest.mark.parametrize("score", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("speed", [0.0, 2.0, 6.0])
def test_a_side_that_is_hardly_seen_exchanges_nothing(score, speed):
    points = walker()
    far, near = points.copy(), [2, 3, 4, 8, 9, 10, 14, 16, 21, 22, 23]
    far[:, MIRROR[near]] = far[:, near] + (6, 0, 0)
    far[:, :24, 0] += speed * np.arange(40)[:, None]
    far[:, :24, 0] += np.random.default_rng(0).normal(size=(40, 24))
    for hidden in (near, MIRROR[near]):
        seen = far.copy()
        seen[:, hidden, 2] = score
        np.testing.assert_array_equal(steady_sides(seen), seen)


def test_legs_that_cross_stay_as_they_are():
    crossing = walker(60)
    swing = 60 * np.sin(np.arange(60) / 5)
    crossing[:, [8, 9, 10], 0] = 250 + swing[:, None]
    crossing[:, [11, 12, 13], 0] = 250 - swing[:, None]
    np.testing.assert_array_equal(steady_sides(crossing), crossing)


def test_mirrored_names_is_its_own_inverse_and_keeps_the_face():
    points = np.random.default_rng(0).uniform(0, 1, (3, POINTS, 3)).astype(np.float32)
    once = mirrored_names(points)
    np.testing.assert_array_equal(mirrored_names(once), points)
    np.testing.assert_array_equal(once[:, 24:92], points[:, 24:92])
    np.testing.assert_array_equal(once[:, 92:113], points[:, 113:])
    np.testing.assert_array_equal(once[:, 4], points[:, 7])


def test_boxes_of_very_different_heights_are_two_people():
    high, low = person(100), person(100)
    low = Person(low.points, high.box + np.array([0, 0.8, 0, 0]) * (high.box[3] - high.box[1]))
    assert [len(t.people) for t in track([[high], [high], [low]])] == [2, 1]
    half = Person(low.points, high.box + np.array([0, 0.4, 0, 0]) * (high.box[3] - high.box[1]))
    assert [len(t.people) for t in track([[high], [high], [half]])] == [3]
