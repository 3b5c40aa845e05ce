"""The chart of the body: the same place on the body has the same place in it, whatever the pose."""

import numpy as np
import pytest

from animate_jax.pose import skeleton as sk
from animate_jax.pose.body_places import body_places

STANDING = {
    sk.NOSE: (60, 22),
    sk.NECK: (60, 36),
    sk.RIGHT_SHOULDER: (50, 36),
    sk.RIGHT_ELBOW: (40, 50),
    sk.RIGHT_WRIST: (30, 64),
    sk.LEFT_SHOULDER: (70, 36),
    sk.LEFT_ELBOW: (80, 50),
    sk.LEFT_WRIST: (90, 64),
    sk.RIGHT_HIP: (54, 68),
    sk.RIGHT_KNEE: (50, 94),
    sk.RIGHT_ANKLE: (46, 120),
    sk.LEFT_HIP: (66, 68),
    sk.LEFT_KNEE: (70, 94),
    sk.LEFT_ANKLE: (74, 120),
}
FOREARM = sk.RIGHT_ELBOW, sk.RIGHT_WRIST


def pose(**moved):
    points = np.zeros((134, 3), np.float32)
    for point, place in STANDING.items():
        points[point] = (*moved.get(f"p{point}", place), 1)
    return points


def at(points, where, side=128):
    return np.asarray(body_places(points, side, side))[where[1], where[0]]


def turned(angle):
    """The right forearm, 17.2 pixels, turned to another direction from the elbow (40, 50)."""
    length = np.hypot(10, 14)
    return pose(p4=(40 + length * np.cos(angle), 50 + length * np.sin(angle)))


def test_a_place_on_a_limb_stays_what_it_is_when_the_limb_turns():
    angles = np.arctan2(14, -10), np.pi, -np.pi / 2 - 0.4
    for part in (0.3, 0.6, 0.9):
        found = []
        for angle in angles:
            points = turned(angle)
            elbow, wrist = points[FOREARM, :2]
            # Some pixel near the bone, not quite at the same place of it.
            where = np.round(elbow + part * (wrist - elbow)).astype(int)
            found.append(at(points, where))
        np.testing.assert_allclose(found, np.mean(found, 0, keepdims=True).repeat(3, 0), atol=0.03)
        assert min(place[2] for place in found) == 1
    # From the elbow to the wrist it goes along the chart's arm.
    along = [at(pose(), where)[0] for where in ((38, 53), (35, 57), (32, 61))]
    assert (np.diff(along) < -0.1).all() and -1.55 < min(along) < max(along) < -0.95


def test_exactly_where_both_poses_have_a_pixel_there():
    straight = at(pose(p4=(20, 50)), (30, 52))
    down = at(pose(p4=(40, 70)), (42, 60))  # the same, a quarter turn: 10 along, 2 to the side
    np.testing.assert_allclose(straight, down, atol=1e-5)
    other_side = at(pose(p4=(40, 70)), (38, 60))
    assert abs(other_side[1] - down[1]) > 0.05


def test_latents_are_places_some_pixels_apart():
    fine = np.asarray(body_places(pose(), 128, 128))
    points = pose()
    points[:, :2] = (points[:, :2] + 0.5) / 4 - 0.5
    np.testing.assert_allclose(
        body_places(pose(), 32, 32, scale=4), body_places(points, 32, 32), atol=1e-4
    )
    # A latent lies in the middle of its 4 x 4 pixels.
    middle = fine.reshape(32, 4, 32, 4, 3)[:, 1:3, :, 1:3].mean((1, 3))
    inside = (np.ptp(fine.reshape(32, 4, 32, 4, 3), axis=(1, 3)) < 0.15).all(-1)
    coarse = np.asarray(body_places(pose(), 32, 32, scale=4))
    assert inside.sum() > 300
    np.testing.assert_allclose(coarse[inside], middle[inside], atol=0.03)


def test_size_of_the_person_does_not_matter():
    points = pose()
    points[:, :2] *= 2
    large = np.asarray(body_places(points, 256, 256))
    np.testing.assert_allclose(large[::2, ::2], body_places(pose(), 128, 128), atol=1e-4)


def test_mirrored():
    points = pose(p4=(20, 50))
    flipped = points.copy()
    flipped[:, 0] = 127 - flipped[:, 0]
    flipped = flipped[sk.MIRROR]
    there, back = (np.asarray(body_places(x, 128, 128)) for x in (points, flipped))
    back = back[:, ::-1] * np.float32([-1, 1, 1])
    clear = np.abs(there - back).max(-1) < 1e-4
    assert clear.mean() > 0.97  # the rest is as near to one bone as to another


def test_background_and_missing_points():
    places = np.asarray(body_places(pose(), 128, 128))
    assert (places[:, -8:] == 0).all() and (places[36:69, 60, 2] == 1).all()
    assert 0.1 < (places[..., 2] > 0).mean() < 0.6
    assert (np.asarray(body_places(0 * pose(), 16, 16)) == 0).all()
    unseen = pose()
    unseen[sk.RIGHT_WRIST, 2] = 0.2
    without = np.asarray(body_places(unseen, 128, 128))
    assert without[64, 30, 2] == 0 and places[64, 30, 2] == 1
    np.testing.assert_array_equal(without[80:], places[80:])
    face_only = np.zeros((134, 3), np.float32)
    face_only[[sk.NOSE, sk.RIGHT_EYE]] = ((60, 22, 1), (57, 20, 1))
    assert (np.asarray(body_places(face_only, 64, 64)) == 0).all()


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_any_number_of_poses(shape):
    points = np.broadcast_to(pose(), (*shape, 134, 3))
    many = np.asarray(body_places(points, 20, 24, scale=5))
    assert many.shape == (*shape, 20, 24, 3) and many.dtype == np.float32
    one = np.asarray(body_places(pose(), 20, 24, scale=5))
    np.testing.assert_allclose(many, np.broadcast_to(one, many.shape), atol=1e-6)
