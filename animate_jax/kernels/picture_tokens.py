"""From pictures to tokens and back: a transformer's two ends, as Pallas kernels for TPU.

    tokens   = GroupNorm(x) W_in + b_in
    pictures = x + tokens W_out + b_out

XLA lays pictures out for its convolutions with the pixels first, (pixels, pictures, channels); the
kernels of attention want (pictures, pixels, channels). Each kernel reads the one and writes the
other, so that nothing is copied for the layout's sake, and the norm is applied and the residual
added on the way. The backward passes cross over in the same two ways, and a third kernel multiplies
tokens with pictures for what the weights get.
"""

from __future__ import annotations

import functools
import typing

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from animate_jax.kernels import group_norm
from animate_jax.kernels.dispatch import (
    HEAD_AXIS,
    axis_size,
    by_platform,
    fast_memory,
    reserve,
    rows_over_mesh,
)
from animate_jax.kernels.parts import (
    COLUMNS_BY_COLUMNS,
    LANES,
    in_loop,
    lanes,
    multiply,
)

PICTURES = 8, 4  # of a block
PIXELS = 256, 128, 64, 32, 16  # of a block


class Norm(typing.NamedTuple):
    """Of the GroupNorm, float32; C channels."""

    scale: jax.Array  # (C,)
    bias: jax.Array  # (C,)


class Layer(typing.NamedTuple):
    """Of a projection, in the compute dtype."""

    kernel: jax.Array  # (C, C)
    bias: jax.Array  # (C,)


def layer_of(weights: tuple[jax.Array, jax.Array], dtype) -> Layer:
    """Kernel and bias in the compute dtype."""
    return Layer(*(w.astype(dtype) for w in weights))


def to_tokens(x: jax.Array, norm: Norm, layer: Layer, groups: int, eps: float) -> jax.Array:
    """Pictures (B, F, h, w, C) in the compute dtype -> tokens (B, F, h * w, C)."""
    plain = functools.partial(_to_tokens_plain, groups=groups, eps=eps)

    def tpu(x, weights):  # x is one device's part
        fused = functools.partial(_to_tokens, groups=groups, eps=eps, interpret=False)
        return (fused if supports(x) else plain)(x, weights)

    return by_platform(plain, x, (norm, layer), tpu=_over_mesh(tpu))


def to_pictures(tokens: jax.Array, x: jax.Array, layer: Layer) -> jax.Array:
    """Tokens (B, F, h * w, C) projected and added to the pictures x (B, F, h, w, C)."""

    def tpu(rows, layer):
        if supports(rows[1]):
            return _to_pictures(rows, layer, False)
        return _to_pictures_plain(rows, layer)

    return by_platform(_to_pictures_plain, (tokens, x), layer, tpu=_over_mesh(tpu))


def _over_mesh(tpu):
    """None where channels are split over the mesh: then XLA splits the projections."""
    return rows_over_mesh(tpu) if axis_size(HEAD_AXIS) == 1 else None


def _to_tokens_plain(x, weights, groups, eps):
    norm, layer = weights
    batch, frames, height, width, channels = x.shape
    y = group_norm.group_norm(x, *norm, groups, eps)
    return y.reshape(batch, frames, height * width, channels) @ layer.kernel + layer.bias


def _to_pictures_plain(rows, layer):
    tokens, x = rows
    return x + (tokens @ layer.kernel + layer.bias).reshape(x.shape)


def supports(x) -> bool:
    """Whether the kernels take pictures (B, F, h, w, C) of this shape and type."""
    batch, frames, height, width, channels = x.shape
    return (
        x.dtype in (jnp.bfloat16, jnp.float32)
        and _together(batch * frames) is not None
        and channels % 8 == 0
        and group_norm.supports(x)
        and _block(x) is not None
    )


def _together(pictures):
    """Pictures of a block; 4 only where there are no more, as XLA's layout has it."""
    return next((n for n in PICTURES if pictures % n == 0 and (n == 8 or pictures == n)), None)


def _block(x):
    """Pixels of a block: the most that divide a picture's and fit; None if none do."""
    pixels = x.shape[2] * x.shape[3]
    fitting = (n for n in PIXELS if pixels % n == 0 and _memory(n, x) <= fast_memory())
    return next(fitting, None)


def _memory(block, x):
    """Bytes of fast memory: what is moved is there twice, the weights or their gradient once."""
    wide, item = -(-x.shape[-1] // LANES) * LANES, x.dtype.itemsize
    rows = PICTURES[0] * block * wide
    return (2 * 3 * item + 3 * 4) * rows + 4 * wide * wide + reserve()


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _to_tokens(x, weights, groups, eps, interpret):
    norm, layer = weights
    rows = _norm_rows(x, norm, groups, eps, interpret)
    tokens = _run_to_tokens(_pixels_first(x), rows, layer, _block(x), interpret)
    return tokens.reshape(*x.shape[:2], -1, x.shape[-1])


def _norm_rows(x, norm, groups, eps, interpret):
    """What normalises: mean, factor and bias of every picture's channels, (3, B * F, C)."""
    sums = functools.partial(group_norm.kernel_sums, interpret=interpret)
    mean, rate = group_norm.statistics(x, groups, eps, sums)
    rows = mean, rate * norm.scale, jnp.broadcast_to(norm.bias, mean.shape)
    return jnp.stack([row.reshape(-1, x.shape[-1]) for row in rows])


def _to_tokens_with_residuals(x, weights, groups, eps, interpret):
    return _to_tokens(x, weights, groups, eps, interpret), (x, weights)


def _to_tokens_gradient(groups, eps, interpret, residuals, cotangent):
    x, (norm, layer) = residuals
    flat, block = _flat(cotangent), _block(x)
    rows = _norm_rows(x, norm, groups, eps, interpret)
    products, d_bias, _ = _run_products(flat, _pixels_first(x), rows, block, interpret)
    d_normed = _run_to_pictures(flat, None, _back(layer), block, interpret)
    sums = functools.partial(group_norm.kernel_sums, interpret=interpret)
    dx, *d_norm = group_norm.gradient(x, *norm, _pixels_last(d_normed, x), groups, eps, sums)
    return dx, (Norm(*d_norm), _like(layer, products.T, d_bias))


_to_tokens.defvjp(_to_tokens_with_residuals, _to_tokens_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _to_pictures(rows, layer, interpret):
    tokens, x = rows
    out = _run_to_pictures(_flat(tokens), _pixels_first(x), layer, _block(x), interpret)
    return _pixels_last(out, x)


def _to_pictures_with_residuals(rows, layer, interpret):
    return _to_pictures(rows, layer, interpret), (rows[0], layer)


def _to_pictures_gradient(interpret, residuals, cotangent):
    tokens, layer = residuals
    turned, block = _pixels_first(cotangent), _block(cotangent)
    products, _, d_bias = _run_products(_flat(tokens), turned, None, block, interpret)
    d_tokens = _run_to_tokens(turned, None, _back(layer), block, interpret)
    return (d_tokens.reshape(tokens.shape), cotangent), _like(layer, products, d_bias)


_to_pictures.defvjp(_to_pictures_with_residuals, _to_pictures_gradient)


def _back(layer):
    """The layer that cotangents go through."""
    return Layer(layer.kernel.T, jnp.zeros_like(layer.bias))


def _like(layer, kernel, bias):
    return Layer(kernel.astype(layer.kernel.dtype), bias.astype(layer.bias.dtype))


def _flat(tokens):
    """(B, F, N, C) -> (P, N, C) of P pictures."""
    return tokens.reshape(-1, *tokens.shape[2:])


def _pixels_first(x):
    """(B, F, h, w, C) -> (N, P, C), which is how XLA's convolutions leave it."""
    batch, frames, height, width, channels = x.shape
    return jnp.moveaxis(x.reshape(batch * frames, height * width, channels), 1, 0)


def _pixels_last(pictures, x):
    """The inverse of `_pixels_first`, to the shape of x."""
    return jnp.moveaxis(pictures, 1, 0).reshape(x.shape)


@functools.partial(jax.jit, static_argnames=("block", "interpret"))
def _run_to_tokens(x, rows, layer, block, interpret):
    """x (N, P, C), normalised by rows (3, P, C) if there are any, and projected -> (P, N, C)."""
    pixels, pictures, channels = x.shape
    inputs = [(x, _pictures_block(block, pictures, channels))]
    if rows is not None:
        inputs.append((rows, _rows_block(pictures, channels)))
    out = jax.ShapeDtypeStruct((pictures, pixels, channels), x.dtype)
    outputs = [(out, _tokens_block(block, pictures, channels))]
    return _call(_to_tokens_kernel, inputs, layer, outputs, (pictures, pixels), block, interpret)[0]


@functools.partial(jax.jit, static_argnames=("block", "interpret"))
def _run_to_pictures(tokens, x, layer, block, interpret):
    """tokens (P, N, C), projected, and added to x (N, P, C) if there is one -> (N, P, C)."""
    pictures, pixels, channels = tokens.shape
    inputs = [(tokens, _tokens_block(block, pictures, channels))]
    if x is not None:
        inputs.append((x, _pictures_block(block, pictures, channels)))
    out = jax.ShapeDtypeStruct((pixels, pictures, channels), tokens.dtype)
    outputs = [(out, _pictures_block(block, pictures, channels))]
    size = pictures, pixels
    return _call(_to_pictures_kernel, inputs, layer, outputs, size, block, interpret)[0]


@functools.partial(jax.jit, static_argnames=("block", "interpret"))
def _run_products(tokens, x, rows, block, interpret):
    """Products of the channels of tokens (P, N, C) with those of x (N, P, C), which rows normalise
    if there are any, summed over all pixels, (C, C); and sums of the tokens and of x, (C,)."""
    pictures, pixels, channels = tokens.shape
    inputs = [
        (tokens, _tokens_block(block, pictures, channels)),
        (x, _pictures_block(block, pictures, channels)),
    ]
    if rows is not None:
        inputs.append((rows, _rows_block(pictures, channels)))
    shapes = (channels, channels), (1, channels), (1, channels)
    totals = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    outputs = [(total, _whole(total)) for total in totals]
    size = pictures, pixels
    products, *sums = _call(_products_kernel, inputs, None, outputs, size, block, interpret)
    return products, *(total[0] for total in sums)


def _call(kernel, inputs, layer, outputs, size, block, interpret):
    """Runs a kernel over blocks of pictures and of pixels."""
    together = _together(size[0])
    first, _ = inputs[0]
    channels, dtype = first.shape[-1], first.dtype
    if layer is not None:
        weights = layer.kernel, layer.bias.astype(jnp.float32)[None]
        inputs = [*inputs, *((w, _whole(w)) for w in weights)]
    order = "parallel" if layer is not None else "arbitrary"  # which sums up over all blocks
    memory = _memory(block, jax.ShapeDtypeStruct((1, 1, 1, 1, channels), dtype))
    return pl.pallas_call(
        functools.partial(kernel, given=len(inputs)),
        grid=(size[0] // together, size[1] // block),
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for _, spec in outputs],
        out_shape=[jax.ShapeDtypeStruct(y.shape, y.dtype) for y, _ in outputs],
        scratch_shapes=[
            pltpu.VMEM((block * together, channels), dtype),
            pltpu.VMEM((block * together, LANES), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(order,) * 2, vmem_limit_bytes=memory
        ),
        interpret=interpret,
        name=f"picture{kernel.__name__.removesuffix('_kernel')}",
    )(*(y for y, _ in inputs))


def _pictures_block(block, pictures, channels):
    together = _together(pictures)
    return pl.BlockSpec((block, together, channels), lambda p, n: (n, p, 0))


def _tokens_block(block, pictures, channels):
    together = _together(pictures)
    return pl.BlockSpec((together, block, channels), lambda p, n: (p, n, 0))


def _rows_block(pictures, channels):
    together = _together(pictures)
    return pl.BlockSpec((3, together, channels), lambda p, n: (0, p, 0))


def _whole(w):
    return pl.BlockSpec(w.shape, lambda p, n: (0, 0), pipeline_mode=pl.Buffered(1))


def _to_tokens_kernel(*refs, given):
    (x, *rows, kernel, bias), (out, straight, mixed) = refs[:given], refs[given:]
    block, pictures, channels = x.shape
    y = x[:].astype(jnp.float32)
    if rows:
        mean, scale, shift = rows[0][0], rows[0][1], rows[0][2]
        y = (y - mean) * scale + shift
    straight[:] = y.reshape(block * pictures, channels).astype(x.dtype)

    def project(tile, _, width=LANES):
        at = lanes(tile, width)
        y = multiply(straight[:], kernel[:, at]) + bias[:, at]
        mixed[:] = jnp.pad(y, ((0, 0), (0, LANES - width)))
        for picture in range(pictures):
            y = mixed[pl.ds(picture, block, stride=pictures), :]
            out[picture, :, at] = y[:, :width].astype(out.dtype)

    _over_lanes(project, channels)


def _to_pictures_kernel(*refs, given):
    (tokens, *x, kernel, bias), (out, straight, mixed) = refs[:given], refs[given:]
    pictures, block, channels = tokens.shape
    straight[:] = tokens[:].reshape(pictures * block, channels)

    def project(tile, _, width=LANES):
        at = lanes(tile, width)
        y = multiply(straight[:], kernel[:, at]) + bias[:, at]
        y = jnp.pad(y, ((0, 0), (0, LANES - width)))
        for picture in range(pictures):
            part = y[picture * block : (picture + 1) * block]
            mixed[pl.ds(picture, block, stride=pictures), :] = part
        y = mixed[:].reshape(block, pictures, LANES)[:, :, :width]
        if x:
            y += x[0][:, :, at].astype(jnp.float32)
        out[:, :, at] = y.astype(out.dtype)

    _over_lanes(project, channels)


def _products_kernel(*refs, given):
    (tokens, x, *rows), (products, *sums, straight, mixed) = refs[:given], refs[given:]
    block, pictures, channels = x.shape

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _():
        for total in (products, *sums):
            total[:] = jnp.zeros_like(total)

    straight[:] = tokens[:].reshape(pictures * block, channels)
    sums[0][:] += straight[:].astype(jnp.float32).sum(0, keepdims=True)

    def add(tile, _, width=LANES):
        at = lanes(tile, width)
        y = x[:, :, at].astype(jnp.float32)
        if rows:
            y = (y - rows[0][0, :, at]) * rows[0][1, :, at] + rows[0][2, :, at]
        y = y.reshape(block * pictures, width)
        sums[1][:, at] += y.sum(0, keepdims=True)
        mixed[:] = jnp.pad(y, ((0, 0), (0, LANES - width)))
        parts = [mixed[pl.ds(picture, block, stride=pictures), :] for picture in range(pictures)]
        y = jnp.concatenate(parts).astype(straight.dtype)
        products[:, at] += multiply(straight[:], y, COLUMNS_BY_COLUMNS)[:, :width]

    _over_lanes(add, channels)


def _over_lanes(do, channels):
    in_loop(do, channels // LANES)
    if channels % LANES:
        do(channels // LANES, None, channels % LANES)
