"""Pictures as the networks take them."""

import numpy as np

from animate_jax.inference.preprocessing import fit_on_black


def test_a_picture_of_other_proportions_is_fitted_and_not_stretched():
    wide = np.full((30, 60, 3), 200, np.uint8)
    fitted = fit_on_black(wide, 40, 80, "bilinear")
    assert fitted.shape == (80, 40, 3)
    assert (fitted[30:50] == 200).all()  # 40x20 in the middle
    assert not fitted[:30].any() and not fitted[50:].any()
    tall = fit_on_black(np.full((50, 5, 3), 9, np.uint8), 101, 100, "lanczos")
    assert (tall[:, 45:55] == 9).all() and tall.sum() == 3 * 9 * 100 * 10
    same = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    np.testing.assert_array_equal(fit_on_black(same, 6, 8, "bicubic"), same)
