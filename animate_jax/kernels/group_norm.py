"""GroupNorm (arXiv 1803.08494) with the SiLU that follows it, reading memory as seldom as it can.

A norm's time on an accelerator is the time to read its input. The statistics take one reading: each
channel's sums are of differences from a value near its mean, which a few pixels give, so that the
squares lose no digits as those of a plain one-pass variance do. The gradient is written out, for it
takes two readings of input and cotangent, where differentiating the steps takes many. On a TPU the
sums over pixels are a Pallas kernel; the rest XLA puts into the convolutions around.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from animate_jax.kernels.dispatch import by_platform, rows_over_mesh

SAMPLES = 4  # rows of a picture that the value near the mean is taken from
LANES = 128
ROWS = 8  # pictures of a block
PIXELS = 16  # taken at once
TILES = 5  # of LANES channels, of a block
BLOCK_BYTES = 2**20


def group_norm(x, scale, bias, groups: int, eps: float, silu: bool = False):
    """Normalises each picture of x (B, ..., H, W, C) over its pixels and the channels of a group.

    scale, bias (C,). Statistics are float32 whatever the dtype of x. silu: y * sigmoid(y) after it.
    Returns the shape and dtype of x.
    """

    def norm(x, weights, sums=plain_sums):
        return _group_norm(x, *weights, groups, eps, silu, sums)

    def tpu(x, weights):  # x is one device's part
        return norm(x, weights, kernel_sums if supports(x) else plain_sums)

    return by_platform(norm, x, (scale, bias), tpu=rows_over_mesh(tpu))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _group_norm(x, scale, bias, groups, eps, silu, sums):
    return _forward(x, scale, bias, groups, eps, silu, sums)[0]


def _forward(x, scale, bias, groups, eps, silu, sums):
    mean, rate = statistics(x, groups, eps, sums)
    y = (x.astype(jnp.float32) - mean) * rate * scale + bias
    y = jax.nn.silu(y) if silu else y
    return y.astype(x.dtype), (x, scale, bias, mean, rate)


def statistics(x, groups: int, eps: float, sums):
    """Mean of each channel's group and one over its deviation, float32 (B, ..., 1, 1, C).

    sums: `plain_sums` or `kernel_sums`.
    """
    height, width = x.shape[-3:-1]
    few = x[..., :: max(1, height // SAMPLES), :, :]
    near = few.astype(jnp.float32).mean((-3, -2), keepdims=True)
    totals = sums(_differences, (x,), (near,))
    mean, square = (total / (height * width) for total in totals)
    spread = square - jnp.square(mean)
    mean += near
    group_mean = _mean_of_group(mean, groups)
    variance = _mean_of_group(spread + jnp.square(mean - group_mean), groups)
    return group_mean, jax.lax.rsqrt(variance + eps)


def gradient(x, scale, bias, cotangent, groups: int, eps: float, sums):
    """What x, scale and bias get of a norm without SiLU."""
    return _backward(
        groups, eps, False, sums, (x, scale, bias, *statistics(x, groups, eps, sums)), cotangent
    )


def _backward(groups, eps, silu, sums, residuals, cotangent):
    x, scale, bias, mean, rate = residuals
    rows = mean, rate, jnp.broadcast_to(scale, mean.shape), jnp.broadcast_to(bias, mean.shape)
    slopes = functools.partial(_slopes, silu=silu)
    d_bias, d_scale = sums(slopes, (x, cotangent), rows)
    pixels = x.shape[-3] * x.shape[-2]
    along_mean = _mean_of_group(d_bias * scale / pixels, groups)
    along_scale = _mean_of_group(d_scale * scale / pixels, groups)
    arrays = x.astype(jnp.float32), cotangent.astype(jnp.float32)
    slope, _ = slopes(arrays, rows)
    normalised = (arrays[0] - mean) * rate
    dx = rate * (slope * scale - along_mean - normalised * along_scale)
    outer = tuple(range(x.ndim - 1))
    d_scale, d_bias = d_scale.sum(outer), d_bias.sum(outer)
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


_group_norm.defvjp(_forward, _backward)


def _mean_of_group(x, groups):
    """(..., C) -> each channel's mean over its group, (..., C)."""
    channels = x.shape[-1]
    x = x.reshape(*x.shape[:-1], groups, channels // groups).mean(-1)
    return jnp.repeat(x, channels // groups, -1)


def _differences(arrays, rows):
    (x,), (near,) = arrays, rows
    difference = x - near
    return difference, jnp.square(difference)


def _slopes(arrays, rows, silu):
    """Cotangent of `normalised * scale + bias`, and that times `normalised`."""
    (x, slope), (mean, rate, scale, bias) = arrays, rows
    normalised = (x - mean) * rate
    if silu:
        y = normalised * scale + bias
        gate = jax.nn.sigmoid(y)
        slope = slope * (gate * (1 + y * (1 - gate)))
    return slope, slope * normalised


def plain_sums(function, arrays, rows):
    """The two results of `function(arrays, rows)`, float32, summed over pixels.

    arrays (..., H, W, C) and rows (..., 1, 1, C) -> twice (..., 1, 1, C).
    """
    arrays = tuple(x.astype(jnp.float32) for x in arrays)
    return tuple(x.sum((-3, -2), keepdims=True) for x in function(arrays, rows))


def supports(x) -> bool:
    """Whether the kernel takes pictures (B, ..., H, W, C) of this shape and type."""
    height, width, channels = x.shape[-3:]
    pictures = x.size // (height * width * channels)
    return (
        x.dtype in (jnp.bfloat16, jnp.float32)
        and height * width % PIXELS == 0
        and (pictures % ROWS == 0 or pictures == ROWS // 2)
        and (channels % LANES == 0 or channels <= 8 * LANES)
    )


def kernel_sums(function, arrays, rows, interpret=False):
    """The same as `plain_sums`.

    The kernel wants pixels first, then pictures, then channels, which is how XLA lays out the
    pictures that convolutions work on: turning them moves nothing.
    """
    *outer, height, width, channels = arrays[0].shape
    pixels = height * width

    def turned(x):
        return jnp.moveaxis(x.reshape(-1, x.shape[-3] * x.shape[-2], channels), 1, 0)

    arrays = [turned(x) for x in arrays]
    rows = [turned(x)[0] for x in rows]
    pictures = arrays[0].shape[1]
    block_rows = ROWS if pictures % ROWS == 0 else pictures
    lanes = channels
    if channels % LANES == 0:
        tiles = channels // LANES
        lanes = LANES * max(n for n in range(1, TILES + 1) if tiles % n == 0)
    # Fewer channels than LANES take as much memory as LANES.
    pixel_bytes = block_rows * pl.cdiv(lanes, LANES) * LANES * arrays[0].dtype.itemsize
    block = pixels
    while block % (2 * PIXELS) == 0 and block * pixel_bytes > BLOCK_BYTES:
        block //= 2
    flat = pl.BlockSpec((block_rows, lanes), lambda n, c, p: (n, c))
    totals = pl.pallas_call(
        functools.partial(_kernel, function=function, count=len(arrays)),
        grid=(pictures // block_rows, channels // lanes, pixels // block),
        in_specs=[
            *[pl.BlockSpec((block, block_rows, lanes), lambda n, c, p: (p, n, c))] * len(arrays),
            *[flat] * len(rows),
        ],
        out_specs=[flat] * 2,
        out_shape=[jax.ShapeDtypeStruct((pictures, channels), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="picture_sums",
    )(*arrays, *rows)
    return tuple(x.reshape(*outer, 1, 1, channels) for x in totals)


def _kernel(*refs, function, count):
    arrays, rows, totals = refs[:count], refs[count:-2], refs[-2:]

    @pl.when(pl.program_id(2) == 0)
    def _():
        for total in totals:
            total[:] = jnp.zeros_like(total)

    pixels, height, channels = arrays[0].shape
    for first in range(0, channels, LANES):
        lanes = slice(first, min(channels, first + LANES))
        known = tuple(row[:, lanes] for row in rows)

        def add(i, sums, lanes=lanes, known=known):
            part = pl.ds(i * PIXELS, PIXELS)
            values = function(tuple(x[part, :, lanes].astype(jnp.float32) for x in arrays), known)
            return tuple(s + value.sum(0) for s, value in zip(sums, values))

        zero = jnp.zeros((height, lanes.stop - lanes.start), jnp.float32)
        sums = jax.lax.fori_loop(0, pixels // PIXELS, add, (zero, zero))
        for total, value in zip(totals, sums):
            total[:, lanes] += value
