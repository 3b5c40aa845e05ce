import numpy as np
import pytest

from data_prep.scenes import find_scenes

FPS = 20.0


def pattern(seed, frames, *, height=120, width=90, speed=2.0):
    """A blurred random pattern that moves to the side."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (12, 40, 3)).astype(np.float64)
    large = np.kron(coarse, np.ones((height // 12, 10, 1)))
    starts = (speed * np.arange(frames)).astype(int)
    return [np.roll(large, -s, axis=1)[:, :width].astype(np.uint8) for s in starts]


def bounds(scenes):
    return [(scene.begin, scene.end) for scene in scenes]


def test_cuts_are_found_to_the_frame():
    frames = pattern(1, 33) + pattern(2, 21) + pattern(3, 40)
    scenes = find_scenes(iter(frames), FPS, 10)
    assert bounds(scenes) == [(0, 33), (33, 54), (54, 94)]
    assert not any(scene.static for scene in scenes)


def test_two_cuts_close_to_each_other_are_both_found():
    frames = pattern(1, 30) + pattern(2, 6) + pattern(3, 30)
    assert bounds(find_scenes(frames, FPS, 10)) == [(0, 30), (30, 36), (36, 66)]


@pytest.mark.parametrize("speed", [0.0, 1.0, 6.0])
def test_moving_is_no_cut(speed):
    assert bounds(find_scenes(pattern(4, 60, speed=speed), FPS, 10)) == [(0, 60)]


def test_long_scenes_are_cut_evenly():
    scenes = find_scenes(pattern(5, 50) + pattern(6, 20), FPS, 1.0)
    assert bounds(scenes) == [(0, 17), (17, 33), (33, 50), (50, 70)]
    assert bounds(find_scenes(pattern(5, 20), FPS, 1.0)) == [(0, 20)]
    assert bounds(find_scenes(pattern(5, 21), FPS, 1.0)) == [(0, 10), (10, 21)]


def test_noise_and_flicker_are_static_and_a_small_movement_is_not():
    rng = np.random.default_rng(0)
    picture = np.full((360, 240, 3), 120.0)
    picture[100:200, 80:160] = [200, 40, 90]

    def shown(extra=lambda index, frame: frame, frames=40):
        result = []
        for index in range(frames):
            flicker = 1 + 0.05 * np.sin(index)
            frame = picture * flicker + rng.normal(size=picture.shape, scale=8)
            result.append(np.clip(extra(index, frame), 0, 255).astype(np.uint8))
        return result

    def waving(index, frame):
        top = 110 + 30 * (index % 20 > 10)
        frame[top : top + 25, 165:185] = 20  # half a percent of the picture
        return frame

    def flash(index, frame):
        return frame if index != 20 else frame[::-1]

    assert [s.static for s in find_scenes(shown(), FPS, 10)] == [True]
    assert [s.static for s in find_scenes(shown(waving), FPS, 10)] == [False]
    # Where it waves for a while only, the parts differ.
    some = shown() + shown(waving)
    assert [s.static for s in find_scenes(some, FPS, 2)] == [True, False]
    # One other picture makes a cut, but no movement.
    assert all(s.static for s in find_scenes(shown(flash), FPS, 10) if len(s) > 15)


def test_a_cut_is_no_movement():
    still = pattern(7, 40, speed=0.0)
    scenes = find_scenes(pattern(1, 40) + still, FPS, 10)
    assert [scene.static for scene in scenes] == [False, True]


def test_no_frames_no_scenes():
    assert find_scenes([], FPS, 10) == []
