"""Pictures and keypoints of a sample agree, and nobody is cut."""

import dataclasses

import numpy as np
import pytest
from synthetic_records import BACKGROUND, DOTS, dot_places, dotted_record

from animate_jax.data.config import DataConfig, SetConfig
from animate_jax.data.crop import Crop, body_box, choose_crop
from animate_jax.data.sample import make_sample
from animate_jax.pose import skeleton as sk

CLIP = (320, 240)
PLACES = {
    sk.NOSE: (160, 60),
    sk.RIGHT_WRIST: (104.5, 120),
    sk.LEFT_WRIST: (220, 105.5),
    sk.RIGHT_ANKLE: (132, 184),
    sk.LEFT_ANKLE: (192, 180),
    sk.LEFT_HAND_START + 8: (232, 150),
}
CONFIG = DataConfig(sets=(SetConfig("dots"),), margin=0, zoom=(0.7, 1.0))


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """Nobody moves: the reference shows the dots where the frames do."""
    points = {point: np.tile(place, (6, 1)) for point, place in PLACES.items()}
    return dotted_record(tmp_path_factory.mktemp("still"), points, *CLIP)


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    steps = np.arange(24)[:, None] * np.array([2.0, 1.0])
    points = {point: np.array(place) - [40, 20] + steps for point, place in PLACES.items()}
    return dotted_record(tmp_path_factory.mktemp("moving"), points, *CLIP)


def farthest(picture, points):
    """Pixels between the dots' centres and their keypoints, at most; all dots must be there, and
    not all on one side of their keypoints."""
    found = dot_places(picture)
    assert set(found) == set(DOTS)
    offsets = np.array([found[point] - points[point, :2] for point in DOTS])
    assert np.abs(offsets.mean(axis=0)).max() < 0.4
    return np.abs(offsets).max()


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("crop", ["person", "pad"])
@pytest.mark.parametrize("size", [(96, 96), (128, 128), (192, 96), (144, 272), (248, 192)])
def test_keypoints_lie_on_the_picture(still, moving, size, crop, flip):
    config = dataclasses.replace(CONFIG, width=size[0], height=size[1], crop=crop, flip=flip)
    for seed in range(4):
        sample = make_sample(still, config, np.random.default_rng(seed))
        points = unmirrored(sample["keypoints"][0], flip)
        assert farthest(sample["frames"][0], points) < 1
        assert farthest(sample["reference"], points) < 1
        clip = dataclasses.replace(config, frames=3, stride=7)
        sample = make_sample(moving, clip, np.random.default_rng(seed))
        points = unmirrored(sample["keypoints"], flip)
        assert max(map(farthest, sample["frames"], points)) < 1
        assert sample["first"] in range(10)


def unmirrored(points, flip):
    """The dot of the right wrist, in a mirrored picture, is seen at the left wrist."""
    return points[..., sk.MIRROR, :] if flip else points


def test_nobody_is_cut_in_any_frame(moving):
    """The person walks 46 pixels; a crop of the frame alone would leave the reference outside."""
    config = dataclasses.replace(CONFIG, width=128, height=128, margin=20, zoom=(0.3, 0.3))
    clips = dataclasses.replace(config, frames=4, stride=7)
    for seed in range(8):
        sample = make_sample(moving, config, np.random.default_rng(seed))
        assert set(dot_places(sample["reference"])) == set(DOTS)
        assert set(dot_places(sample["frames"][0])) == set(DOTS)
        sample = make_sample(moving, clips, np.random.default_rng(seed))
        for picture in (sample["reference"], *sample["frames"]):
            assert set(dot_places(picture)) == set(DOTS)


def test_mirroring_changes_nothing_else(still):
    same = dict(width=64, height=64, frames=2)
    plain, mirrored = (
        make_sample(still, dataclasses.replace(CONFIG, flip=flip, **same), np.random.default_rng(3))
        for flip in (0.0, 1.0)
    )
    for name in ("reference", "frames"):
        difference = plain[name].astype(int) - mirrored[name][..., ::-1, :]
        assert np.abs(difference).max() <= 8  # the scaler's rounding
    expected = plain["keypoints"][:, sk.MIRROR]
    expected[..., 0] = 63 - expected[..., 0]
    np.testing.assert_allclose(mirrored["keypoints"], expected, atol=1e-4)
    assert mirrored["keypoints"].dtype == np.float32


def test_scores_and_unseen_points_stay(still):
    points = still["keypoints"].copy()
    points[:, sk.NECK] = 70, 50, 0.25
    sample = make_sample({**still, "keypoints": points}, CONFIG, np.random.default_rng(0))
    assert sample["keypoints"][0, sk.NECK, 2] == 0.25
    assert np.count_nonzero(sample["keypoints"][0, :, 2]) == len(DOTS) + 1


def test_bars_are_black_and_only_where_needed(still):
    config = dataclasses.replace(CONFIG, width=64, height=128, crop="pad", flip=0.0)
    picture = make_sample(still, config, np.random.default_rng(0))["frames"][0]
    rows = picture.max(axis=(1, 2))
    # 320 x 240 in a width of 64: 48 rows of 128.
    assert np.flatnonzero(rows > 30).tolist() == list(range(40, 88))
    assert picture[:40].max() == picture[88:].max() == 0
    for crop in ("person", "fill"):
        config = dataclasses.replace(CONFIG, width=80, height=64, crop=crop)
        for seed in range(5):
            picture = make_sample(still, config, np.random.default_rng(seed))["frames"][0]
            assert np.abs(picture[[0, 0, -1, -1], [0, -1, 0, -1]] - BACKGROUND).max() < 12


def random_body(rng, picture):
    corners = rng.uniform(0, 1, (2, 2)) * picture
    return (*corners.min(0), *corners.max(0))


def test_crops_contain_the_body():
    rng = np.random.default_rng(0)
    padded = 0
    for _ in range(2000):
        picture = tuple(rng.integers(32, 700, 2).tolist())
        size = tuple((8 * rng.integers(4, 60, 2)).tolist())
        body = random_body(rng, picture)
        crop = choose_crop(body, picture, size, (0.5, 1.0), False, rng)
        x0, y0, x1, y1 = crop.source
        assert 0 <= x0 < x1 <= picture[0] and 0 <= y0 < y1 <= picture[1]
        assert not np.any(np.array([crop.source, crop.target]) % 2)
        # To whole even pixels: an edge moves by one at most, or two where the side is odd.
        assert x0 <= body[0] + 1 and y0 <= body[1] + 1
        assert x1 >= body[2] - 2 and y1 >= body[3] - 2
        whole = crop.target == (0, 0, *size)
        fits = max((body[2] - body[0]) / size[0], (body[3] - body[1]) / size[1]) <= min(
            np.array(picture) / size
        )
        assert whole or not fits
        padded += not whole
        if np.ptp(np.reshape([crop.source, crop.target], (2, 2, 2)), axis=1).min() > 100:
            across, down = scales(crop)
            assert abs(np.log(across / down)) < 0.03
    assert 200 < padded < 1800


def scales(crop):
    source, target = np.reshape(crop.source, (2, 2)), np.reshape(crop.target, (2, 2))
    return (target[1] - target[0]) / (source[1] - source[0])


def test_zoom_and_place_are_spread():
    rng = np.random.default_rng(0)
    body = (300, 200, 340, 260)
    crops = [choose_crop(body, (640, 480), (64, 64), (0.6, 0.9), False, rng) for _ in range(300)]
    sides = np.array([crop.source[2] - crop.source[0] for crop in crops])
    assert 0.6 * 480 - 2 <= sides.min() < 0.63 * 480 and 0.87 * 480 < sides.max() <= 0.9 * 480 + 2
    lefts = np.array([crop.source[0] for crop in crops])
    assert lefts.min() < 30 and lefts.max() > 270
    small = choose_crop(None, (640, 480), (64, 64), (0.5, 0.5), False, rng)
    assert small.source[2] - small.source[0] == 240
    # A body that asks for more than the zoom gets it, and no more.
    large = choose_crop((10, 10, 110, 410), (640, 480), (64, 64), (0.5, 0.5), False, rng)
    assert large.source[3] - large.source[1] in range(400, 404)


def test_body_box_has_room_for_hair_and_toes():
    points = np.zeros((2, sk.NUM_POINTS, 3), np.float32)
    points[:, sk.NOSE] = 100, 50, 1
    points[:, sk.NECK] = 100, 70, 1
    points[0, sk.LEFT_ANKLE] = 120, 180, 0.9
    points[1, sk.RIGHT_WRIST] = 60, 100, 0.31
    points[1, sk.LEFT_WRIST] = 5, 5, 0.3  # not seen
    assert body_box(points, (640, 480)) == (45, 20, 135, 195)
    assert body_box(points, (110, 190)) == (45, 20, 110, 190)
    assert body_box(points * [1, 1, 0], (640, 480)) is None
    behind = points.copy()
    behind[:, [sk.NOSE, sk.NECK], 2] = 0
    behind[0, sk.LEFT_ANKLE, :2] = 60, 170
    box = body_box(behind, (640, 480))
    np.testing.assert_allclose(box, (52.5, 92.5, 67.5, 177.5), atol=1e-4)


def test_points_of_a_known_crop():
    points = np.zeros((sk.NUM_POINTS, 3), np.float32)
    points[sk.RIGHT_WRIST] = 30, 50, 0.7
    crop = Crop((10, 20, 90, 60), (0, 16, 160, 96), (160, 112), False)
    np.testing.assert_allclose(crop.points(points)[sk.RIGHT_WRIST], (40.5, 76.5, 0.7))
    crop = dataclasses.replace(crop, flip=True)
    np.testing.assert_allclose(crop.points(points)[sk.LEFT_WRIST], (118.5, 76.5, 0.7))
