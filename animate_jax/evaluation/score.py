"""All metrics of a clip, and the distances between two sets of clips.

What cannot be computed is left out, never guessed: `left_out` says why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from animate_jax.evaluation import pixels
from animate_jax.evaluation.frechet import frechet_distance
from animate_jax.evaluation.layers import Weights
from animate_jax.evaluation.lpips import lpips
from animate_jax.evaluation.networks import LPIPS_NETWORKS, NETWORKS, missing_files
from animate_jax.evaluation.ssim import (
    DISCO_WINDOW,
    MS_SSIM_SMALLEST,
    SSIM_SMALLEST,
    ms_ssim,
    ssim,
    ssim_disco,
)

PICTURES, CLIPS = 8, 2  # that go through a compiled function at once
LPIPS_SMALLEST = 64
# Pixels that the shorter side of a picture must have.
SMALLEST = {"ssim": SSIM_SMALLEST, "ms_ssim": MS_SSIM_SMALLEST, "ssim_disco": DISCO_WINDOW}
# In the order of reports: whether more is better.
METRICS = {
    "l1": False,
    "psnr": True,
    "psnr_character": True,
    "ssim": True,
    "ms_ssim": True,
    "lpips_alex": False,
    "lpips_vgg": False,
    "flicker": False,
    "flicker_ratio": None,  # 1 is best
    "l1_disco": False,
    "psnr_disco": None,  # means nothing
    "ssim_disco": True,
    "lpips_disco": False,
}
DISCO = {
    "l1_disco": pixels.l1_disco,
    "psnr_disco": pixels.psnr_disco,
    "ssim_disco": ssim_disco,
}
DISTANCES = {network.metric: name for name, network in NETWORKS.items()}
LARGEST_PSNR = 100.0  # dB, at which a mean can still be taken: DisCo's value for equal pictures


@dataclass(frozen=True)
class Networks:
    """Weights by name of the network, for LPIPS and for the distances; each may be empty."""

    lpips: Mapping[str, Weights] = field(default_factory=dict)
    features: Mapping[str, Weights] = field(default_factory=dict)


@dataclass(frozen=True)
class Windows:
    """Which parts of a clip FVD and FID-VID look at: `frames` from every `stride`th on."""

    frames: int = 16
    stride: int = 16


def frame_scores(
    predicted: np.ndarray, truth: np.ndarray, mask: np.ndarray | None, networks: Networks
) -> dict[str, np.ndarray]:
    """Metrics of every frame, (frames,) each, of uint8 clips (frames, height, width, 3).

    mask: bool (frames, height, width), the character's pixels, where they are known.
    """
    smallest = min(predicted.shape[1:3])
    both = predicted, truth
    # Some pictures at a time: of a long clip all at once would take many times its size.
    parts = [slice(start, start + PICTURES) for start in range(0, len(truth), PICTURES)]
    scores = {
        name: np.concatenate([score(predicted[part], truth[part]) for part in parts])
        for name, score in DISCO.items()
        if smallest >= SMALLEST.get(name, 0)
    }
    large_enough = tuple(name for name in _SIMILARITIES if smallest >= SMALLEST.get(name, 0))
    scores |= in_batches(functools.partial(_similarities, large_enough), *both)
    if mask is not None:
        scores |= in_batches(_masked, *both, mask)
    if smallest >= LPIPS_SMALLEST:
        for kind, weights in networks.lpips.items():
            function = functools.partial(_lpips, kind, kind == "vgg", weights)
            scores |= in_batches(function, *both)
    for name in scores:
        if name.startswith("psnr"):
            scores[name] = np.minimum(scores[name], LARGEST_PSNR)
    return {name: scores[name] for name in METRICS if name in scores}


def clip_scores(
    frames: Mapping[str, np.ndarray], predicted: np.ndarray, truth: np.ndarray
) -> dict[str, float]:
    """Metrics of a clip: the means of its frames' (where they are defined), and the flicker."""
    scores = {n: float(values[np.isfinite(values)].mean()) for n, values in frames.items()
              if np.isfinite(values).any()}  # fmt: skip
    names = "flicker", "flicker_ratio"
    flickers = zip(names, pixels.flicker(predicted, truth))
    scores |= {name: float(value) for name, value in flickers if np.isfinite(value)}
    return {name: scores[name] for name in METRICS if name in scores}


def clip_features(clip: np.ndarray, networks: Networks, windows: Windows) -> dict[str, np.ndarray]:
    """Features of a clip by distance, (n, d): of its pictures, or of its windows, if any."""
    found = {}
    for name, weights in networks.features.items():
        network, size, parts = NETWORKS[name], PICTURES, clip
        if network.metric != "fid":
            starts = range(0, len(clip) - windows.frames + 1, windows.stride)
            parts, size = [clip[start : start + windows.frames] for start in starts], CLIPS
        if len(parts):
            function = functools.partial(_features, name, weights)
            found[network.metric] = in_batches(function, parts, size=size)["features"]
    return found


def set_distances(
    predicted: Sequence[Mapping], truth: Sequence[Mapping], networks: Networks
) -> dict[str, dict]:
    """{distance: {"value", "samples"}} between the features of two sets of clips.

    samples: pictures or windows of each set. A distance with fewer than two is left out.
    """
    found = {}
    for metric, name in DISTANCES.items():
        sets = [[clip[metric] for clip in clips if metric in clip] for clips in (predicted, truth)]
        if name not in networks.features or not all(sets):
            continue
        sets = [np.concatenate(features) for features in sets]
        if min(map(len, sets)) > 1:
            found[metric] = {"value": frechet_distance(*sets), "samples": len(sets[0])}
    return found


def left_out(
    networks: Networks, rows: Sequence[Mapping], windows: Windows, distances: Mapping
) -> dict[str, str]:
    """Why metrics are missing from a report, or from some of its clips, by their names."""
    sides = SMALLEST.copy()
    usual = {
        "psnr_character": "which pixels are the character's is known of puppets only",
        "flicker": "needs two frames",
        "flicker_ratio": "needs two frames of the truth that differ",
    }
    for kind in LPIPS_NETWORKS:
        for name in [f"lpips_{kind}", *(["lpips_disco"] if kind == "vgg" else [])]:
            if kind in networks.lpips:
                sides[name] = LPIPS_SMALLEST
            else:
                usual[name] = missing_files("lpips")
    for name, side in sides.items():
        usual[name] = f"needs pictures of at least {side} pixels on each side"
    reasons = {}
    for name, reason in usual.items():
        lacking = sum(name not in row for row in rows)
        some = f"{lacking} of {len(rows)} clips: " if lacking < len(rows) else ""
        if lacking:
            reasons[name] = some + reason
    for metric, name in DISTANCES.items():
        if name not in networks.features:
            reasons[metric] = missing_files(name)
        elif metric not in distances:
            what = "frames" if metric == "fid" else f"windows of {windows.frames} frames"
            reasons[metric] = f"needs at least two {what}"
    return reasons


def in_batches(function: Callable, *arrays: Sequence, size: int = PICTURES) -> dict:
    """`function` of rows of the arrays, `size` at a time; the last are filled up, to compile once.

    It returns a dict of arrays with as many rows. uint8 becomes float32 in [0, 1] before. Lists of
    windows that overlap are only joined batch by batch.
    """
    outs = []
    for start in range(0, len(arrays[0]), size):
        parts = [np.asarray(array[start : start + size]) for array in arrays]
        count = len(parts[0])
        parts = [np.concatenate([p, np.repeat(p[-1:], size - count, 0)]) for p in parts]
        parts = [p.astype(np.float32) / 255 if p.dtype == np.uint8 else p for p in parts]
        outs.append({name: np.asarray(x)[:count] for name, x in function(*parts).items()})
    return {name: np.concatenate([out[name] for out in outs]) for name in outs[0]}


_SIMILARITIES = {"l1": pixels.l1, "psnr": pixels.psnr, "ssim": ssim, "ms_ssim": ms_ssim}


@functools.partial(jax.jit, static_argnums=0)
def _similarities(names, a, b):
    return {name: _SIMILARITIES[name](a, b) for name in names}


@jax.jit
def _masked(a, b, mask):
    return {"psnr_character": pixels.psnr(a, b, mask)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _lpips(kind, disco, weights, a, b):
    scores = {f"lpips_{kind}": lpips(weights, a, b, kind)}
    return scores | ({"lpips_disco": lpips(weights, a, b, kind, normalize=False)} if disco else {})


@functools.partial(jax.jit, static_argnums=0)
def _features(name, weights, x):
    return {"features": NETWORKS[name].features(weights, jnp.asarray(x))}
