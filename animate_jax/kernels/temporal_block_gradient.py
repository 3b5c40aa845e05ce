"""The gradient of `temporal_block` as one Pallas kernel for TPU.

A block of pixels with all its frames is taken from the tokens to what they and the weights get,
without leaving fast memory: the forward pass up to attention again, attention's gradient, and with
t = LayerNorm(x) + positions, for a cotangent g of the block's result,

    d_attended = g W_out';  d_t = d_q W_q' + d_k W_k' + d_v W_v'
    d_W_q = t' d_q (and so on);  d_W_out = attended' g

Gradients of the four weights are summed up over all blocks in fast memory.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from animate_jax.kernels import temporal
from animate_jax.kernels.dispatch import fast_memory, reserve
from animate_jax.kernels.parts import (
    COLUMNS_BY_COLUMNS,
    LANES,
    ROWS_BY_ROWS,
    in_loop,
    lanes,
    multiply,
    normalise_gradient,
)
from animate_jax.kernels.temporal_block_forward import (
    FRAMES_AT_ONCE,
    Weights,
    filled,
    normalise_frame,
    once,
    project_tile,
    wide_of,
    words_of,
)


def gradient(x, weights: Weights, cotangent, heads: int, eps: float, interpret: bool = False):
    """Cotangents of x (B, F, N, C) and of the weights, in their dtypes."""
    dx, sums, d_frames, *d_square = _run(x, weights, cotangent, heads, eps, interpret)
    channels = x.shape[-1]
    d_square = [d[:channels, :channels] for d in d_square]
    d_scale, d_b_out = sums[:, :channels]
    d_positions = d_frames[:, 0, :channels]
    grown = Weights(d_scale, d_positions.sum(0), d_positions, *d_square, d_b_out)
    return dx, Weights(*(d.astype(w.dtype) for d, w in zip(grown, weights)))


def supports(x, heads: int) -> bool:
    """Whether the kernel takes tokens (B, F, N, C) that the forward pass takes."""
    return _memory(x, heads) <= fast_memory()


def _memory(x, heads):
    """Bytes of fast memory: what is moved is there twice, weights and their gradients once."""
    plan, wide = temporal.plan_of(x, heads), wide_of(x.shape[-1])
    rows, item = plan.frames * plan.pixels, x.dtype.itemsize
    block = rows * wide * item
    kept = 6 * block + 4 * rows * wide + 8 * 4 * math.prod(words_of(plan, wide).shape)
    return 6 * block + kept + 4 * wide * wide * (item + 4) + reserve()


@functools.partial(jax.jit, static_argnames=("heads", "eps", "interpret"))
def _run(x, weights, cotangent, heads, eps, interpret):
    """dx; sums (2, C), what scale and b_out get, and (F, 1, C), what the frames' positions get;
    and what the four weights get. All float32 but dx, with channels filled up."""
    batch, frames, pixels, channels = x.shape
    plan, wide = temporal.plan_of(x, heads), wide_of(channels)
    whole = filled(weights, wide)
    block = pl.BlockSpec((1, frames, plan.pixels, channels), lambda b, n: (b, 0, n, 0))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    totals = (2, wide), (frames, 1, wide), *[(wide, wide)] * 4
    straight = pltpu.VMEM((frames * plan.pixels, wide), x.dtype)
    words = words_of(plan, wide)
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan, pixels=pixels, eps=eps),
        grid=(batch, pl.cdiv(pixels, plan.pixels)),
        in_specs=[block, block, *map(once, whole)],
        out_specs=[block, *[anywhere] * len(totals)],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in totals),
        ],
        scratch_shapes=[
            *(pltpu.VMEM(shape, jnp.float32) for shape in totals),
            *[straight] * 6,
            pltpu.VMEM((frames * plan.pixels, wide), jnp.float32),
            *[words] * 8,
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",) * 2, vmem_limit_bytes=_memory(x, heads)
        ),
        interpret=interpret,
        name="temporal_block_gradient",
    )(x, cotangent, *whole)


def _kernel(
    x, cotangent, rows, shifts, w_query, w_key, w_value, w_out, dx, *refs, plan, pixels, eps
):
    outputs, totals, refs = refs[:6], refs[6:12], refs[12:]
    sums, d_frames, *d_projections, d_w_out = totals
    tokens, g, *straight, d_tokens = refs[:7]
    query, key, value, d_attended, *gradients = refs[7:]
    projections = w_query, w_key, w_value
    channels, tiles = x.shape[-1], tokens.shape[1] // LANES
    places = pl.program_id(0), pl.program_id(1)
    ends = pl.num_programs(0) - 1, pl.num_programs(1) - 1
    filling = pixels % plan.pixels != 0
    count = pixels - places[1] * plan.pixels  # of pixels that are there, if not all are

    def only_pixels(y):
        """Zero in rows (frames * pixels, or one frame's) of pixels that are not there."""
        if not filling:
            return y
        pixel = jax.lax.broadcasted_iota(jnp.int32, (y.shape[0], 1), 0) % plan.pixels
        return jnp.where(pixel < count, y, jnp.zeros_like(y))

    @pl.when((places[0] == 0) & (places[1] == 0))
    def _():
        for total in totals:
            total[:] = jnp.zeros_like(total)

    def put_normalised(frame, _):
        normalise_frame(x, rows, shifts, tokens, frame, plan, eps)

    def project(tile, _):
        project_tile(tile, tokens, projections, (query, key, value), plan)
        y = multiply(g[:], w_out[lanes(tile), :], ROWS_BY_ROWS)
        temporal.put_tile(d_attended, tile, y.astype(g.dtype), plan)

    def attend(part, _):
        part = pl.ds(part * plan.tiles, plan.tiles)
        inputs, outputs = (
            [words.at[part] for words in some]
            for some in ((query, key, value, d_attended), gradients)
        )
        temporal.attend_words_gradient(inputs, outputs, plan)

    def multiply_tile(tile, _):
        at = lanes(tile)
        *d_straight, attended = straight
        for d, d_w in zip(d_straight, d_projections):
            d_w[:, at] += multiply(tokens[:], d[:, at], COLUMNS_BY_COLUMNS)
        d_w_out[:, at] += multiply(attended[:], g[:, at], COLUMNS_BY_COLUMNS)
        d_tokens[:, at] = sum(
            multiply(d[:], w[at, :], ROWS_BY_ROWS) for d, w in zip(d_straight, projections)
        )

    def finish(frame, _):
        at = pl.ds(pl.multiple_of(frame * plan.pixels, plan.pixels), plan.pixels)
        d = d_tokens[at, :channels]
        d_x, d_scale = normalise_gradient(x[0, frame], rows[:1, :channels], d, eps)
        residual = cotangent[0, frame].astype(jnp.float32)
        dx[0, frame] = (residual + d_x).astype(dx.dtype)
        for i, part in enumerate((d_scale, residual)):
            sums[i : i + 1, :channels] += only_pixels(part).sum(0, keepdims=True)
        d_frames[frame, :, :channels] += d.sum(0, keepdims=True)

    jax.lax.fori_loop(0, plan.frames, put_normalised, None, unroll=FRAMES_AT_ONCE)
    if filling:
        tokens[:] = only_pixels(tokens[:])
    for tile in range(tiles):
        width = min(channels - tile * LANES, LANES)
        y = cotangent[0, :, :, lanes(tile, width)].reshape(-1, width)
        g[:, lanes(tile)] = jnp.pad(only_pixels(y), ((0, 0), (0, LANES - width)))
    in_loop(project, tiles)
    jax.lax.fori_loop(0, tiles // plan.tiles, attend, None)
    for words, y in zip(gradients, straight):
        for tile in range(tiles):
            y[:, lanes(tile)] = temporal.take_tile(words, tile, plan)
    in_loop(multiply_tile, tiles)
    jax.lax.fori_loop(0, plan.frames, finish, None)

    @pl.when((places[0] == ends[0]) & (places[1] == ends[1]))
    def _():
        for total, out in zip(totals, outputs):
            pltpu.sync_copy(total, out)
