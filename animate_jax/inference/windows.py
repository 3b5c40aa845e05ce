"""Windows over a video longer than the model sees at once.

In every denoising step each window is predicted by itself and the predictions of a frame are
averaged. `tapered` windows are open-ended and fade into each other; `moore` windows wrap around
the end and are averaged flat, as the public PyTorch reproduction does.
"""

from __future__ import annotations

import math

import numpy as np

from animate_jax.errors import UserError

KINDS = ("tapered", "moore")
OVERLAP = 4  # frames


def default_overlap(window: int) -> int:
    """Frames that windows share where nothing else is asked for."""
    return max(0, min(OVERLAP, window - 1))


def make_windows(
    frames: int, window: int, overlap: int | None = None, kind: str = "tapered"
) -> tuple[np.ndarray, np.ndarray]:
    """Frame indices (n, min(window, frames)) int and weights of the same shape, float32.

    The weights of a frame sum to 1 over the windows. `overlap` is the least number of frames that
    neighbouring windows share (for `moore`: exactly); None is 4, or less where windows are smaller.
    Raises UserError for an unknown kind, a window below 1 or an overlap outside 0 .. window - 1.
    """
    if kind not in KINDS:
        raise UserError(f"windows is {kind!r}; it can be one of {list(KINDS)}")
    overlap = default_overlap(window) if overlap is None else overlap
    if window < 1 or not 0 <= overlap < window:
        raise UserError(
            f"a window of {window} frames with an overlap of {overlap} is not possible; "
            "the overlap has to be 0 or more and smaller than the window"
        )
    if frames <= window:
        return np.arange(frames)[None], np.ones((1, frames), np.float32)
    if kind == "moore":
        starts = np.arange(0, frames, window - overlap)
        indices = (starts[:, None] + np.arange(window)) % frames
        weights = np.ones(indices.shape)
    else:
        count = math.ceil((frames - window) / (window - overlap)) + 1
        starts = np.linspace(0, frames - window, count).round().astype(int)
        indices = starts[:, None] + np.arange(window)
        weights = _tapers(starts, window)
    total = np.zeros(frames)
    np.add.at(total, indices, weights)
    return indices, (weights / total[indices]).astype(np.float32)


def _tapers(starts, window):
    """Straight ramps over what a window shares with the one before and after; none at the ends."""
    weights = np.ones((len(starts), window))
    for i, shared in enumerate(starts[:-1] + window - starts[1:]):
        ramp = np.minimum(np.arange(1, window + 1) / (shared + 1), 1)
        weights[i + 1] = np.minimum(weights[i + 1], ramp)
        weights[i] = np.minimum(weights[i], ramp[::-1])
    return weights
