"""Attention along the frames with all that stands around it, as one Pallas kernel for TPU.

    out = x + attention(q, k, v) W_out + b_out
    q, k, v = (LayerNorm(x) + positions) W_q, ... W_k, ... W_v          (arXiv 2307.04725, 4.2)

A block of pixels with all its frames stays in fast memory from the tokens to the sum, beside the
four weights, so that neither normed tokens nor queries, keys, values and attention's output are
written out. The attention is that of `kernels.temporal`. The backward pass is that of the plain
version, computed again from the tokens.
"""

from __future__ import annotations

import functools
import math
import typing

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from animate_jax.kernels import temporal
from animate_jax.kernels.attention import temporal_attention
from animate_jax.kernels.dispatch import (
    HEAD_AXIS,
    axis_size,
    by_platform,
    fast_memory,
    rows_over_mesh,
)
from animate_jax.kernels.parts import normalise
from animate_jax.kernels.temporal import LANES, RESERVE

MAX_FRAMES = 32  # the program of a block grows with them
FRAMES_AT_ONCE = 8  # to normalise
TILES_AT_ONCE = 3  # of 128 channels


class Weights(typing.NamedTuple):
    """C channels, F frames. All in the compute dtype but the norm's and the positions, float32."""

    scale: jax.Array  # (C,)
    shift: jax.Array  # (C,)
    positions: jax.Array  # (F, C)
    w_query: jax.Array  # (C, C)
    w_key: jax.Array  # (C, C)
    w_value: jax.Array  # (C, C)
    w_out: jax.Array  # (C, C)
    b_out: jax.Array  # (C,)


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
        and _memory(x, heads) <= fast_memory()
    )


def _fused(x, weights, heads, eps, interpret=False):
    return _temporal_block(x, weights, heads, eps, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _temporal_block(x, weights, heads, eps, interpret):
    return _run(x, weights, heads, eps, interpret)


def _with_residuals(x, weights, heads, eps, interpret):
    return _run(x, weights, heads, eps, interpret), (x, weights)


def _gradient(heads, eps, interpret, residuals, cotangent):
    return jax.vjp(functools.partial(_plain, heads=heads, eps=eps), *residuals)[1](cotangent)


_temporal_block.defvjp(_with_residuals, _gradient)


def _wide(channels):
    """Channels with the last tile filled up."""
    return -(-channels // LANES) * LANES


def _memory(x, heads):
    """Bytes of fast memory: what is moved is there twice, weights only once."""
    channels = x.shape[-1]
    plan, wide = temporal.plan_of(x, heads), _wide(channels)
    block = plan.frames * plan.pixels * wide * x.dtype.itemsize
    words = channels // plan.channels * math.prod(plan.words_shape) * 4
    return 5 * block + 4 * words + 4 * wide * wide * x.dtype.itemsize + RESERVE


@functools.partial(jax.jit, static_argnames=("heads", "eps", "interpret"))
def _run(x, weights, heads, eps, interpret):
    batch, frames, pixels, channels = x.shape
    plan, wide = temporal.plan_of(x, heads), _wide(channels)

    def fill(w):
        return jnp.pad(w, [(0, wide - n if n == channels else 0) for n in w.shape])

    scale, shift, positions, b_out = (
        y.astype(jnp.float32)
        for y in (weights.scale, weights.shift, weights.positions, weights.b_out)
    )
    rows = jnp.stack([scale, b_out])
    shifts = (shift + positions)[:, None]
    square = weights.w_query, weights.w_key, weights.w_value, weights.w_out
    whole = [fill(w) for w in (rows, shifts, *square)]

    block = pl.BlockSpec((1, frames, plan.pixels, channels), lambda b, n: (b, 0, n, 0))
    once = [
        pl.BlockSpec(w.shape, lambda b, n, axes=w.ndim: (0,) * axes, pipeline_mode=pl.Buffered(1))
        for w in whole
    ]
    words = pltpu.VMEM(
        (wide // LANES, *plan.words_shape[1:]), jnp.uint32 if plan.packed else jnp.float32
    )
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan, eps=eps),
        grid=(batch, pl.cdiv(pixels, plan.pixels)),
        in_specs=[block, *once],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[pltpu.VMEM((frames * plan.pixels, wide), x.dtype), *[words] * 4],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 2, vmem_limit_bytes=_memory(x, heads)
        ),
        interpret=interpret,
        name="temporal_block",
    )(x, *whole)


def _kernel(x, rows, shifts, *refs, plan, eps):
    """One block of pixels: its tokens, their projections as words by tile, attention, the sum."""
    *projections, w_out, out, tokens, query, key, value, attended = refs
    channels, tiles = x.shape[-1], tokens.shape[1] // LANES

    def normalise(frame, _):
        _normalise(x, rows, shifts, tokens, frame, plan, eps)

    def project(tile, _):
        for w, words in zip(projections, (query, key, value)):
            y = _multiply(tokens[:], w[:, _lanes(tile)])
            temporal.put_tile(words, tile, y.astype(tokens.dtype), plan)

    def attend(part, _):
        part = pl.ds(part * plan.tiles, plan.tiles)
        temporal.attend_words(*(w.at[part] for w in (query, key, value, attended)), plan)

    def finish(tile, _, width=LANES):
        y = _multiply(tokens[:], w_out[:, _lanes(tile)])[:, :width]
        at = _lanes(tile, width)
        y += x[0, :, :, at].reshape(y.shape).astype(jnp.float32) + rows[1:2, at]
        out[0, :, :, at] = y.astype(out.dtype).reshape(plan.frames, plan.pixels, width)

    jax.lax.fori_loop(0, plan.frames, normalise, None, unroll=FRAMES_AT_ONCE)
    _loop(project, tiles)
    jax.lax.fori_loop(0, tiles // plan.tiles, attend, None)
    for tile in range(tiles):
        tokens[:, _lanes(tile)] = temporal.take_tile(attended, tile, plan)
    _loop(finish, channels // LANES)
    if channels % LANES:
        finish(tiles - 1, None, channels % LANES)


def _loop(do, tiles):
    """A wide block's tiles go through a loop: a program for each would take long to compile."""
    if tiles <= TILES_AT_ONCE:
        for tile in range(tiles):
            do(tile, None)
    else:
        jax.lax.fori_loop(0, tiles, do, None)


def _lanes(tile, width=LANES):
    if isinstance(tile, int):
        return slice(tile * LANES, tile * LANES + width)
    return pl.ds(pl.multiple_of(tile * LANES, LANES), width)


def _normalise(x, rows, shifts, tokens, frame, plan, eps):
    """One frame's pixels to tokens; zero in what fills up the last tile."""
    channels, parts = x.shape[-1], []
    for first in range(0, channels, LANES):
        y = x[0, frame, :, first : min(first + LANES, channels)].astype(jnp.float32)
        parts.append(jnp.pad(y, ((0, 0), (0, LANES - y.shape[1]))))
    mean = sum(parts).sum(-1, keepdims=True) / channels
    parts = [y - mean for y in parts]
    if channels % LANES:
        lane = jax.lax.broadcasted_iota(jnp.int32, parts[-1].shape, 1)
        parts[-1] = jnp.where(lane < channels % LANES, parts[-1], 0.0)
    variance = sum(y * y for y in parts).sum(-1, keepdims=True) / channels
    factor = jax.lax.rsqrt(variance + eps)
    start = pl.multiple_of(frame * plan.pixels, plan.pixels)
    for tile, y in enumerate(parts):
        y = y * (factor * rows[0:1, _lanes(tile)]) + shifts[frame, :, _lanes(tile)]
        tokens[pl.ds(start, plan.pixels), _lanes(tile)] = y.astype(tokens.dtype)


def _multiply(a, b):
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, preferred_element_type=jnp.float32, precision=exact)
