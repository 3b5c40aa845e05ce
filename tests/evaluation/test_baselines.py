"""Baselines: limbs go where the skeleton has them, and what is known is kept."""

import numpy as np

from animate_jax.evaluation.baselines import copy_reference, sample_bilinear, warp_reference
from animate_jax.evaluation.clips import clip_frames, clip_masks, open_clips
from animate_jax.evaluation.pixels import psnr
from animate_jax.pose import skeleton as sk

SIZE = 96, 128


def test_the_warp_is_nearer_to_the_truth_than_the_copy(puppets):
    gains = []
    for clip in open_clips(puppets, "validation").values():
        record = clip.load()
        frames, points = clip_frames(record, range(10), SIZE)
        masks = clip_masks(record, range(10), SIZE)
        truth = np.float32(frames[1:]) / 255
        found = [
            np.asarray(psnr(np.float32(clip) / 255, truth, masks[1:])).mean()
            for clip in (
                warp_reference(frames[0], points[0], points[1:]),
                copy_reference(frames[0], 9),
            )
        ]
        gains.append(found[0] - found[1])
    assert np.mean(gains) > 3, gains


def test_the_own_pose_gives_the_reference(puppets):
    record = next(iter(open_clips(puppets, "validation").values())).load()
    (reference,), (points,) = clip_frames(record, [0], SIZE)
    mask = clip_masks(record, [0], SIZE)
    (same,) = warp_reference(reference, points, points[None])
    unit = np.float32([same, reference]) / 255
    assert psnr(unit[:1], unit[1:], mask)[0] > 26
    # Where nobody stands, nothing changes.
    assert (same == reference).all(-1)[:, :5].mean() > 0.99


def stick(elbow, wrist):
    """A torso on the right and one arm."""
    points = np.zeros((134, 3), np.float32)
    for point, place in {
        sk.RIGHT_SHOULDER: (82, 40),
        sk.LEFT_SHOULDER: (98, 40),
        sk.RIGHT_HIP: (84, 80),
        sk.LEFT_HIP: (96, 80),
        sk.RIGHT_ELBOW: elbow,
        sk.RIGHT_WRIST: wrist,
    }.items():
        points[point] = (*place, 1)
    return points


def test_an_arm_turns_and_shrinks_and_leaves_its_place_empty():
    down, aside = stick((60, 60), (60, 80)), stick((40, 30), (25, 30))
    reference = np.full((128, 128, 3), 200, np.uint8)
    reference[60:80, 58:63] = (255, 0, 0)  # the forearm
    (moved,) = warp_reference(reference, down, aside[None])
    red = (moved[..., 0] > 180) & (moved[..., 1] < 90)
    y, x = np.nonzero(red)
    assert abs(y.mean() + 0.5 - 30) < 1.5 and abs(x.mean() + 0.5 - 32.5) < 1.5
    assert 12 <= np.ptp(x) <= 17 and np.ptp(y) <= 6  # 20 long became 15
    assert not red[50:90].any()
    # Without a torso nothing can be measured.
    absent = np.zeros((2, 134, 3), np.float32)
    np.testing.assert_array_equal(warp_reference(reference, absent[0], absent)[1], reference)


def test_bilinear_samples():
    picture = np.arange(12, dtype=float).reshape(3, 4, 1)
    places = np.array([(0.5, 0.5), (1.0, 0.5), (2.5, 1.0), (-9, 0.5), (99, 99)])
    np.testing.assert_allclose(sample_bilinear(picture, places)[:, 0], [0, 0.5, 4, 0, 11])
