"""Structural similarity (Wang et al. 2004), at several scales (2003), and as DisCo computes it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# At five scales the smallest picture is a sixteenth, and its window needs more than 10 pixels.
SSIM_SMALLEST = WINDOW // 2 + 1  # of the mirrored border
MS_SSIM_SMALLEST = WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)


def ssim(predicted: jax.Array, truth: jax.Array) -> jax.Array:
    """(n, height, width, channels) in [0, 1] -> (n,), with the gaussian window of 11, sigma 1.5.

    The mean goes over all pixels; pictures are reflected at their edges, as torchmetrics does. A
    side has at least 6 pixels.
    """
    return _similarity(predicted, truth)[0].mean((1, 2, 3))


def ms_ssim(predicted: jax.Array, truth: jax.Array) -> jax.Array:
    """SSIM over five scales, (n,); sides of at least MS_SSIM_SMALLEST pixels.

    Negative parts count as zero, as in torchmetrics.
    """
    if min(predicted.shape[1:3]) < MS_SSIM_SMALLEST:
        raise ValueError(f"MS-SSIM of {predicted.shape[1:3]} pixels, below {MS_SSIM_SMALLEST}")
    border = WINDOW // 2
    inside = slice(border, -border)
    result = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale:
            predicted, truth = _halve(predicted), _halve(truth)
        whole, contrast = _similarity(predicted, truth)
        last = scale == len(SCALE_WEIGHTS) - 1
        part = whole if last else contrast[:, inside, inside]
        result = result * jnp.maximum(part.mean((1, 2, 3)), 0) ** weight
    return result


def _similarity(a, b):
    """SSIM and its contrast and structure part at every pixel."""
    # Around 0 the squares of the means are small, and little is lost in their difference from the
    # means of the squares.
    a, b = a - 0.5, b - 0.5
    mean_a, mean_b, aa, bb, ab = jnp.split(_blur(jnp.concatenate([a, b, a * a, b * b, a * b])), 5)
    variances = jnp.maximum(aa - mean_a**2, 0) + jnp.maximum(bb - mean_b**2, 0)
    contrast = (2 * (ab - mean_a * mean_b) + K2**2) / (variances + K2**2)
    mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
    luminance = (2 * mean_a * mean_b + K1**2) / (mean_a**2 + mean_b**2 + K1**2)
    return luminance * contrast, contrast


def _blur(x):
    offsets = np.arange(WINDOW) - WINDOW // 2
    window = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    window = (window / window.sum()).astype(np.float32)
    border = WINDOW // 2
    x = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)), mode="reflect")
    # As sums of shifted pictures: XLA's convolutions channel by channel are slow on CPUs.
    for axis in (1, 2):
        length = x.shape[axis] - 2 * border
        shifted = (lax.slice_in_dim(x, i, i + length, axis=axis) for i in range(WINDOW))
        x = sum(weight * part for weight, part in zip(window, shifted))
    return x


def _halve(x):
    """Means of 2x2 pixels; an odd last row or column is left out."""
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


DISCO_WINDOW = 7


def ssim_disco(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """SSIM as DisCo's evaluation code computes it, and so the papers after it.

    uint8 (n, height, width, 3) -> (n,). OpenCV's grey, then scikit-image's defaults: a flat window
    of 7x7, sample covariances, a range of 255, and only pixels whose window is whole.
    """
    a, b = _grey(predicted), _grey(truth)
    count = DISCO_WINDOW**2
    mean_a, mean_b, aa, bb, ab = (_window_sums(x) / count for x in (a, b, a * a, b * b, a * b))
    sample = count / (count - 1)
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    covariance = sample * (ab - mean_a * mean_b)
    variances = sample * (aa - mean_a**2 + bb - mean_b**2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean((1, 2))


def _grey(pictures):
    weights = np.array([9798, 19235, 3735])  # of 2**15, as OpenCV rounds them
    return (pictures.astype(np.int64) @ weights + 2**14) >> 15


def _window_sums(x):
    """Exact sums over all whole windows, (n, height - 6, width - 6)."""
    for axis in (1, 2):
        total = np.cumsum(x, axis)
        total = np.concatenate([np.zeros_like(total.take([0], axis)), total], axis)
        length = total.shape[axis]
        ends = total.take(range(DISCO_WINDOW, length), axis)
        x = ends - total.take(range(length - DISCO_WINDOW), axis)
    return x
