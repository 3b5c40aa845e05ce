"""From pictures to tokens and back: a transformer's two ends, as Pallas kernels for TPU.

    tokens   = GroupNorm(x) W_in + b_in
    pictures = x + tokens W_out + b_out

XLA lays pictures out for its convolutions with the pixels first, (pixels, pictures, channels); the
kernels of attention want (pictures, pixels, channels). Each kernel reads the one and writes the
other, so that nothing is copied for the layout's sake, and the norm is applied and the residual
added on the way. The backward passes are those of the plain versions.
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
    rows_over_mesh,
)
from animate_jax.kernels.parts import LANES, RESERVE, in_loop, lanes, multiply

PICTURES = 8  # of a block
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
        and batch * frames % PICTURES == 0
        and channels % 8 == 0
        and group_norm.supports(x)
        and _block(x) is not None
    )


def _block(x):
    """Pixels of a block: the most that divide a picture's and fit; None if none do."""
    pixels = x.shape[2] * x.shape[3]
    fitting = (n for n in PIXELS if pixels % n == 0 and _memory(n, x) <= fast_memory())
    return next(fitting, None)


def _memory(block, x):
    """Bytes of fast memory: what is moved is there twice, the weights once."""
    wide, item = -(-x.shape[-1] // LANES) * LANES, x.dtype.itemsize
    rows = PICTURES * block * wide
    return (2 * 3 * item + 3 * 4) * rows + wide * wide * item + RESERVE


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _to_tokens(x, weights, groups, eps, interpret):
    norm, layer = weights
    sums = functools.partial(group_norm.kernel_sums, interpret=interpret)
    mean, rate = group_norm.statistics(x, groups, eps, sums)
    channels = x.shape[-1]
    rows = mean, rate * norm.scale, jnp.broadcast_to(norm.bias, mean.shape)
    rows = jnp.stack([row.reshape(-1, channels) for row in rows])
    tokens = _run_to_tokens(_pixels_first(x), rows, layer, _block(x), interpret)
    return tokens.reshape(*x.shape[:2], -1, channels)


def _to_tokens_with_residuals(x, weights, groups, eps, interpret):
    return _to_tokens(x, weights, groups, eps, interpret), (x, weights)


def _to_tokens_gradient(groups, eps, interpret, residuals, cotangent):
    plain = functools.partial(_to_tokens_plain, groups=groups, eps=eps)
    return jax.vjp(plain, *residuals)[1](cotangent)


_to_tokens.defvjp(_to_tokens_with_residuals, _to_tokens_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _to_pictures(rows, layer, interpret):
    tokens, x = rows
    flat = tokens.reshape(-1, *tokens.shape[2:])
    out = _run_to_pictures(flat, _pixels_first(x), layer, _block(x), interpret)
    return jnp.moveaxis(out, 1, 0).reshape(x.shape)


def _to_pictures_with_residuals(rows, layer, interpret):
    return _to_pictures(rows, layer, interpret), (rows, layer)


def _to_pictures_gradient(interpret, residuals, cotangent):
    return jax.vjp(_to_pictures_plain, *residuals)[1](cotangent)


_to_pictures.defvjp(_to_pictures_with_residuals, _to_pictures_gradient)


def _pixels_first(x):
    """(B, F, h, w, C) -> (h * w, B * F, C), which is how XLA's convolutions leave it."""
    batch, frames, height, width, channels = x.shape
    return jnp.moveaxis(x.reshape(batch * frames, height * width, channels), 1, 0)


@functools.partial(jax.jit, static_argnames=("block", "interpret"))
def _run_to_tokens(x, rows, layer, block, interpret):
    """x (N, P, C), rows (3, P, C) float32 -> (P, N, C)."""
    pixels, pictures, channels = x.shape
    return _call(
        _to_tokens_kernel,
        x,
        [
            (x, pl.BlockSpec((block, PICTURES, channels), lambda p, n: (n, p, 0))),
            (rows, pl.BlockSpec((3, PICTURES, channels), lambda p, n: (0, p, 0))),
        ],
        layer,
        jax.ShapeDtypeStruct((pictures, pixels, channels), x.dtype),
        pl.BlockSpec((PICTURES, block, channels), lambda p, n: (p, n, 0)),
        block,
        interpret,
    )


@functools.partial(jax.jit, static_argnames=("block", "interpret"))
def _run_to_pictures(tokens, x, layer, block, interpret):
    """tokens (P, N, C), x (N, P, C) -> the shape of x."""
    channels = x.shape[-1]
    pictures = pl.BlockSpec((block, PICTURES, channels), lambda p, n: (n, p, 0))
    straight = pl.BlockSpec((PICTURES, block, channels), lambda p, n: (p, n, 0))
    return _call(
        _to_pictures_kernel,
        x,
        [(tokens, straight), (x, pictures)],
        layer,
        x,
        pictures,
        block,
        interpret,
    )


def _call(kernel, x, inputs, layer, out, out_spec, block, interpret):
    pixels, pictures, channels = x.shape
    bias = layer.bias.astype(jnp.float32)[None]

    def whole(w):
        return pl.BlockSpec(w.shape, lambda p, n: (0, 0), pipeline_mode=pl.Buffered(1))

    return pl.pallas_call(
        kernel,
        grid=(pictures // PICTURES, pixels // block),
        in_specs=[*(spec for _, spec in inputs), whole(layer.kernel), whole(bias)],
        out_specs=out_spec,
        out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype),
        scratch_shapes=[
            pltpu.VMEM((block * PICTURES, channels), x.dtype),
            pltpu.VMEM((block * PICTURES, LANES), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 2,
            vmem_limit_bytes=_memory(block, jax.ShapeDtypeStruct((1, 1, 1, 1, channels), x.dtype)),
        ),
        interpret=interpret,
        name=f"picture{kernel.__name__.removesuffix('_kernel')}",
    )(*(y for y, _ in inputs), layer.kernel, bias)


def _to_tokens_kernel(x, rows, kernel, bias, out, straight, mixed):
    block, pictures, channels = x.shape
    mean, scale, shift = rows[0], rows[1], rows[2]
    y = (x[:].astype(jnp.float32) - mean) * scale + shift
    straight[:] = y.reshape(block * pictures, channels).astype(x.dtype)

    def project(tile, _, width=LANES):
        at = lanes(tile, width)
        y = multiply(straight[:], kernel[:, at]) + bias[:, at]
        mixed[:] = jnp.pad(y, ((0, 0), (0, LANES - width)))
        for picture in range(pictures):
            y = mixed[pl.ds(picture, block, stride=pictures), :]
            out[picture, :, at] = y[:, :width].astype(out.dtype)

    _over_lanes(project, channels)


def _to_pictures_kernel(tokens, x, kernel, bias, out, straight, mixed):
    block, pictures, channels = x.shape
    straight[:] = tokens[:].reshape(pictures * block, channels)

    def project(tile, _, width=LANES):
        at = lanes(tile, width)
        y = multiply(straight[:], kernel[:, at]) + bias[:, at]
        y = jnp.pad(y, ((0, 0), (0, LANES - width)))
        for picture in range(pictures):
            part = y[picture * block : (picture + 1) * block]
            mixed[pl.ds(picture, block, stride=pictures), :] = part
        y = mixed[:].reshape(block, pictures, LANES)[:, :, :width]
        out[:, :, at] = (x[:, :, at].astype(jnp.float32) + y).astype(out.dtype)

    _over_lanes(project, channels)


def _over_lanes(project, channels):
    in_loop(project, channels // LANES)
    if channels % LANES:
        project(channels // LANES, None, channels % LANES)
