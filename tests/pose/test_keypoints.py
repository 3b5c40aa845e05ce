import contextlib

import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.pose import keypoints as kp
from animate_jax.pose import skeleton


def random_points(frames=5):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 400, (frames, kp.POINTS, 3)).astype(np.float32)
    points[..., 2] = rng.uniform(0, 1, points.shape[:2])
    return points


def test_groups_cover_the_schema_and_agree_with_the_skeleton():
    parts = [kp.BODY, kp.FEET, kp.FACE, kp.LEFT_HAND, kp.RIGHT_HAND]
    assert [p.stop - p.start for p in parts] == [18, 6, 68, 21, 21]
    assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
    assert parts[-1].stop == kp.POINTS == skeleton.NUM_POINTS
    for index, name in enumerate(kp.BODY_NAMES):
        assert getattr(skeleton, name.upper()) == index


def test_round_trip(tmp_path):
    before = kp.Keypoints(random_points(), 29.97, 640, 480)
    before.save(tmp_path / "new" / "pose.npz")
    after = kp.load_keypoints(tmp_path / "new" / "pose.npz")
    np.testing.assert_array_equal(after.points, before.points)
    assert after.points.dtype == np.float32
    assert (after.fps, after.width, after.height) == (29.97, 640, 480)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["pose.npz"]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda p: dict(points=p[:, :18]), r"expected \(frames, 134, 3\)"),
        (lambda p: dict(points=p[:0]), r"expected \(frames, 134, 3\)"),
        (lambda p: dict(points=p.astype(np.float64)), "expected float32"),
        (lambda p: dict(points=np.where(p == p[1, 1, 1], np.nan, p)), "NaN"),
        (lambda p: dict(points=p * np.float32(2)), "range 0 to 1"),
        (lambda p: dict(fps=np.float64(0)), "frames per second"),
        (lambda p: dict(size=np.array([0, 480])), "0x480"),
        (lambda p: dict(size=np.array([1, 2, 3])), "malformed"),
        (lambda p: dict(points=np.array([{"a": 1}], object)), "not a keypoint file"),
    ],
)
def test_malformed_files_are_refused(tmp_path, change, words):
    good = dict(points=random_points(), fps=np.float64(25), size=np.array([640, 480]))
    np.savez(tmp_path / "pose.npz", **good)
    kp.load_keypoints(tmp_path / "pose.npz")
    np.savez(tmp_path / "pose.npz", **{**good, **change(good["points"])})
    with pytest.raises(UserError, match=words):
        kp.load_keypoints(tmp_path / "pose.npz")


def test_parts_of_the_picture_are_no_pixels():
    points = random_points()
    points[..., :2] /= np.abs(points[..., :2]).max()
    with pytest.raises(UserError, match="multiply them by its size, 640x480"):
        kp.check_keypoints(kp.Keypoints(points, 25.0, 640, 480), "pose.npz")


def test_the_first_pose_in_a_picture_of_another_size():
    points = random_points()
    points[0, 1, :2] = 0, 63  # middles of the first column and of the 64th row
    pose = kp.first_pose(kp.Keypoints(points, 25.0, 64, 64), 512, 256)
    np.testing.assert_allclose(pose[1], [3.5, 253.5, points[0, 1, 2]])


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "other.npz", points=random_points())
    np.save(tmp_path / "array.npy", random_points())
    for name in ("text.npz", "empty.npz", "other.npz", "array.npy"):
        with pytest.raises(UserError, match="not a keypoint file"):
            kp.load_keypoints(tmp_path / name)
    with pytest.raises(UserError, match="no such keypoint file"):
        kp.load_keypoints(tmp_path / "missing.npz")
    (tmp_path / "dance.mp4").write_bytes(b"a video")
    with pytest.raises(UserError, match="give a video with --driving"):
        kp.load_keypoints(tmp_path / "dance.mp4")
    with pytest.raises(UserError, match="no such file"):
        kp.load_written_points(tmp_path / "missing.json")


def test_damaged_files_are_refused_wherever_the_damage_is(tmp_path):
    path = tmp_path / "pose.npz"
    kp.Keypoints(random_points(), 25.0, 640, 480).save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole) - 8, len(whole) // 60):
        path.write_bytes(whole[:place] + bytes(8 * [0xA5]) + whole[place + 8 :])
        with contextlib.suppress(UserError):  # where an archive's dates lie nothing is lost
            kp.load_keypoints(path)
    flags = whole.rindex(b"PK\x01\x02") + 8  # of the last entry in the archive's directory
    path.write_bytes(whole[:flags] + bytes([whole[flags] | 1]) + whole[flags + 1 :])
    with pytest.raises(UserError, match="not a keypoint file .*encrypted"):
        kp.load_keypoints(path)


def test_bad_keypoints_are_not_saved(tmp_path):
    with pytest.raises(UserError, match="end the name in .npz"):
        kp.Keypoints(random_points(), 25, 640, 480).save(tmp_path / "pose.json")
    poisoned = random_points()
    poisoned[2, 3, 0] = np.inf
    with pytest.raises(UserError, match="infinity"):
        kp.Keypoints(poisoned, 25, 640, 480).save(tmp_path / "pose.npz")
    assert list(tmp_path.iterdir()) == []


def test_wholebody_becomes_openpose():
    points = np.stack([np.arange(133), 1000 + np.arange(133)], axis=-1).astype(np.float32)
    scores = np.linspace(0.1, 0.9, 133).astype(np.float32)
    ours = kp.from_wholebody133(points, scores)
    coco = dict(
        nose=0,
        left_eye=1,
        right_eye=2,
        left_ear=3,
        right_ear=4,
        left_shoulder=5,
        right_shoulder=6,
        left_elbow=7,
        right_elbow=8,
        left_wrist=9,
        right_wrist=10,
        left_hip=11,
        right_hip=12,
        left_knee=13,
        right_knee=14,
        left_ankle=15,
        right_ankle=16,
    )
    for index, name in enumerate(kp.BODY_NAMES):
        if name != "neck":
            assert ours[index].tolist() == [*points[coco[name]], scores[coco[name]]]
    np.testing.assert_allclose(ours[1], [5.5, 1005.5, scores[5]])
    np.testing.assert_array_equal(ours[18:, 0], np.arange(17, 133))
    many = kp.from_wholebody133(np.stack([points] * 3), np.stack([scores] * 3))
    np.testing.assert_array_equal(many[2], ours)
    with pytest.raises(UserError, match="133"):
        kp.from_wholebody133(points[:17], scores[:17])


def test_points_written_by_hand(tmp_path):
    file = tmp_path / "pose.json"
    file.write_text(
        '{"right_shoulder": [10, 40], "left_shoulder": [30, 42.5], "left_heel": [1, 2]}'
    )
    points = kp.load_written_points(file)
    assert points.shape == (kp.POINTS, 3) and points.dtype == np.float32
    np.testing.assert_array_equal(points[skeleton.RIGHT_SHOULDER], [10, 40, 1])
    np.testing.assert_array_equal(points[skeleton.NECK], [20, 41.25, 1])
    np.testing.assert_array_equal(points[20], [1, 2, 1])
    assert points[:, 2].sum() == 4
    file.write_text('{"neck": [5, 6], "right_shoulder": [10, 40], "left_shoulder": [30, 42]}')
    np.testing.assert_array_equal(kp.load_written_points(file)[skeleton.NECK], [5, 6, 1])


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is not JSON like"),
        ("[1, 2]", "is not JSON like"),
        ('{"nose": "left"}', "is not JSON like"),
        ('{"tail": [1, 2]}', "no point 'tail'; there are nose, neck"),
        ('{"nose": [1, 2, 3]}', "nose is .1, 2, 3."),
        ('{"nose": [1, NaN]}', "nose is .1, nan."),
    ],
)
def test_bad_points_written_by_hand(tmp_path, text, words):
    (tmp_path / "pose.json").write_text(text)
    with pytest.raises(UserError, match=words):
        kp.load_written_points(tmp_path / "pose.json")
