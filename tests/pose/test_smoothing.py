import numpy as np
import pytest

from animate_jax.cli import main
from animate_jax.pose.keypoints import BODY, POINTS, load_keypoints
from animate_jax.pose.smoothing import smooth_keypoints

FPS = 30.0
HEIGHT = 400.0  # pixels, of the body


def standing(frames=120):
    """A body of HEIGHT that does not move: float32 (frames, 134, 3)."""
    points = np.ones((frames, POINTS, 3), np.float32)
    points[..., 0] = 200 + 60 * np.cos(np.arange(POINTS))
    points[..., 1] = 100 + HEIGHT * np.arange(POINTS) / (POINTS - 1)
    return points


def noise(points, deviation, seed=0):
    noisy = points.copy()
    size = points[..., :2].shape
    noisy[..., :2] += np.random.default_rng(seed).normal(size=size, scale=deviation)
    return noisy


def test_jitter_of_a_still_body_falls_to_two_fifths():
    truth = standing()
    noisy = noise(truth, 0.004 * HEIGHT)
    smooth = smooth_keypoints(noisy, FPS)
    before, after = (np.std(p[..., :2] - truth[..., :2]) for p in (noisy, smooth))
    assert after < 0.4 * before
    shaking = [np.std(np.diff(p[..., :2], axis=0)) for p in (noisy, smooth)]
    assert shaking[1] < 0.22 * shaking[0]
    assert abs(np.mean(smooth[..., :2] - truth[..., :2])) < 0.02
    assert smooth.dtype == np.float32
    np.testing.assert_array_equal(smooth[..., 2], noisy[..., 2])


@pytest.mark.parametrize("speed", [0.2, 1.0, 4.0])
def test_a_fast_point_is_not_left_behind(speed):
    """Of body heights per second; the mean of both directions has no lag but at the ends."""
    truth = standing(60)
    truth[..., 0] += (speed * HEIGHT / FPS * np.arange(60))[:, None]
    lag = (truth - smooth_keypoints(truth, FPS))[..., 0] / (speed * HEIGHT)  # seconds
    assert np.abs(lag[15:-15]).max() < 0.004
    assert np.abs(lag).max() < 0.035  # about one frame, and only near the ends
    np.testing.assert_allclose(lag, -lag[::-1], atol=1e-6)


def test_a_wave_keeps_its_size():
    """A hand that goes to and fro twice a second through a third of the body's height."""
    truth = standing(90)
    wave = HEIGHT / 6 * np.sin(2 * np.pi * 2 * np.arange(90) / FPS)
    truth[:, 4, 0] += wave
    smooth = smooth_keypoints(truth, FPS)[:, 4, 0] - standing(90)[:, 4, 0]
    assert np.ptp(smooth[20:70]) > 0.95 * np.ptp(wave)
    assert np.abs(smooth - wave)[20:70].max() < 0.03 * np.ptp(wave)


def test_missing_points_stay_missing_and_have_no_say():
    clip = noise(standing(40), 2.0)
    clip[10:14, 4] = 0
    clip[20, BODY] = 0
    clip[25:] = 0
    smooth = smooth_keypoints(clip, FPS)
    np.testing.assert_array_equal(smooth[clip[..., 2] == 0], 0)
    # What a missing point holds, NaN included, changes nothing around it.
    wild = clip.copy()
    wild[10:14, 4, :2] = np.nan
    wild[20, BODY, :2] = 1e9
    expected = smooth.copy()
    expected[10:14, 4, :2] = np.nan
    expected[20, BODY, :2] = 1e9
    np.testing.assert_array_equal(smooth_keypoints(wild, FPS), expected)
    # Each stretch is smoothed as if it were alone.
    alone = clip.copy()
    alone[14:, 4] = 0
    np.testing.assert_array_equal(smooth_keypoints(alone, FPS)[:10, 4], smooth[:10, 4])
    assert not np.array_equal(smooth[:10, 4], clip[:10, 4])


def test_points_that_are_not_drawn_have_no_say():
    """A network gives a hidden point a low score and some place, hardly ever none at all."""
    clip = noise(standing(40), 2.0)
    missing = clip.copy()
    missing[15:18, 4] = 0
    hidden = clip.copy()
    hidden[15:18, 4] = 900, 900, 0.1
    smooth = smooth_keypoints(hidden, FPS)
    np.testing.assert_array_equal(smooth[15:18, 4], hidden[15:18, 4])
    others = np.r_[0:15, 18:40]
    np.testing.assert_array_equal(smooth[others, 4], smooth_keypoints(missing, FPS)[others, 4])


def test_scale_place_and_direction_of_time_do_not_matter():
    clip = noise(standing(50), 3.0)
    clip[..., 0] += 40 * np.sin(np.arange(50) / 4)[:, None]
    smooth = smooth_keypoints(clip, FPS)
    for scale, shift in ((4.0, 0.0), (0.125, 0.0), (1.0, 512.0)):
        other = clip.copy()
        other[..., :2] = other[..., :2] * scale + shift
        expected = smooth[..., :2] * scale + shift
        result = smooth_keypoints(other, FPS)[..., :2]
        np.testing.assert_allclose(result, expected, atol=2e-4 * scale, rtol=1e-6)
    np.testing.assert_array_equal(smooth_keypoints(clip[::-1], FPS), smooth[::-1])


def test_frame_rate_sets_how_many_frames_are_averaged():
    noisy = noise(standing(), 2.0)
    deviations = [np.std(smooth_keypoints(noisy, fps)[..., :2] - standing()[..., :2])
                  for fps in (8, 30, 60)]  # fmt: skip
    assert deviations[0] > 1.5 * deviations[1] > 1.8 * deviations[2]


def test_nothing_to_smooth():
    nobody = np.zeros((5, POINTS, 3), np.float32)
    np.testing.assert_array_equal(smooth_keypoints(nobody, FPS), nobody)
    one = standing(1)
    np.testing.assert_array_equal(smooth_keypoints(one, FPS), one)
    lonely = nobody.copy()
    lonely[:, 4] = [10, 20, 1]  # a single point has no height
    np.testing.assert_array_equal(smooth_keypoints(lonely, FPS), lonely)


def test_the_command_pose_smooths_unless_told_not_to(clips, blazepose_models, tmp_path):
    keypoints = {}
    for option in ("--no-smooth", None):
        out = str(tmp_path / f"{option}.npz")
        arguments = ["pose", str(clips["single/cam02"]), out, "--stride", "4", "--frames", "8"]
        assert main([*arguments, option] if option else arguments) == 0
        keypoints[option] = load_keypoints(out)
    rough, smooth = keypoints["--no-smooth"].points, keypoints[None].points
    np.testing.assert_array_equal(smooth, smooth_keypoints(rough, 15.0))
    assert not np.array_equal(smooth, rough)
