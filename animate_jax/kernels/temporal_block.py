"""Attention along the frames with all that stands around it, as one Pallas kernel for TPU.

    out = x + attention(q, k, v) W_out + b_out
    q, k, v = (LayerNorm(x) + positions) W_q, ... W_k, ... W_v          (arXiv 2307.04725, 4.2)

One kernel computes it (`temporal_block_forward`) and one its gradient, from the tokens again
(`temporal_block_gradient`); where the latter's memory is not there, the plain version's is taken.
"""

from __future__ import annotations

import functools

import jax
from jax.ad_checkpoint import checkpoint_name

from animate_jax.kernels import temporal, temporal_block_gradient
from animate_jax.kernels.attention import temporal_attention
from animate_jax.kernels.dispatch import (
    HEAD_AXIS,
    axis_size,
    by_platform,
    fast_memory,
    rows_over_mesh,
)
from animate_jax.kernels.parts import BLOCK, normalise
from animate_jax.kernels.temporal_block_forward import Weights, memory, run

MAX_FRAMES = 32  # the program of a block grows with them


def temporal_block(x: jax.Array, weights: Weights, heads: int, eps: float = 1e-5) -> jax.Array:
    """x (B, F, N, C) in the compute dtype -> the same."""
    one = functools.partial(_plain, heads=heads, eps=eps)
    tpu = None
    if supports(x, weights, heads):
        tpu = rows_over_mesh(functools.partial(_fused, heads=heads, eps=eps))
    return by_platform(one, x, weights, tpu=tpu)


def _plain(x, weights, heads, eps):
    tokens = normalise(x, weights.scale, weights.shift, eps)
    tokens += weights.positions[:, None].astype(x.dtype)
    projections = weights.w_query, weights.w_key, weights.w_value
    attended = temporal_attention(*(tokens @ w for w in projections), heads)
    return x + (attended @ weights.w_out + weights.b_out)


def supports(x, weights: Weights, heads: int) -> bool:
    """Whether the kernel takes tokens (B, F, N, C) and weights of these shapes and types."""
    return (
        temporal.supports(x, heads)
        and x.shape[1] <= MAX_FRAMES
        and x.dtype == weights.w_query.dtype
        and axis_size(HEAD_AXIS) == 1  # else XLA splits the projections, head by head
        and memory(x, heads) <= fast_memory()
    )


def _fused(x, weights, heads, eps, interpret=False):
    return checkpoint_name(_temporal_block(x, weights, heads, eps, interpret), BLOCK)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _temporal_block(x, weights, heads, eps, interpret):
    return run(x, weights, heads, eps, interpret)


def _with_residuals(x, weights, heads, eps, interpret):
    return run(x, weights, heads, eps, interpret), (x, weights)


def _gradient(heads, eps, interpret, residuals, cotangent):
    if temporal_block_gradient.supports(residuals[0], heads):
        return temporal_block_gradient.gradient(*residuals, cotangent, heads, eps, interpret)
    return jax.vjp(functools.partial(_plain, heads=heads, eps=eps), *residuals)[1](cotangent)


_temporal_block.defvjp(_with_residuals, _gradient)
