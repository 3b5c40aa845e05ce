"""Metrics of pixels against torchmetrics, scikit-image and the formulas they are named after."""

import contextlib

import cv2
import jax
import numpy as np
import pytest
import scipy.linalg
import torch
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from animate_jax.evaluation import pixels
from animate_jax.evaluation import ssim as similarity
from animate_jax.evaluation.frechet import frechet_distance
from animate_jax.evaluation.ssim import MS_SSIM_SMALLEST, ssim_disco

ssim, ms_ssim = jax.jit(similarity.ssim), jax.jit(similarity.ms_ssim)


def pictures(kind: str, height=180, width=190) -> tuple[np.ndarray, np.ndarray]:
    """Two pairs of pictures, uint8 (2, height, width, 3)."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:height, :width]
    smooth = 127 + 90 * np.sin(x / 17) * np.cos(y / 23)
    truth = np.stack([np.stack([smooth, 255 - smooth, smooth / 2], -1)] * 2)
    truth[1] = np.round(truth[1] / 128) * 120  # flat areas with edges
    if kind == "noisy":
        predicted = truth + rng.normal(0, 20, truth.shape)
    elif kind == "shifted":
        predicted = np.roll(truth, (3, 5), (1, 2)) * 0.9 + 10
    else:
        predicted = rng.uniform(0, 256, truth.shape)
    return tuple(np.clip(p, 0, 255).astype(np.uint8) for p in (predicted, truth))


KINDS = "noisy", "shifted", "unrelated"


def tensors(pair):
    """As torchmetrics takes them, in double precision: in single, flat areas cost it 9e-5."""
    return [torch.from_numpy(p).permute(0, 3, 1, 2).double() / 255 for p in pair]


def floats(pair):
    return [p.astype(np.float32) / 255 for p in pair]


def test_as_torchmetrics():
    kinds = zip(*(pictures(kind, 176, 181) for kind in KINDS))
    pair = [np.stack([clip[number % 2] for number, clip in enumerate(clips)]) for clips in kinds]
    a, b = tensors(pair)
    each = dict(data_range=1.0, reduction="none")
    expected = structural_similarity_index_measure(a, b, **each)
    np.testing.assert_allclose(ssim(*floats(pair)), expected, atol=1e-5)
    expected = multiscale_structural_similarity_index_measure(a, b, **each)
    np.testing.assert_allclose(ms_ssim(*floats(pair)), expected, atol=1e-5)
    expected = peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    np.testing.assert_allclose(pixels.psnr(*floats(pair)), expected, rtol=1e-5)
    expected = (a - b).abs().mean((1, 2, 3))
    np.testing.assert_allclose(pixels.l1(*floats(pair)), expected, rtol=1e-5)


def test_equal_pictures():
    _, truth = floats(pictures("noisy"))
    assert np.isinf(pixels.psnr(truth, truth)).all()
    np.testing.assert_allclose(ssim(truth, truth), 1, atol=1e-6)
    np.testing.assert_allclose(ms_ssim(truth, truth), 1, atol=1e-6)


def test_pictures_too_small_for_five_scales_are_refused():
    small = np.zeros((1, MS_SSIM_SMALLEST - 1, 400, 3), np.float32)
    with pytest.raises(ValueError, match="below 176"):
        ms_ssim(small, small)
    least = np.zeros((1, MS_SSIM_SMALLEST, MS_SSIM_SMALLEST, 3), np.float32)
    assert jax.eval_shape(ms_ssim, least, least).shape == (1,)
    # torchmetrics, too, draws the line there.
    for size, refused in ((MS_SSIM_SMALLEST, False), (MS_SSIM_SMALLEST - 1, True)):
        picture = torch.rand(1, 3, size, size)
        with pytest.raises(ValueError) if refused else contextlib.nullcontext():
            multiscale_structural_similarity_index_measure(picture, picture, data_range=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_disco_ssim_is_scikit_images_of_opencvs_grey(kind):
    pair = pictures(kind, 60, 71)
    for number in range(2):
        grey = [cv2.cvtColor(clip[number, ..., ::-1].copy(), cv2.COLOR_BGR2GRAY) for clip in pair]
        expected = structural_similarity(*grey)
        assert abs(ssim_disco(*pair)[number] - expected) < 1e-10


def test_disco_psnr_wraps_around():
    truth = np.zeros((5, 4, 4, 3), np.uint8)
    predicted = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (0, 16, 3, 255, 100)])
    squares = [0, 0, 9, 1, 100 * 100 % 256]  # 256, and (255 - 256)^2 = 1, lose what is above 255
    for a, b in ((predicted, truth), (truth, predicted)):
        printed = pixels.psnr_disco(a, b)
        for number, square in enumerate(squares):
            expected = 20 * np.log10(255 / np.sqrt(square)) if square else 100
            assert abs(printed[number] - expected) < 1e-9
    pair = pictures("unrelated")  # printed at a level at which pictures look alike
    assert pixels.psnr(*floats(pair)).max() < 9 and pixels.psnr_disco(*pair).min() > 26


def test_disco_l1_depends_on_the_size():
    predicted, truth = pictures("noisy")
    by_definition = np.abs(predicted[0].astype(float) - truth[0]).sum() / 3 / (180 * 190) ** 2
    assert abs(pixels.l1_disco(predicted, truth)[0] / by_definition - 1) < 1e-12
    l1 = pixels.l1(*floats((predicted, truth)))
    np.testing.assert_allclose(pixels.l1_disco(predicted, truth), 255 * l1 / (180 * 190), rtol=1e-5)


def test_psnr_of_the_character():
    predicted, truth = np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8, 3), np.float32)
    mask = np.zeros((2, 8, 8), bool)
    mask[0, 2:4, 1:7] = True
    predicted[0, 2:4, 1:7, 1] = 0.3  # one of three channels
    predicted[0, 6:] = 1  # elsewhere
    found = pixels.psnr(predicted, truth, mask)
    assert abs(found[0] + 10 * np.log10(0.09 / 3)) < 1e-4
    assert np.isnan(found[1])


def test_flicker():
    t = np.arange(6)[:, None, None, None]
    truth = np.broadcast_to(0.1 + 0.05 * t, (6, 4, 4, 3)).astype(np.float32)
    exact = pixels.flicker(truth, truth)
    still = pixels.flicker(truth[:1].repeat(6, 0), truth)
    # Up and down by 0.02 around the truth: a change of 0.04 between frames, on top of 0.05.
    flickering = pixels.flicker(truth + np.float32(0.02) * (-1.0) ** t, truth)
    offset = pixels.flicker(truth + 0.2, truth)
    np.testing.assert_allclose(exact, (0, 1), atol=1e-6)
    np.testing.assert_allclose(offset, (0, 1), atol=1e-5)
    np.testing.assert_allclose(still, (0.05, 0), atol=1e-6)
    np.testing.assert_allclose(flickering, (0.04, 1 + (0.04 * 2 - 0.04 * 3) / 0.05 / 5), atol=1e-5)
    assert np.isnan(pixels.flicker(truth[:1], truth[:1])).all()
    assert np.isnan(pixels.flicker(truth, truth[:1].repeat(6, 0))[1])


def published_frechet(a, b):
    """The formula as pytorch-fid has it."""
    root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    traces = np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * np.real(root))
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + traces


def features(count, seed, width=24):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(
        size=width
    )


@pytest.mark.parametrize("counts", [(200, 150), (30, 400), (25, 26)])
def test_frechet_distance(counts):
    a, b = (features(count, seed) for seed, count in enumerate(counts))
    expected = published_frechet(a, b)
    assert abs(frechet_distance(a, b) / expected - 1) < 1e-8
    assert abs(frechet_distance(b.astype(np.float32), a) / expected - 1) < 1e-5
    assert frechet_distance(a, a) < 1e-9 * np.cov(a, rowvar=False).trace()


def test_frechet_distance_of_fewer_features_than_dimensions():
    # Sets that vary in different directions only have no common root; others know the answer.
    a, b = np.zeros((5, 40)), np.zeros((7, 40))
    a[:, 0], b[:, 1] = np.arange(5), 2 * np.arange(7)
    means = (2**2) + 6**2
    variances = np.arange(5).var(ddof=1) + 4 * np.arange(7).var(ddof=1)
    assert abs(frechet_distance(a, b) - means - variances) < 1e-9
    b[:, 1], b[:, 0] = 0, 3 * np.arange(7)
    one = (2 - 9) ** 2 + (np.arange(5).std(ddof=1) - 3 * np.arange(7).std(ddof=1)) ** 2
    assert abs(frechet_distance(a, b) - one) < 1e-9
    a, b = features(12, 3), features(9, 4)  # scipy's root of a singular matrix is not as exact
    assert abs(frechet_distance(a, b) / published_frechet(a, b) - 1) < 1e-4
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(a[:1], b)
