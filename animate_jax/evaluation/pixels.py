"""Differences of pixels: L1, PSNR, PSNR as a line of papers printed it, and flicker.

Pictures are (..., height, width, 3) in [0, 1] where nothing else is said; one number comes back for
each of them. Means over pictures are the caller's.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

_PICTURE = (-3, -2, -1)


def l1(predicted, truth):
    """Mean absolute difference, 0 to 1."""
    return jnp.abs(predicted - truth).mean(_PICTURE)


def l1_disco(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The "L1" of DisCo's evaluation code, which the papers after it print as 1e-4 or so.

    uint8 pictures: the mean absolute difference in grey levels, divided by the number of pixels
    once more. It depends on the size of the pictures.
    """
    pixels = predicted.shape[-3] * predicted.shape[-2]
    return np.abs(predicted.astype(np.float64) - truth).mean(_PICTURE) / pixels


def psnr(predicted, truth, mask=None):
    """Peak signal-to-noise ratio in dB for a peak of 1; infinite for equal pictures.

    mask: bool (..., height, width), the pixels that count; NaN where it has none.
    """
    squares = jnp.square(predicted - truth)
    if mask is None:
        error = squares.mean(_PICTURE)
    else:
        weights = jnp.asarray(mask, squares.dtype)[..., None]
        error = (squares * weights).sum(_PICTURE) / (3 * weights.sum(_PICTURE))
    return -10 * jnp.log10(error)


def psnr_disco(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """PSNR as DisCo's evaluation code computed it until April 2024; not a measure of anything.

    uint8 pictures are subtracted and squared as uint8, so both wrap around at 256: a difference of
    16 counts as none, and large differences as random ones. Equal pictures count as 100 dB. DisCo,
    MagicAnimate and Animate Anyone print this number, 29 to 38 dB where the PSNR is 14 to 21.
    """
    with np.errstate(over="ignore", divide="ignore"):
        squares = (predicted - truth) ** 2
        assert squares.dtype == np.uint8
        error = squares.astype(np.float64).mean(_PICTURE)
        return np.where(error == 0, 100.0, 20 * np.log10(255 / np.sqrt(error)))


def flicker(predicted, truth):
    """How a clip (frames, height, width, 3) moves otherwise than its truth, without any warping.

    Clips are uint8, or in [0, 1]; pictures are taken two by two, so that memory does not grow with
    their number. With d[t] = x[t + 1] - x[t]: the mean of |d_predicted - d_truth|, 0 to 2, and the
    ratio of mean |d_predicted| to mean |d_truth|: above 1 the clip flickers, below 1 it is too
    still. NaN for a single frame, and the ratio where the truth stands still.
    """
    changes = []
    for t in range(len(predicted) - 1):
        ours, true = (_unit(clip[t + 1]) - _unit(clip[t]) for clip in (predicted, truth))
        changes.append([np.abs(x).mean() for x in (ours - true, ours, true)])
    if not changes:
        return np.nan, np.nan
    difference, moves, still = np.mean(changes, 0)
    return difference, moves / still if still > 0 else np.nan


def _unit(picture):
    picture = np.asarray(picture)
    return picture / 255 if picture.dtype == np.uint8 else picture.astype(np.float64)
