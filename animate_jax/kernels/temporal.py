"""Attention along the frames at every pixel, as Pallas kernels for TPU.

Works on (batch, frames, pixels, channels) as it lies in memory, a block of pixels at a time. A
frame count is tiny beside a 128 x 128 matrix unit, so several heads of ONE pixel share a product.
With `segment` the frames rounded up to a power of two, 128 // segment heads fit side by side:

    scores (segment, 128) = query (segment, channels) x expanded keys (128, channels) transposed

where the expanded keys hold, for each head, all frames' keys with the other heads' channels set to
zero. No score is computed twice or thrown away, `weights x expanded values` lands every head in its
own channels, and sums over a head's keys are a product with a constant matrix of ones. Channels are
never moved: tiles of 128 channels that a group of heads does not touch are skipped.

Two neighbouring pixels of bfloat16 share a 32-bit word. A load with a stride of one frame brings
all frames of such a pair; splitting it packs frames f and f + segment / 2 together, so rows are in
that order inside the kernel, which attention does not mind.

The softmax first runs without subtracting the maximum, which would cost a third of the kernel. That
is exact while every sum of exponentials stays within SAFE; a block where one does not is done again
with the maximum subtracted.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from animate_jax.kernels.dispatch import fast_memory, reserve
from animate_jax.kernels.parts import LANES, ROWS_BY_COLUMNS, ROWS_BY_ROWS

MAX_FRAMES = LANES
SAFE = 1e-30, 1e30  # of a sum of exponentials: nothing overflowed, nothing that counts was lost
SCORE_REGISTERS = 128  # scores worked on at once, in registers of 8 x 128


def supports(query, heads: int) -> bool:
    """Whether the kernel takes a query (B, F, N, C) of this shape and type."""
    _, frames, pixels, channels = query.shape
    return (
        query.dtype in (jnp.bfloat16, jnp.float32)
        and frames <= MAX_FRAMES
        and pixels >= 16
        and channels % heads == 0
        and plan_of(query, heads).memory(arrays=7) + reserve() <= fast_memory()
    )


def temporal_attention(query, key, value, *, heads, interpret=False):
    """The same as `kernels.attention.temporal_attention`; interpret: on any platform, slowly."""
    return _temporal_attention(query, key, value, heads, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _temporal_attention(query, key, value, heads, interpret):
    return _call(_forward, (query, key, value), 1, heads, interpret)[0]


def _with_residuals(query, key, value, heads, interpret):
    return _temporal_attention(query, key, value, heads, interpret), (query, key, value)


def _gradient(heads, interpret, residuals, cotangent):
    return _call(_backward, (*residuals, cotangent), 3, heads, interpret)


_temporal_attention.defvjp(_with_residuals, _gradient)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of one block: (frames, pixels, channels), `width` channels a head."""

    frames: int
    channels: int
    width: int
    dtype: jnp.dtype

    @property
    def packed(self) -> bool:
        return self.dtype == jnp.bfloat16

    @property
    def pixels(self) -> int:
        return 16 if self.packed else 8

    @property
    def words(self) -> int:
        """Rows of 32-bit words that a frame of the block has: pixels, or pairs of pixels."""
        return 8

    @property
    def segment(self) -> int:
        return max(16, 1 << (self.frames - 1).bit_length())

    @property
    def tiles(self) -> int:
        return -(-self.channels // LANES)

    @property
    def groups(self) -> list[tuple[range, range]]:
        """Heads that share a product, and the tiles of channels that they touch."""
        heads, slots = self.channels // self.width, LANES // self.segment
        groups = []
        for first in range(0, heads, slots):
            last = min(heads, first + slots)
            touched = range(first * self.width // LANES, -(-last * self.width // LANES))
            groups.append((range(first, last), touched))
        return groups

    @property
    def words_shape(self) -> tuple[int, int, int]:
        """The block as 32-bit words by tile: (tiles, segment * words, 128)."""
        return self.tiles, self.segment * self.words, LANES

    def memory(self, arrays: int) -> int:
        """Bytes of fast memory: blocks twice, for the transfers, and as words; and the scores."""
        block = self.frames * self.pixels * self.tiles * LANES * self.dtype.itemsize
        scores = 4 * SCORE_REGISTERS * 8 * LANES * 4
        return arrays * (2 * block + 4 * math.prod(self.words_shape)) + scores

    @property
    def words_at_once(self) -> int:
        registers = len(self.groups) * self.segment // 8 * (2 if self.packed else 1)
        return max(1, min(self.words, SCORE_REGISTERS // registers))


def plan_of(query, heads: int) -> Plan:
    """For a query (B, F, N, C): of as few channels as make whole heads and whole tiles."""
    _, frames, _, channels = query.shape
    width = channels // heads
    block = math.lcm(width, LANES)
    return Plan(frames, block if channels % block == 0 else channels, width, query.dtype)


@functools.partial(jax.jit, static_argnames=("kernel", "outputs", "heads", "interpret"))
def _call(kernel, inputs, outputs, heads, interpret):
    batch, frames, pixels, channels = inputs[0].shape
    plan = plan_of(inputs[0], heads)
    shape = 1, frames, plan.pixels, plan.channels
    block = pl.BlockSpec(shape, lambda b, c, n: (b, 0, n, c))
    words = pltpu.VMEM(plan.words_shape, jnp.uint32 if plan.packed else jnp.float32)
    arrays = len(inputs) + outputs
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid=(batch, channels // plan.channels, pl.cdiv(pixels, plan.pixels)),
        in_specs=[block] * len(inputs),
        out_specs=[block] * outputs,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs[:outputs]],
        scratch_shapes=[words] * arrays,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 3,
            vmem_limit_bytes=plan.memory(arrays) + reserve(),
        ),
        interpret=interpret,
        name=f"temporal_attention{kernel.__name__}",
    )(*inputs)


def _forward(*refs, plan: Plan):
    inputs, outputs, scratch = refs[:3], refs[3:4], refs[4:]
    for ref, words in zip(inputs, scratch):
        _gather(ref, words, plan)
    attend_words(*scratch, plan)
    _scatter(scratch[-1], outputs[0], plan)


def attend_words(query, key, value, out, plan: Plan):
    """Attention of one block: 32-bit words by tile, as `put_tile` lays them out, thrice to once."""
    scale = plan.width**-0.5 * math.log2(math.e)

    def attend(first, count, exact):
        """Writes the pixels of `count` rows of words; returns the least and greatest sum."""
        rows = functools.partial(_load, first=first, count=count, plan=plan)
        q, k, v = rows(query), rows(key), rows(value)
        weights, total = _softmax(_products(q, k, plan) * scale, plan, exact)
        weights = (weights * _reciprocal(total, plan)).astype(plan.dtype)
        _store(out, _weigh(weights, v, plan), first, plan)
        return total

    _in_parts(attend, plan)


def _backward(*refs, plan: Plan):
    inputs, outputs, scratch = refs[:4], refs[4:7], refs[7:]
    for ref, words in zip(inputs, scratch):
        _gather(ref, words, plan)
    attend_words_gradient(scratch[:4], scratch[4:], plan)
    for words, ref in zip(scratch[4:], outputs):
        _scatter(words, ref, plan)


def attend_words_gradient(inputs, outputs, plan: Plan):
    """The gradient of `attend_words`, and what it gave if that is wanted.

    inputs: words of query, key, value and the cotangent; outputs: those that the cotangents of
    query, key and value are written to, and perhaps those for attention's own result.
    """
    query, key, value, cotangent = inputs
    d_query, d_key, d_value, *out = outputs
    scale = plan.width**-0.5

    def attend(first, count, exact):
        rows = functools.partial(_load, first=first, count=count, plan=plan)
        q, k, v, g = rows(query), rows(key), rows(value), rows(cotangent)

        # Rows are queries: the gradient of the queries.
        weights, total = _softmax(_products(q, k, plan) * (scale * math.log2(math.e)), plan, exact)
        weights = weights * _reciprocal(total, plan)
        if out:
            _store(out[0], _weigh(weights.astype(plan.dtype), v, plan), first, plan)
        d_weights = _products(g, v, plan)
        mean = _sum_segments(weights * d_weights, plan)
        d_scores = (weights * (d_weights - mean) * scale).astype(plan.dtype)
        _store(d_query, _weigh(d_scores, k, plan), first, plan)

        # Rows are keys: the same transposed, by exchanging the operands. Sums run down the rows.
        scores = _products(k, q, plan) * (scale * math.log2(math.e))
        scores = scores.reshape(-1, plan.segment, LANES) + _hide(plan, axis=1)
        if exact:
            scores -= scores.max(1, keepdims=True)
        weights = jnp.exp2(scores)
        weights = weights * _reciprocal(weights.sum(1, keepdims=True), plan)
        d_weights = _products(v, g, plan).reshape(weights.shape)
        mean = (weights * d_weights).sum(1, keepdims=True)
        d_scores = weights * (d_weights - mean) * scale

        def flat(x):
            return x.reshape(-1, LANES).astype(plan.dtype)

        _store(d_key, _weigh(flat(d_scores), q, plan), first, plan)
        _store(d_value, _weigh(flat(weights), g, plan), first, plan)
        return total

    _in_parts(attend, plan)


def _in_parts(attend, plan):
    """Runs `attend(first, count, exact)` over the block, again and exactly where it has to be."""
    count = plan.words_at_once

    def part(first, exact):
        total = attend(first, count, exact)
        return jnp.all((total > SAFE[0]) & (total < SAFE[1]))

    if count == plan.words:
        safe = part(0, exact=False)
    else:
        safe = jax.lax.fori_loop(
            0, plan.words // count, lambda i, ok: ok & part(i * count, exact=False), True
        )

    @pl.when(jnp.logical_not(safe))
    def _():
        def one(first, _):
            attend(first, 1, True)
            return _

        jax.lax.fori_loop(0, plan.words, one, 0)


def _gather(ref, words, plan):
    """A block (1, frames, pixels, channels) to 32-bit words by tile, zero beyond its edges."""
    for tile in range(plan.tiles):
        channels = slice(tile * LANES, min(plan.channels, (tile + 1) * LANES))
        put_tile(words, tile, ref[0, :, :, channels].reshape(plan.frames * plan.pixels, -1), plan)


def put_tile(words, tile, x, plan: Plan):
    """x (frames * pixels, up to 128 channels), frames outside: fills one tile of the words."""
    filled = plan.frames * plan.words
    x = pltpu.bitcast(x, words.dtype) if plan.packed else x
    words[tile, :filled] = jnp.pad(x, ((0, 0), (0, LANES - x.shape[1])))
    if plan.segment > plan.frames:
        words[tile, filled:] = jnp.zeros_like(words[tile, filled:])


def take_tile(words, tile, plan: Plan):
    """The inverse of `put_tile`: (frames * pixels, 128)."""
    return _operand(words[tile, : plan.frames * plan.words], plan)


def _scatter(words, ref, plan):
    for tile in range(plan.tiles):
        channels = slice(tile * LANES, min(plan.channels, (tile + 1) * LANES))
        x = take_tile(words, tile, plan)[:, : channels.stop - channels.start]
        ref[0, :, :, channels] = x.reshape(plan.frames, plan.pixels, -1)


def _load(words, first, count, plan):
    """Per pixel, per tile: (segment, 128) of all frames, or half as many rows of packed pairs."""
    half = plan.segment // 2
    pixels = []
    for word in range(count):
        start = first + word
        if not plan.packed:
            whole = pl.ds(start, plan.segment, stride=plan.words)
            pixels.append([words.at[tile][whole, :] for tile in range(plan.tiles)])
            continue
        lower, upper = (pl.ds(start + at * plan.words, half, stride=plan.words) for at in (0, half))
        even, odd = [], []
        for tile in range(plan.tiles):
            one, two = _exchange(words.at[tile][lower, :], words.at[tile][upper, :])
            even.append(one)
            odd.append(two)
        pixels += [even, odd]
    return pixels


def _store(words, pixels, first, plan):
    """The inverse of `_load`, from float32 rows."""
    half = plan.segment // 2
    for i in range(len(pixels) // (2 if plan.packed else 1)):
        start = first + i
        for tile in range(plan.tiles):
            if not plan.packed:
                whole = pl.ds(start, plan.segment, stride=plan.words)
                words.at[tile][whole, :] = pixels[i][tile]
                continue
            even, odd = (
                pltpu.bitcast(x[tile].astype(plan.dtype), jnp.uint32)
                for x in pixels[2 * i : 2 * i + 2]
            )
            lower, upper = _exchange(even, odd)
            words.at[tile][pl.ds(start, half, stride=plan.words), :] = lower
            upper_rows = pl.ds(start + half * plan.words, half, stride=plan.words)
            words.at[tile][upper_rows, :] = upper


def _exchange(a, b):
    """Words (low, high) a and b -> (a's low, b's low) and (a's high, b's high)."""
    low, high = jnp.uint32(0xFFFF), jnp.uint32(0xFFFF0000)
    return (a & low) | (b << 16), (a >> 16) | (b & high)


def _operand(x, plan):
    return pltpu.bitcast(x, plan.dtype) if plan.packed else x


def _expand(x, tile, heads, plan):
    """One tile of one pixel's rows, once for each head with the other heads' channels zero."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    parts = []
    for head in range(heads.start, heads.start + LANES // plan.segment):
        low, high = head * plan.width - tile * LANES, (head + 1) * plan.width - tile * LANES
        if head >= heads.stop or high <= 0 or low >= LANES:
            parts.append(jnp.zeros_like(x))
        elif low <= 0 and high >= LANES:
            parts.append(x)
        else:
            parts.append(jnp.where((lane >= low) & (lane < high), x, jnp.zeros_like(x)))
    return _operand(jnp.concatenate(parts), plan)


def _products(rows, columns, plan):
    """Dot products, head by head: (groups * pixels * segment, 128) float32."""
    out = []
    for heads, tiles in plan.groups:
        for row, column in zip(rows, columns):
            out.append(
                sum(
                    jax.lax.dot_general(
                        _operand(row[tile], plan),
                        _expand(column[tile], tile, heads, plan),
                        ROWS_BY_ROWS,
                        preferred_element_type=jnp.float32,
                    )
                    for tile in tiles
                )
            )
    return jnp.concatenate(out)


def _weigh(weights, rows, plan):
    """Sums of rows by weights laid out as `_products` lays them; per pixel, per tile, float32."""
    out = [[0.0] * plan.tiles for _ in rows]
    for i, (heads, tiles) in enumerate(plan.groups):
        for j, row in enumerate(rows):
            at = (i * len(rows) + j) * plan.segment
            for tile in tiles:
                out[j][tile] += jax.lax.dot_general(
                    weights[at : at + plan.segment],
                    _expand(row[tile], tile, heads, plan),
                    ROWS_BY_COLUMNS,
                    preferred_element_type=jnp.float32,
                )
    return out


def _softmax(scores, plan, exact):
    """2 to the scores, and its sums over a head's keys in all of the head's places."""
    if exact:
        scores = scores + _hide(plan, axis=2)[0]
        lane = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        top, step = scores, 1
        while step < plan.segment:
            top = jnp.maximum(top, jnp.take_along_axis(top, lane ^ step, axis=1))
            step *= 2
        scores = scores - top
    weights = jnp.exp2(scores)
    return weights, _sum_segments(weights, plan)


def _frame(index, plan):
    """The frame that stands at a place along a segment."""
    place = index & (plan.segment - 1)
    return (place >> 1) + (place & 1) * (plan.segment // 2) if plan.packed else place


def _hide(plan, axis):
    """To be added to scores: very negative where there is no key. (1, segment or 1, 1 or 128)."""
    shape = (1, plan.segment, 1) if axis == 1 else (1, 1, LANES)
    frame = _frame(jax.lax.broadcasted_iota(jnp.int32, shape, axis), plan)
    return jnp.where(frame < plan.frames, 0.0, -1e30).astype(jnp.float32)


def _sum_segments(x, plan):
    """Sums of (rows, 128) over each head's keys that exist, broadcast to the head's places."""
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), i) for i in (0, 1))
    same = (row & -plan.segment) == (column & -plan.segment)
    ones = jnp.where(same & (_frame(row, plan) < plan.frames), 1.0, 0.0).astype(plan.dtype)
    return jax.lax.dot_general(
        x.astype(plan.dtype), ones, ROWS_BY_COLUMNS, preferred_element_type=jnp.float32
    )


def _reciprocal(x, plan):
    return pl.reciprocal(x, approx=plan.packed)
