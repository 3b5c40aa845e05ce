"""Retargeting on a puppet whose bone lengths and joint angles are known."""

import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.pose import skeleton as sk
from animate_jax.pose.retarget import retarget

SIZE = (640, 480)
BODY = [p for p in range(18) if p != sk.NECK]
# Rest direction in degrees, 90 is down, and length in pixels of the bone to each body point.
REST = {
    0: (-90, 30),
    2: (178, 30),
    3: (110, 42),
    4: (95, 38),
    5: (2, 30),
    6: (70, 42),
    7: (85, 38),
    8: (102, 80),
    9: (93, 65),
    10: (90, 60),
    11: (78, 80),
    12: (87, 65),
    13: (90, 60),
    14: (-140, 8),
    15: (-40, 8),
    16: (170, 10),
    17: (10, 10),
}


def rest_pose():
    """Direction (134,) in radians and length (134,) of the bone to each point, front view."""
    rng = np.random.default_rng(5)
    angle = np.deg2rad(rng.uniform(0, 360, sk.NUM_POINTS))
    length = rng.uniform(3, 14, sk.NUM_POINTS)
    for point, (degrees, pixels) in REST.items():
        angle[point], length[point] = np.deg2rad(degrees), pixels
    for point in (20, 23):  # heels
        angle[point] = np.pi / 2
    return angle, length


def pose(neck, angle, length, shortening=1.0):
    """Points (..., 134, 3) from the neck (..., 2) and per-bone angle, length, shortening."""
    length = np.broadcast_to(length * shortening, angle.shape)
    points = np.ones((*angle.shape, 3))
    points[..., sk.NECK, :2] = neck
    for point in sk.TREE_ORDER[1:]:
        step = np.stack([np.cos(angle[..., point]), np.sin(angle[..., point])], -1)
        parent = points[..., sk.PARENTS[point], :2]
        points[..., point, :2] = parent + length[..., point, None] * step
    return points


def dance(frames=80, foreshortened=True, seed=0):
    """A clip (F, 134, 3) with smoothly moving joints, and its shortening (F, 134)."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 2 * np.pi, frames)[:, None]
    angle, length = rest_pose()
    swing = rng.uniform(0.1, 0.6, sk.NUM_POINTS)
    rate, phase = rng.integers(1, 4, sk.NUM_POINTS), rng.uniform(0, 6, sk.NUM_POINTS)
    angle = angle + swing * np.sin(rate * time + phase)
    rate, phase = rng.integers(1, 4, sk.NUM_POINTS), rng.uniform(0, 6, sk.NUM_POINTS)
    shortening = np.cos(0.9 * np.sin(rate * time + phase)) if foreshortened else np.ones_like(angle)
    neck = 320 + 40 * np.sin(time), 150 + 10 * np.sin(2 * time)
    return pose(np.concatenate(neck, -1), angle, length, shortening), shortening


def bone_vectors(points, children=BODY):
    children = np.asarray(children)
    return points[..., children, :2] - points[..., sk.PARENTS[children], :2]


def bone_lengths(points, children=BODY):
    return np.linalg.norm(bone_vectors(points, children), axis=-1)


def run(driving, reference, mode, target=SIZE, **options):
    sizes = dict(driving_size=SIZE, target_size=target, reference_size=SIZE)
    return retarget(driving, reference, mode, **sizes, **options)


def other_person():
    """A reference with another build: the factors are equal on the left and right."""
    factors = np.full(sk.NUM_POINTS, 1.2)
    factors[[3, 6]], factors[[4, 7]] = 1.0, 1.1
    factors[[8, 11]], factors[[9, 12]], factors[[10, 13]] = 1.2, 1.5, 1.4
    factors[0] = 1.3
    angle, length = rest_pose()
    return pose(np.array([300.0, 90.0]), angle, length * factors), length * factors


def test_bones_gives_the_lengths_of_the_reference_and_keeps_directions():
    driving, shortening = dance()
    reference, lengths = other_person()
    result = run(driving, reference, "bones")
    np.testing.assert_allclose(
        bone_lengths(result) / (lengths * shortening)[:, BODY], 1.0, atol=0.05
    )
    before, after = bone_vectors(driving), bone_vectors(result)
    cross = before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]
    sine = cross / np.linalg.norm(before, axis=-1) / np.linalg.norm(after, axis=-1)
    assert np.abs(sine).max() < 1e-3 and ((before * after).sum(-1) > 0).all()


def test_hands_feet_and_face_follow_their_anchors():
    driving, _ = dance()
    result = run(driving, other_person()[0], "bones")

    def ratio(points):
        return np.median(bone_lengths(result, points) / bone_lengths(driving, points), axis=0)

    np.testing.assert_allclose(ratio(range(92, 134)), 1.1, atol=0.05)
    np.testing.assert_allclose(ratio(range(18, 24)), 1.4, atol=0.07)
    np.testing.assert_allclose(ratio(range(24, 92)), 1.2, atol=0.05)


def test_scale_is_recovered_from_a_clip_with_bad_frames():
    driving, _ = dance()
    clean = driving.copy()
    rng = np.random.default_rng(3)
    angle, length = rest_pose()
    driving[0] = clean[0] = pose(driving[0, sk.NECK, :2], angle, length, 0.3)
    bad = rng.choice(np.arange(1, len(driving)), len(driving) // 5, replace=False)
    for frame in bad:
        driving[frame, rng.random(134) < 0.3, 2] = 0.1
        thrown = rng.random(134) < 0.3
        driving[frame, thrown, :2] += rng.normal(0, 200, (thrown.sum(), 2))
    reference = pose(np.array([250.0, 90.0]), angle, length * 0.62)
    result = run(driving, reference, "scale")
    good = np.setdiff1d(np.arange(len(driving)), bad)
    scale = bone_lengths(result[good]) / bone_lengths(clean[good])
    np.testing.assert_allclose(scale, 0.62, rtol=0.02)

    standing = (result[good][:, [8, 11], 0].mean(1), result[good][:, [10, 13], 1].max(1))
    there = reference[[8, 11], 0].mean(), reference[[10, 13], 1].max()
    np.testing.assert_allclose(np.median(standing, axis=1), there, atol=5)


def test_motion_is_kept_by_scale():
    driving, _ = dance()
    angle, length = rest_pose()
    result = run(driving, pose(np.array([300.0, 100.0]), angle, length * 0.5), "scale")
    path, original = result[:, sk.NECK, :2], driving[:, sk.NECK, :2]
    factor = np.ptp(path, axis=0) / np.ptp(original, axis=0)
    np.testing.assert_allclose(factor, 0.5, rtol=0.02)


@pytest.mark.parametrize("mode", ["scale", "bones"])
def test_who_is_anchored_stands_in_the_first_frame_where_the_reference_does(mode):
    driving, _ = dance(foreshortened=False)
    driving[..., 0] += np.linspace(0, 60, len(driving))[:, None]  # walks away
    expected = driving * [1.25, 1.25, 1] + [-40, 15, 0]
    found = run(driving, expected[0], mode, anchored=True)
    np.testing.assert_allclose(found[..., :2], expected[..., :2], atol=0.5)
    typical = run(driving, expected[0], mode)
    assert np.median(np.abs(typical - expected)[..., 0]) > 10


@pytest.mark.parametrize("shown", [[], [5, 6, 7]])  # nobody, an arm
def test_an_anchor_that_shows_too_little_is_none(shown):
    driving, _ = dance(foreshortened=False)
    reference = driving[0] * [1.25, 1.25, 1]
    driving[0, np.setdiff1d(np.arange(sk.NUM_POINTS), shown), 2] = 0
    found, typical = (run(driving, reference, "scale", anchored=a) for a in (True, False))
    np.testing.assert_array_equal(found, typical)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("mode", ["scale", "bones"])
def test_the_same_person_in_the_same_place_stays(mode):
    driving, _ = dance(foreshortened=False)
    legs = [8, 9, 10, 11, 12, 13]
    driving[:, legs, :2] = driving[7, legs, :2] - driving[7, sk.NECK, :2]
    driving[..., :2] += np.where(np.isin(np.arange(134), legs)[:, None], (320, 150), 0)
    driving[:, [p for p in range(134) if p not in legs], :2] += (
        np.array([320, 150]) - driving[:, [sk.NECK], :2]
    )
    result = run(driving, driving[7], mode)
    assert np.abs(result - driving)[..., :2].max() < 1.0


@pytest.mark.parametrize("mode", ["none", "scale", "bones"])
def test_absent_points_stay_zero_and_scores_are_kept(mode):
    driving, _ = dance(frames=20)
    reference, _ = other_person()
    driving[3] = 0
    driving[:, 100:] = 0
    driving[5, sk.NECK] = 0
    result = run(driving, reference, mode, target=(512, 768))
    assert result.shape == driving.shape and result.dtype == np.float32
    assert not result[3].any() and not result[:, 100:].any() and not result[5, sk.NECK].any()
    np.testing.assert_array_equal(result[..., 2], driving[..., 2])
    assert not run(np.zeros_like(driving), reference, mode).any()


def test_missing_joints_are_bridged():
    driving, _ = dance()
    reference, _ = other_person()
    whole = run(driving, reference, "bones")
    driving[10, [sk.RIGHT_ELBOW, sk.LEFT_KNEE]] = 0
    gaps = run(driving, reference, "bones")
    assert np.abs(gaps[10, [sk.RIGHT_WRIST, sk.LEFT_ANKLE], :2] - whole[10, [4, 13], :2]).max() < 8
    assert np.abs(gaps[11, :, :2] - whole[11, :, :2]).max() < 3


@pytest.mark.parametrize("joint", [sk.NECK, sk.RIGHT_SHOULDER, sk.LEFT_KNEE])
def test_a_joint_that_is_lost_for_a_moment_moves_nothing_else(joint):
    driving, _ = dance()
    whole = run(driving, other_person()[0], "bones")
    driving[30:36, joint] = 0
    gap = run(driving, other_person()[0], "bones")
    others = np.arange(sk.NUM_POINTS) != joint
    away = np.linalg.norm(gap[:, others, :2] - whole[:, others, :2], axis=-1)
    print(f"at most {away[30:36].max():.2f} pixels in the gap, {away.max():.2f} anywhere")
    assert away.max() < 1
    np.testing.assert_array_equal(gap[30:36, joint], 0)


def test_lower_ankle_goes_as_far_as_the_legs_carry():
    driving, _ = dance(foreshortened=False)
    driving[..., 0] += np.linspace(0, 60, len(driving))[:, None]  # walks away
    reference, _ = other_person()  # whose thighs are 1.5 times as long, shins 1.4 times
    result = run(driving, reference, "bones")
    before, after = (points[:, [10, 13], 1].max(1) for points in (driving, result))
    np.testing.assert_allclose(after - after[0], 1.45 * (before - before[0]), atol=0.5)


def test_who_is_anchored_is_measured_in_the_first_frame():
    driving, _ = dance()
    angle, length = rest_pose()
    factors = other_person()[1] / length
    # Both in one pose, in which no bone is seen in its length and the upper arms hardly at all,
    # and the longer-looking thigh in one of the two only.
    angle = angle + 0.3 * np.sin(np.arange(sk.NUM_POINTS))
    shortening = np.linspace(0.65, 0.95, sk.NUM_POINTS)
    shortening[[3, 6]], shortening[12] = 0.3, 1.0
    driving[0] = pose(np.array([320.0, 150.0]), angle, length, shortening)
    driving[0, sk.LEFT_KNEE, 2] = 0
    shortening[[3, 6]] = 0.25
    reference = pose(np.array([250.0, 90.0]), angle, length * factors, shortening)
    ratios = {}
    for anchored in (True, False):
        result = run(driving, reference, "bones", anchored=anchored)
        ratios[anchored] = np.median(bone_lengths(result) / bone_lengths(driving), axis=0)
    measured = [number for number, point in enumerate(BODY) if point not in (3, 6)]
    np.testing.assert_allclose(ratios[True][measured], factors[BODY][measured], atol=0.01)
    assert np.abs(ratios[False] - factors[BODY])[measured].max() > 0.1
    np.testing.assert_allclose(ratios[True], ratios[True].clip(1, 1.5), atol=0.01)


def test_standing_foot_does_not_slide():
    frames = 40
    angle, length = rest_pose()
    angle = np.repeat(angle[None], frames, 0)
    time = np.linspace(0, 2 * np.pi, frames)
    angle[:, [8, 9]] += 0.2 * np.sin(time)[:, None]
    angle[:, [12, 13]] += np.array([-0.9, 0.6])  # the left foot is lifted
    driving = pose(np.array([320.0, 150.0]), angle, length)
    driving[..., :2] += (np.array([300.0, 400.0]) - driving[:, sk.RIGHT_ANKLE, :2])[:, None]
    longer_legs = length.copy()
    longer_legs[[9, 10, 12, 13]] *= 1.5
    reference = pose(np.array([320.0, 100.0]), rest_pose()[0], longer_legs)
    result = run(driving, reference, "bones")
    assert np.ptp(result[:, sk.RIGHT_ANKLE, 0]) < 1.0
    assert np.ptp(result[:, sk.NECK, 0]) > 20.0


def test_a_bone_that_points_at_the_camera_takes_the_scale_of_the_person():
    driving, _ = dance()
    angle, length = rest_pose()
    shortening = np.ones(134)
    shortening[[4, 7, 9]] = 0.2  # both forearms, one thigh
    reference = pose(np.array([300.0, 100.0]), angle, length * 0.8, shortening)
    result = run(driving, reference, "bones")
    ratio = np.median(bone_lengths(result) / bone_lengths(driving), axis=0)
    np.testing.assert_allclose(ratio, 0.8, rtol=0.03)


def test_portrait_reference_is_placed_by_the_neck():
    driving, _ = dance()
    angle, length = rest_pose()
    reference = pose(np.array([300.0, 200.0]), angle, length * 2)
    reference[8:14, 2] = 0
    result = run(driving, reference, "bones")
    np.testing.assert_allclose(np.median(result[:, sk.NECK, :2], axis=0), (300, 200), atol=1)
    np.testing.assert_allclose(bone_lengths(result, [9]) / bone_lengths(driving, [9]), 2, rtol=0.03)


def test_frames_without_the_person_change_no_place():
    driving, _ = dance()
    driving[:, [4, 7], 1] -= 150  # raised hands, which are no reason to stand lower
    reference, _ = other_person()
    whole = run(driving, reference, "scale")
    driving[20:] = 0
    few = run(driving, reference, "scale")
    feet = [np.median(x[:20, [10, 13], 1].max(1)) for x in (few, whole)]
    assert abs(feet[0] - reference[[10, 13], 1].max()) < 2 and abs(feet[1] - feet[0]) < 8


def test_the_reference_is_stretched_to_the_target():
    driving, _ = dance()
    reference = pose(np.array([300.0, 100.0]), *rest_pose())
    untouched = reference.copy()
    result = run(driving, reference, "scale", target=(320, 240))
    np.testing.assert_allclose(np.median(result[:, [8, 11], 0].mean(1)), 0.5 * 300, atol=6)
    np.testing.assert_allclose(
        np.median(bone_lengths(result) / bone_lengths(driving)), 0.5, rtol=0.02
    )
    np.testing.assert_array_equal(reference, untouched)


def test_a_single_frame_works():
    driving, _ = dance(frames=1, foreshortened=False)
    assert np.isfinite(run(driving, other_person()[0], "bones")).all()


def test_bad_input_is_named():
    driving, _ = dance(frames=4)
    reference, _ = other_person()
    hidden = reference.copy()
    hidden[3:, 2] = 0
    hidden[0, 2] = 0
    for mode in ("scale", "bones"):
        with pytest.raises(UserError, match="--retarget none"):
            run(driving, None, mode)
        with pytest.raises(UserError, match="--retarget none"):
            run(driving, hidden, mode)
    with pytest.raises(UserError, match="choose one of"):
        run(driving, reference, "skeleton")
    with pytest.raises(UserError, match=r"\(frames, 134, 3\)"):
        run(driving[0], reference, "scale")
    unseen = driving.copy()
    unseen[:, 1:, 2] = 0
    with pytest.raises(UserError, match="no bone in common"):
        run(unseen, reference, "scale")
