"""The rasteriser against OpenCV's own drawing, and its behaviour under jit, vmap and bad input."""

import colorsys
import functools
import math

import cv2
import jax
import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.pose import skeleton as sk
from animate_jax.pose.render import draw_skeletons, place_points

# Direction in degrees (90 is down), its spread, and length in heads, from each point's parent.
BODY_POSE = {
    0: (-90, 15, 1.0),
    2: (175, 6, 0.9),
    3: (130, 50, 1.4),
    4: (130, 70, 1.2),
    5: (5, 6, 0.9),
    6: (50, 50, 1.4),
    7: (50, 70, 1.2),
    8: (102, 3, 2.4),
    9: (98, 25, 1.8),
    10: (90, 25, 1.7),
    11: (78, 3, 2.4),
    12: (82, 25, 1.8),
    13: (90, 25, 1.7),
    14: (-135, 8, 0.25),
    15: (-45, 8, 0.25),
    16: (170, 10, 0.3),
    17: (10, 10, 0.3),
}


def random_person(rng, height, width, parts):
    """A plausible person, possibly half outside; parts: body, all, or patchy (10 % missing)."""
    points = np.zeros((sk.NUM_POINTS, 3), np.float32)
    head = min(height, width) * rng.uniform(0.06, 0.14)
    points[sk.NECK, :2] = width * rng.uniform(-0.1, 1.1), height * rng.uniform(0, 0.6)
    for point in sk.TREE_ORDER[1:]:
        parent = sk.PARENTS[point]
        if point in BODY_POSE:
            direction, spread, length = BODY_POSE[point]
        elif sk.FACE_START <= point < sk.LEFT_HAND_START:
            direction, spread, length = 0, 360, rng.uniform(0.1, 0.5)
        else:
            direction, spread, length = 90, 60, rng.uniform(0.1, 0.3)
        angle = np.deg2rad(rng.normal(direction, spread))
        step = head * length * np.array([np.cos(angle), np.sin(angle)])
        points[point, :2] = points[parent, :2] + step
    points[: 18 if parts == "body" else sk.NUM_POINTS, 2] = 0.9
    if parts == "patchy":
        points[rng.random(sk.NUM_POINTS) < 0.1, 2] = 0.2
    return points


def opencv_picture(points, height, width, threshold=0.3):
    """The same skeleton through OpenCV, widths for a short side of 512."""
    picture = np.zeros((height, width, 3), np.uint8)
    shown = points[:, 2] > threshold
    pixel = [(int(x), int(y)) for x, y in points[:, :2]]

    for (a, b), colour in zip(sk.LIMBS, sk.BODY_COLOURS.tolist(), strict=False):
        if shown[a] and shown[b]:
            (ax, ay), (bx, by) = points[a, :2].tolist(), points[b, :2].tolist()
            middle = int((ax + bx) / 2), int((ay + by) / 2)
            axes = int(math.hypot(ax - bx, ay - by) / 2), 4
            tilt = int(math.degrees(math.atan2(ay - by, ax - bx)))
            outline = cv2.ellipse2Poly(middle, axes, tilt, 0, 360, 1)
            cv2.fillConvexPoly(picture, outline, colour)
    picture = np.uint8(picture * 0.6)

    def discs(indices, radius, colours):
        for i, colour in zip(indices, colours, strict=True):
            if shown[i]:
                cv2.circle(picture, pixel[i], radius, colour, thickness=-1)

    discs(range(18), 4, sk.BODY_COLOURS.tolist())
    shown[24:] &= (np.array(pixel[24:]) > 0).all(1)  # as DWPose draws hands and face
    for start in (92, 113):
        for i, (a, b) in enumerate(sk.HAND_EDGES):
            if shown[start + a] and shown[start + b]:
                colour = [255 * c for c in colorsys.hsv_to_rgb(i / 20, 1, 1)]
                cv2.line(picture, pixel[start + a], pixel[start + b], colour, thickness=2)
        discs(range(start, start + 21), 4, [(0, 0, 255)] * 21)
    discs(range(24, 92), 3, [(255, 255, 255)] * 68)
    return picture


def drawn_area_agreement(ours, theirs):
    """Intersection over union of the drawn areas, and mean absolute difference inside, of 255."""
    ours, theirs = np.round(ours * 255).astype(int), theirs.astype(int)
    a, b = ours.any(-1), theirs.any(-1)
    if not (a | b).any():
        return 1.0, 0.0
    return (a & b).sum() / (a | b).sum(), np.abs(ours - theirs)[a | b].mean()


@pytest.mark.parametrize("parts", ["body", "all", "patchy"])
@pytest.mark.parametrize(("height", "width"), [(768, 512), (512, 768)])
def test_drawing_equals_opencv(height, width, parts):
    rng = np.random.default_rng(0)
    people = np.stack([random_person(rng, height, width, parts) for _ in range(20)])
    pictures = np.asarray(draw_skeletons(people, height, width))
    assert pictures.shape == (20, height, width, 3) and pictures.dtype == np.float32
    for person, picture in zip(people, pictures, strict=True):
        overlap, difference = drawn_area_agreement(picture, opencv_picture(person, height, width))
        assert overlap > 0.995
        assert difference < 0.5  # of 255


def test_single_limbs_in_all_directions_equal_opencv():
    # Besides odd angles, those that are whole degrees exactly: they must not drop by one degree.
    angles = np.deg2rad(np.arange(0.3, 360, 11))
    ends = 91.5 * np.stack([np.cos(angles), np.sin(angles)], -1)
    whole = [(x, y) for x in (-60, 0, 60) for y in (-60, 0, 60)]
    ends = np.concatenate([ends, whole])
    people = np.zeros((len(ends), sk.NUM_POINTS, 3), np.float32)
    people[:, [sk.NECK, sk.NOSE]] = 256, 256, 1
    people[:, sk.NOSE, :2] += ends
    pictures = np.asarray(draw_skeletons(people, 512, 512))
    wrong = [
        (np.round(picture * 255) != opencv_picture(person, 512, 512)).any(-1).sum()
        for person, picture in zip(people, pictures, strict=True)
    ]
    assert max(wrong) <= 2


def test_jit_vmap_and_batching_give_the_same_pictures():
    rng = np.random.default_rng(1)
    people = np.stack([random_person(rng, 128, 96, parts) for parts in ("body", "all", "patchy")])
    expected = np.asarray(draw_skeletons(people, 128, 96))
    draw = functools.partial(draw_skeletons, height=128, width=96)
    np.testing.assert_array_equal(jax.jit(draw)(people), expected)
    np.testing.assert_array_equal(jax.vmap(draw)(people), expected)
    np.testing.assert_array_equal(draw(people.reshape(3, 1, 134, 3))[:, 0], expected)
    np.testing.assert_array_equal(draw(people[1]), expected[1])
    assert draw(people[:0]).shape == (0, 128, 96, 3)


def test_memory_beside_the_result_stays_small():
    clip = jax.ShapeDtypeStruct((24, sk.NUM_POINTS, 3), np.float32)
    draw = jax.jit(functools.partial(draw_skeletons, height=768, width=512))
    assert draw.lower(clip).compile().memory_analysis().temp_size_in_bytes < 100e6


def test_coinciding_and_far_away_points_do_no_harm():
    points = np.full((sk.NUM_POINTS, 3), 40, np.float32)
    picture = np.asarray(draw_skeletons(points, 512, 512))
    assert np.isfinite(picture).all() and picture.any()
    assert picture[60:].sum() == 0 and picture[:, 60:].sum() == 0
    points[:, :2] = 1e7
    points[:9, :2] = -1e7
    points[20:40] = np.nan
    assert np.isfinite(np.asarray(draw_skeletons(points, 512, 512))).all()


def test_nothing_is_drawn_below_the_threshold():
    person = random_person(np.random.default_rng(2), 128, 96, "all")
    person[:, 2] = 0.3
    assert not np.asarray(draw_skeletons(person, 128, 96)).any()
    assert np.asarray(draw_skeletons(person, 128, 96, threshold=0.2)).any()


def test_a_limb_needs_both_ends_and_joints_cover_limbs():
    points = np.zeros((sk.NUM_POINTS, 3), np.float32)
    points[sk.RIGHT_HIP], points[sk.RIGHT_KNEE] = (100, 100, 1), (100, 200, 1)
    picture = np.round(np.asarray(draw_skeletons(points, 512, 512)) * 255)
    limb = sk.LIMBS.index((sk.RIGHT_HIP, sk.RIGHT_KNEE))
    assert picture[150, 100].tolist() == [int(c * 0.6) for c in sk.BODY_COLOURS[limb].tolist()]
    assert picture[100, 100].tolist() == sk.BODY_COLOURS[sk.RIGHT_HIP].tolist()
    points[sk.RIGHT_KNEE, 2] = 0
    picture = np.asarray(draw_skeletons(points, 512, 512))
    assert not picture[110:].any() and picture[100, 100].any()


def test_hands_and_faces_beyond_the_left_or_top_edge_are_not_drawn():
    places = ((0.9, 40), (40, -0.5), (-60, 40), (1, 40), (40, 1.2), (70, 40))
    for point in (sk.NOSE, sk.FACE_START, sk.LEFT_HAND_START, sk.RIGHT_HAND_START + 20):
        people = np.zeros((len(places), sk.NUM_POINTS, 3), np.float32)
        people[:, point, :2], people[:, point, 2] = places, 1
        drawn = np.asarray(draw_skeletons(people, 64, 64)).any((1, 2, 3))
        body = point == sk.NOSE  # the last is far beyond the right, the third the left
        assert drawn.tolist() == [body, body, False, True, True, False], point
    # A line of a hand needs both its ends.
    person = np.zeros((sk.NUM_POINTS, 3), np.float32)
    person[sk.LEFT_HAND_START], person[sk.LEFT_HAND_START + 1] = (40, 40, 1), (-20, 40, 1)
    assert not np.asarray(draw_skeletons(person, 64, 64))[:, :30].any()


def test_widths_follow_the_size_of_the_picture():
    def limb_width(size):
        points = np.zeros((sk.NUM_POINTS, 3), np.float32)
        points[sk.NECK], points[sk.NOSE] = (size / 2, size * 0.9, 1), (size / 2, size * 0.1, 1)
        return np.asarray(draw_skeletons(points, size, size))[size // 2].any(-1).sum()

    assert [limb_width(size) for size in (512, 1024)] == [9, 18 - 1]
    assert limb_width(256) in (4, 5)
    assert limb_width(32) == 1


def test_placed_points_are_centred_and_keep_the_aspect():
    points = np.array([[0, 0, 0.5], [100, 50, 1.0], [0, 0, 0.0]], np.float32)
    placed = np.asarray(place_points(points, (100, 50), (200, 200)))
    # (0, 0) is the middle of the first pixel, which lies half a larger one from the edge.
    np.testing.assert_allclose(placed, [[0.5, 50.5, 0.5], [200.5, 150.5, 1], [0, 0, 0]], atol=1e-4)
    points = np.random.default_rng(0).uniform(0, 50, (2, 134, 3)).astype(np.float32)
    np.testing.assert_array_equal(place_points(points, (50, 40), (50, 40)), points)


def test_bad_input_is_named():
    with pytest.raises(UserError, match="134"):
        draw_skeletons(np.zeros((18, 3)), 64, 64)
    with pytest.raises(UserError, match="positive"):
        draw_skeletons(np.zeros((134, 3)), 0, 64)
    with pytest.raises(UserError, match="source size"):
        place_points(np.zeros((134, 3)), (0, 10), (64, 64))
