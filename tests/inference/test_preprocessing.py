"""Pictures as the networks take them."""

import numpy as np

from animate_jax.inference.preprocessing import fit_drawing, fit_on_black, resize


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


def test_a_drawing_is_stretched_as_its_reference_is():
    drawing = np.random.default_rng(0).integers(0, 256, (96, 54, 3), np.uint8)
    same, other = np.zeros((960, 541, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    stretched = fit_drawing(drawing, same, 64, 98, "lanczos")
    np.testing.assert_array_equal(stretched, resize(drawing, 64, 98, "lanczos"))
    fitted = fit_drawing(drawing, other, 64, 98, "lanczos")
    np.testing.assert_array_equal(fitted, fit_on_black(drawing, 64, 98, "lanczos"))
    assert not np.array_equal(stretched, fitted)
    rounded, phone = np.ones((896, 512, 3), np.uint8), np.zeros((1920, 1080, 3), np.uint8)
    assert fit_drawing(rounded, phone, 512, 784, "lanczos").all()  # no black at its sides
    rounded, narrow = np.ones((1088, 512, 3), np.uint8), np.zeros((1024, 512, 3), np.uint8)
    assert fit_drawing(rounded, narrow, 512, 1024, "lanczos").all()
