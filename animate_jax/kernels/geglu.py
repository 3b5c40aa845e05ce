"""What the feed-forward's kernels share: its weights, how their hidden channels are cut, GELU."""

from __future__ import annotations

import math
import typing

import jax
import jax.numpy as jnp

TOKENS = 1024, 512, 256, 128  # of a block
HIDDEN = 640, 512, 384, 256, 128  # channels of a piece
# erf(z) = 1 - t (a1 + t (a2 + ...)) exp(-z^2), t = 1 / (1 + p z), for z >= 0, to 1.5e-7
# (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26).
ERF_P = 0.3275911
ERF_A = 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429


class Weights(typing.NamedTuple):
    """Of the norm and the two layers; C channels, H hidden ones. All in the compute dtype but the
    norm's, which are float32."""

    scale: jax.Array  # (C,)
    shift: jax.Array  # (C,)
    w_in: jax.Array  # (C, 2 H): values, then gates
    b_in: jax.Array  # (2 H,)
    w_out: jax.Array  # (H, C)
    b_out: jax.Array  # (C,)


def piece_of(weights: Weights) -> int | None:
    """Hidden channels of a piece: the most that divide them; None if none do."""
    hidden = weights.w_out.shape[0]
    return next((n for n in HIDDEN if hidden % n == 0), None)


def block_of(tokens: int, memory, available: int) -> int | None:
    """Tokens of a block: the most that fit without filling up more than an eighth, if any do.

    memory: block -> bytes of fast memory.
    """
    fitting = [block for block in TOKENS if memory(block) <= available]
    filled = [block for block in fitting if 8 * (-tokens % block) <= tokens]
    return next(iter(filled or fitting[-1:]), None)


def gelu_and_slope(x):
    """Exact GELU of float32, and its slope: by an erf that needs only what the vector unit has."""
    z = jnp.abs(x) * 0.5**0.5
    t = 1 / (1 + ERF_P * z)
    series = ERF_A[-1]
    for a in ERF_A[-2::-1]:
        series = series * t + a
    bell = jnp.exp(-z * z)
    tail = 0.5 * series * t * bell  # 1 - Phi(|x|)
    below = jnp.where(x >= 0, 1 - tail, tail)
    return x * below, below + x * bell * (2 * math.pi) ** -0.5
