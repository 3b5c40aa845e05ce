"""Windows cover every frame with weights that sum to one."""

import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.inference.windows import KINDS, make_windows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window, overlap", [(24, 4), (24, 0), (24, 23), (8, 5), (1, 0), (16, 8)])
def test_weights_sum_to_one(kind, window, overlap):
    for frames in range(1, 201):
        indices, weights = make_windows(frames, window, overlap, kind)
        total = np.zeros(frames)
        np.add.at(total, indices, weights)
        np.testing.assert_allclose(total, 1, atol=1e-6)
        assert indices.shape == weights.shape
        assert indices.shape[1] == min(window, frames)
        assert weights.min() > 0


def test_tapered_windows_are_open_ended_and_overlap_enough():
    for frames in range(25, 201):
        indices, weights = make_windows(frames, 24, 4)
        assert (np.diff(indices) == 1).all()  # no window wraps around
        assert indices[0, 0] == 0 and indices[-1, -1] == frames - 1
        assert (np.diff(indices[:, 0]) <= 20).all()
        assert weights[0, 0] == weights[-1, -1] == 1


def test_small_windows_overlap_by_less():
    for window, overlap in ((1, 0), (3, 2), (4, 3), (5, 4), (24, 4)):
        for ours, given in zip(make_windows(30, window), make_windows(30, window, overlap)):
            np.testing.assert_array_equal(ours, given)


def test_tapers_are_straight():
    _, weights = make_windows(44, 24, 4)
    np.testing.assert_allclose(weights[0], [1] * 20 + [0.8, 0.6, 0.4, 0.2], atol=1e-6)
    np.testing.assert_allclose(weights[1], weights[0][::-1], atol=1e-6)


def test_moore_windows_wrap_around():
    indices, weights = make_windows(64, 24, 4, "moore")
    starts = [0, 20, 40, 60]
    expected = [[(s + i) % 64 for i in range(24)] for s in starts]
    np.testing.assert_array_equal(indices, expected)
    assert list(indices[-1][:5]) == [60, 61, 62, 63, 0]
    # Frames 0..3 lie in the first and the last window, 4..19 too, as the last goes on to 19.
    np.testing.assert_allclose(weights[0][:20], 0.5)
    short, _ = make_windows(25, 24, 4, "moore")
    np.testing.assert_array_equal(short[1], [*range(20, 25), *range(19)])


def test_bad_windows():
    for arguments in ((30, 0, 0), (30, 8, 8), (30, 8, -1), (30, 8, 2, "flat")):
        with pytest.raises(UserError):
            make_windows(*arguments)
