"""The forward pass of `temporal_block` as one Pallas kernel for TPU.

A block of pixels with all its frames stays in fast memory from the tokens to the sum, beside the
four weights, so that neither normed tokens nor queries, keys, values and attention's output are
written out. The attention is that of `kernels.temporal`.
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
from animate_jax.kernels.dispatch import reserve
from animate_jax.kernels.parts import LANES, in_loop, lanes, multiply

FRAMES_AT_ONCE = 8  # to normalise


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


def wide_of(channels: int) -> int:
    """Channels with the last tile filled up."""
    return -(-channels // LANES) * LANES


def memory(x, heads: int) -> int:
    """Bytes of fast memory: what is moved is there twice, weights only once."""
    channels = x.shape[-1]
    plan, wide = temporal.plan_of(x, heads), wide_of(channels)
    block = plan.frames * plan.pixels * wide * x.dtype.itemsize
    words = channels // plan.channels * math.prod(plan.words_shape) * 4
    return 5 * block + 4 * words + 4 * wide * wide * x.dtype.itemsize + reserve()


def words_of(plan, wide: int):
    """Fast memory for a block's 32-bit words by tile, as `temporal.put_tile` lays them out."""
    shape = wide // LANES, *plan.words_shape[1:]
    return pltpu.VMEM(shape, jnp.uint32 if plan.packed else jnp.float32)


def once(w) -> pl.BlockSpec:
    """The whole of w, the same for all blocks of pixels."""
    axes = (0,) * w.ndim
    return pl.BlockSpec(w.shape, lambda b, n: axes, pipeline_mode=pl.Buffered(1))


def filled(weights: Weights, wide: int) -> list[jax.Array]:
    """Rows (2, wide) of scale and b_out, shifts (F, 1, wide), and the four weights (wide, wide)."""
    channels = len(weights.scale)

    def fill(w):
        return jnp.pad(w, [(0, wide - n if n == channels else 0) for n in w.shape])

    scale, shift, positions, b_out = (
        y.astype(jnp.float32)
        for y in (weights.scale, weights.shift, weights.positions, weights.b_out)
    )
    rows, shifts = jnp.stack([scale, b_out]), (shift + positions)[:, None]
    square = weights.w_query, weights.w_key, weights.w_value, weights.w_out
    return [fill(w) for w in (rows, shifts, *square)]


@functools.partial(jax.jit, static_argnames=("heads", "eps", "interpret"))
def run(x, weights: Weights, heads: int, eps: float, interpret: bool):
    """x (B, F, N, C) -> the block's result."""
    batch, frames, pixels, channels = x.shape
    plan, wide = temporal.plan_of(x, heads), wide_of(channels)
    whole = filled(weights, wide)
    block = pl.BlockSpec((1, frames, plan.pixels, channels), lambda b, n: (b, 0, n, 0))
    words = words_of(plan, wide)
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan, eps=eps),
        grid=(batch, pl.cdiv(pixels, plan.pixels)),
        in_specs=[block, *map(once, whole)],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[pltpu.VMEM((frames * plan.pixels, wide), x.dtype), *[words] * 4],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 2, vmem_limit_bytes=memory(x, heads)
        ),
        interpret=interpret,
        name="temporal_block",
    )(x, *whole)


def _kernel(x, rows, shifts, *refs, plan, eps):
    """One block of pixels: its tokens, their projections as words by tile, attention, the sum."""
    *projections, w_out, out, tokens, query, key, value, attended = refs
    channels, tiles = x.shape[-1], tokens.shape[1] // LANES

    def put_normalised(frame, _):
        normalise_frame(x, rows, shifts, tokens, frame, plan, eps)

    def project(tile, _):
        project_tile(tile, tokens, projections, (query, key, value), plan)

    def attend(part, _):
        part = pl.ds(part * plan.tiles, plan.tiles)
        temporal.attend_words(*(w.at[part] for w in (query, key, value, attended)), plan)

    def finish(tile, _, width=LANES):
        y = multiply(tokens[:], w_out[:, lanes(tile)])[:, :width]
        at = lanes(tile, width)
        y += x[0, :, :, at].reshape(y.shape).astype(jnp.float32) + rows[1:2, at]
        out[0, :, :, at] = y.astype(out.dtype).reshape(plan.frames, plan.pixels, width)

    jax.lax.fori_loop(0, plan.frames, put_normalised, None, unroll=FRAMES_AT_ONCE)
    in_loop(project, tiles)
    jax.lax.fori_loop(0, tiles // plan.tiles, attend, None)
    for tile in range(tiles):
        tokens[:, lanes(tile)] = temporal.take_tile(attended, tile, plan)
    in_loop(finish, channels // LANES)
    if channels % LANES:
        finish(tiles - 1, None, channels % LANES)


def project_tile(tile, tokens, projections, words, plan):
    """One tile of query, key and value, as words."""
    for w, to in zip(projections, words):
        y = multiply(tokens[:], w[:, lanes(tile)])
        temporal.put_tile(to, tile, y.astype(tokens.dtype), plan)


def normalise_frame(x, rows, shifts, tokens, frame, plan, eps):
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
        y = y * (factor * rows[0:1, lanes(tile)]) + shifts[frame, :, lanes(tile)]
        tokens[pl.ds(start, plan.pixels), lanes(tile)] = y.astype(tokens.dtype)
