import numpy as np
import pytest
import skimage.data

from animate_jax.errors import UserError
from animate_jax.pose import blazepose
from animate_jax.pose.keypoints import BODY_NAMES, FACE, LEFT_HAND, RIGHT_HAND
from animate_jax.pose.tracking import track
from animate_jax.video.reading import read_frames

CAMERAS = ("cam01", "cam02", "cam03", "cam04")


@pytest.fixture(scope="module")
def model(blazepose_models):
    return blazepose.load_blazepose(*blazepose_models)


def test_anchors():
    anchors = blazepose._anchors()
    assert anchors.shape == (2 * 28 * 28 + 2 * 14 * 14 + 6 * 7 * 7, 2)
    np.testing.assert_allclose(anchors[[0, 1, 2]], np.array([[0.5, 0.5]] * 2 + [[1.5, 0.5]]) / 28)
    np.testing.assert_allclose(anchors[-1], [6.5 / 7, 6.5 / 7])


def test_region_maps_its_square_to_the_picture():
    upright = blazepose._region(np.array([100.0, 200]), np.array([100.0, 160]))
    assert upright.side == 2 * 40 * 1.25
    np.testing.assert_allclose(upright.to_picture([[0, 0], [1, 1]]), [[50, 150], [150, 250]])
    lying = blazepose._region(np.array([100.0, 200]), np.array([140.0, 200]))  # head to the right
    np.testing.assert_allclose(lying.to_picture([[0.5, 0], [1, 0.5]]), [[150, 200], [100, 250]])
    assert blazepose._region(np.zeros(2), np.zeros(2)) is None


@pytest.mark.parametrize("length, tolerance", [(60, 0.01), (300, 0.01), (700, 0.01)])
def test_crop_shows_the_region_upright(length, tolerance):
    from PIL import Image

    y, x = np.mgrid[:1200, :1000]
    picture = np.stack([x / 1000, y / 1200, np.zeros_like(x)], axis=-1)
    picture = Image.fromarray(np.round(picture * 255).astype(np.uint8))
    region = blazepose._region(np.array([480.0, 610]), np.array([480.0, 610]) + length * 0.5)
    crop = blazepose._crop(picture, region) / 255
    grid = (np.stack(np.meshgrid(np.arange(256), np.arange(256)), axis=-1) + 0.5) / 256
    expected = region.to_picture(grid) / (1000, 1200)
    inside = ((expected > 0.02) & (expected < 0.98)).all(axis=-1)
    assert inside.mean() > 0.3
    assert np.abs(crop[..., :2] - expected)[inside].max() < tolerance
    outside = ((expected < -0.05) | (expected > 1.05)).any(axis=-1)
    assert np.all(crop[outside] == 0)


def test_heatmaps_refine_points_nearby():
    heatmaps = np.full((64, 64, 39), -9.0)
    heatmaps[20, 33, 0] = 4.0  # near point 0
    heatmaps[50, 50, 1] = 4.0  # far from point 1
    heatmaps[31, 31, 2] = -1.0  # unsure
    points = np.full((39, 2), 0.5)
    points[0] = (32.5 / 64, 21.5 / 64)
    points[3] = (1.2, 0.5)  # outside
    refined = blazepose._refine(points, heatmaps)
    np.testing.assert_allclose(refined[0], [33 / 64, 20 / 64], atol=2e-3)
    np.testing.assert_array_equal(refined[1:], points[1:])


def test_suppression_averages_by_score():
    one = np.array([[0, 0], [0.2, 0.2], [0.1, 0.3], [0.1, 0.1], [0, 0], [0, 0]])
    rows = np.stack([one, one + 0.02, one + 0.6])
    people = blazepose._weighted_suppression(rows, np.array([0.9, 0.3, 0.5]))
    assert len(people) == 2
    np.testing.assert_allclose(people[0], one + 0.005)
    np.testing.assert_allclose(people[1], one + 0.6)


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_person_is_found_in_every_sampled_frame(model, clips, camera):
    frames = list(read_frames(clips[f"single/{camera}"], stride=9))
    assert len(frames) == 12
    for frame in frames:
        people, _ = blazepose.find_people(model, frame)
        points = people[0].points
        named = dict(zip(BODY_NAMES, points[:18], strict=True))
        assert (points[:18, 2] > 0.3).sum() >= 14
        # Everybody in these clips is on their feet.
        assert named["neck"][1] < named["left_hip"][1] < points[[10, 13], 1].max()
        height = people[0].box[3] - people[0].box[1]
        assert 400 < height < 1100
        assert np.all(points[FACE] == 0)
        assert np.all(points[LEFT_HAND] == 0) and np.all(points[RIGHT_HAND] == 0)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("camera", ["cam01", "cam04"])
def test_turned_pictures_give_turned_points(model, clips, camera, turns):
    for frame in read_frames(clips[f"single/{camera}"], stride=40, limit=3):
        upright = blazepose.find_people(model, frame)[0][0]
        turned = np.ascontiguousarray(np.rot90(frame, turns))
        points = blazepose.find_people(model, turned)[0][0].points.copy()
        for k in range(turns):  # a quarter turn back maps (x, y) to (width - 1 - y, x)
            width = frame.shape[1] if (turns - k) % 2 else frame.shape[0]
            points[:, :2] = np.stack([width - 1 - points[:, 1], points[:, 0]], axis=1)
        height = upright.box[3] - upright.box[1]
        sure = (upright.points[:, 2] > 0.5) & (points[:, 2] > 0.5)
        distance = np.linalg.norm(points - upright.points, axis=1)[sure] / height
        assert sure.sum() >= 16
        # The network changes its mind about single wrists.
        assert np.median(distance) < 0.015 and np.percentile(distance, 90) < 0.025


def test_following_agrees_with_detecting(model, clips):
    """Frame by frame, a followed person is where the detector would find the person."""
    followed, moves, differences = (), [], []
    last = None
    for index, frame in enumerate(read_frames(clips["single/cam01"], limit=24)):
        people, followed = blazepose.find_people(model, frame, followed, detect=False)
        assert len(people) == len(followed) == 1
        body = people[0].points[:18]
        if index % 6 == 0:
            alone = blazepose.find_people(model, frame)[0][0].points[:18]
            differences.append(np.linalg.norm(alone[:, :2] - body[:, :2], axis=1))
        if last is not None:
            moves.append(np.linalg.norm(body[:, :2] - last[:, :2], axis=1))
        last = body
    assert np.median(moves) < 8 and np.percentile(moves, 95) < 30  # of about 740 pixels height
    assert np.median(differences) < 10


def test_two_people_give_two_tracks(model, clips):
    followed, detections = (), []
    for frame in read_frames(clips["multi/cam04"], limit=20):
        people, followed = blazepose.find_people(model, frame, followed)
        detections.append(people)
    tracks = track(detections)
    assert [len(t.people) for t in tracks[:2]] == [20, 20]
    first, second = tracks[0].points(), tracks[1].points()
    assert np.linalg.norm(first[:, 1, :2] - second[:, 1, :2], axis=1).min() > 100


def test_astronaut(model):
    """A half-length portrait (512 x 512): sides, places and visibility of the upper body."""
    people, _ = blazepose.find_people(model, skimage.data.astronaut())
    assert len(people) == 1
    points = dict(zip(BODY_NAMES, people[0].points[:18], strict=True))
    expected = {
        "nose": (217, 127),
        "right_eye": (203, 102),
        "left_eye": (242, 109),
        "right_shoulder": (95, 220),
        "left_shoulder": (305, 255),
    }
    for name, place in expected.items():
        assert points[name][2] > 0.9
        assert np.linalg.norm(points[name][:2] - place) < 25, name
    assert np.all(people[0].points[[9, 10, 12, 13, *range(18, 24)], 2] == 0)  # outside the picture


def test_nobody(model):
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    for picture in (np.zeros((300, 200, 3), np.uint8), noise, np.zeros((1, 1, 3), np.uint8)):
        assert blazepose.find_people(model, picture) == ([], ())


def test_unfit_files_are_refused(tmp_path, blazepose_models):
    detector, landmarks = blazepose_models
    (tmp_path / "text.tflite").write_text("not a network")
    with pytest.raises(UserError, match="not a readable .tflite"):
        blazepose.load_blazepose(tmp_path / "text.tflite", landmarks)
    with pytest.raises(UserError, match="not the expected BlazePose network"):
        blazepose.load_blazepose(landmarks, detector)


def test_missing_package_says_what_to_install(monkeypatch, blazepose_models):
    import sys

    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(UserError, match=r"pip install 'animate-jax\[pose\]'"):
        blazepose.load_blazepose(*blazepose_models)
