"""A transformer block's feed-forward as one Pallas kernel for TPU, with norm and residual.

    out = x + (value * gelu(gate)) W_out + b_out
    value, gate = halves of LayerNorm(x) W_in + b_in              (GEGLU, arXiv 2002.05202)

The hidden activations, eight times as wide as the tokens, stay in fast memory: a block of tokens
meets one piece of the weights after the other, and what each piece contributes is summed up. The
backward pass is that of the plain version, computed again from the tokens, so no hidden activation
is kept for it.
"""

from __future__ import annotations

import functools
import typing

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from animate_jax.kernels.dispatch import (
    HEAD_AXIS,
    axis_size,
    by_platform,
    fast_memory,
    rows_over_mesh,
)

LANES = 128
TOKENS = 1024, 512, 256, 128  # of a block
HIDDEN = 640, 512, 384, 256, 128  # channels of a piece
RESERVE = 8 * 2**20  # bytes of fast memory for what the compiler keeps there
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


def feed_forward(x: jax.Array, weights: Weights, eps: float = 1e-5) -> jax.Array:
    """x (B, ..., C) in the compute dtype -> the same."""
    one = functools.partial(_plain, eps=eps)
    tpu = rows_over_mesh(functools.partial(_fused, eps=eps)) if supports(x, weights) else None
    return by_platform(one, x, weights, tpu=tpu)


def _plain(x, weights, eps):
    tokens = normalise(x, weights.scale, weights.shift, eps)
    value, gate = jnp.split(tokens @ weights.w_in + weights.b_in, 2, -1)
    return x + (value * jax.nn.gelu(gate, approximate=False)) @ weights.w_out + weights.b_out


def normalise(x, scale, shift, eps):
    """LayerNorm over the last axis; statistics in float32, the variance in two passes."""
    y = x.astype(jnp.float32)
    y -= y.mean(-1, keepdims=True)
    variance = (y * y).mean(-1, keepdims=True)
    return (y * (jax.lax.rsqrt(variance + eps) * scale) + shift).astype(x.dtype)


def supports(x, weights: Weights) -> bool:
    """Whether the kernel takes tokens (B, ..., C) and weights of these shapes and types."""
    return (
        x.dtype in (jnp.bfloat16, jnp.float32)
        and x.dtype == weights.w_in.dtype
        and axis_size(HEAD_AXIS) == 1  # else XLA splits the hidden channels
        and x[0].size // x.shape[-1] >= TOKENS[-1]
        and x.shape[-1] % 8 == 0
        and _piece(weights) is not None
        and _block(x, weights) is not None
    )


def _fused(x, weights, eps, interpret=False):
    tokens = x.reshape(-1, x.shape[-1])
    return _feed_forward(tokens, weights, eps, interpret).reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _feed_forward(x, weights, eps, interpret):
    return _run(x, weights, eps, interpret)


def _with_residuals(x, weights, eps, interpret):
    return _run(x, weights, eps, interpret), (x, weights)


def _gradient(eps, interpret, residuals, cotangent):
    return jax.vjp(functools.partial(_plain, eps=eps), *residuals)[1](cotangent)


_feed_forward.defvjp(_with_residuals, _gradient)


def _piece(weights):
    hidden = weights.w_out.shape[0]
    return next((n for n in HIDDEN if hidden % n == 0), None)


def _block(x, weights):
    """Tokens of a block: the most that fit without filling up more than an eighth, if any do."""
    tokens = x.size // x.shape[-1]
    fitting = [block for block in TOKENS if _memory(block, weights) <= fast_memory()]
    filled = [block for block in fitting if 8 * (-tokens % block) <= tokens]
    return next(iter(filled or fitting[-1:]), None)


def _memory(block, weights):
    """Bytes of fast memory: what is moved is there twice."""
    channels, item = weights.w_in.shape[0], weights.w_in.dtype.itemsize
    piece, wide = _piece(weights), -(-channels // LANES) * LANES
    moved = (2 * block * wide + 3 * piece * wide) * item
    kept = block * (wide * (4 + item) + 4 * 4 * piece)
    return 2 * moved + kept + RESERVE


@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def _run(x, weights, eps, interpret):
    (tokens, channels), hidden = x.shape, weights.w_out.shape[0]
    block, piece = _block(x, weights), _piece(weights)
    pieces = hidden // piece
    rows = jnp.stack([y.astype(jnp.float32) for y in (weights.scale, weights.shift, weights.b_out)])
    b_in = weights.b_in.astype(jnp.float32).reshape(2, 1, hidden)
    return pl.pallas_call(
        functools.partial(_kernel, eps=eps),
        grid=(pl.cdiv(tokens, block), pieces),
        in_specs=[
            pl.BlockSpec((block, channels), lambda t, h: (t, 0)),
            pl.BlockSpec((3, 1, channels), lambda t, h: (0, 0, 0)),
            pl.BlockSpec((channels, piece), lambda t, h: (0, h)),
            pl.BlockSpec((channels, piece), lambda t, h: (0, h + pieces)),
            pl.BlockSpec((2, 1, piece), lambda t, h: (0, 0, h)),
            pl.BlockSpec((piece, channels), lambda t, h: (h, 0)),
        ],
        out_specs=pl.BlockSpec((block, channels), lambda t, h: (t, 0)),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[
            pltpu.VMEM((block, channels), x.dtype),
            pltpu.VMEM((block, channels), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=_memory(block, weights),
        ),
        interpret=interpret,
        name="feed_forward",
    )(x, rows[:, None], weights.w_in, weights.w_in, b_in, weights.w_out)


def _kernel(x, rows, w_value, w_gate, b_in, w_out, out, tokens, total, *, eps):
    piece = pl.program_id(1)

    @pl.when(piece == 0)
    def _():
        scale, shift, b_out = rows[0], rows[1], rows[2]
        tokens[:] = normalise(x[:], scale, shift, eps)
        total[:] = x[:].astype(jnp.float32) + b_out

    def multiply(a, b):
        exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
        return jnp.dot(a, b, preferred_element_type=jnp.float32, precision=exact)

    value = multiply(tokens[:], w_value[:]) + b_in[0]
    gate = multiply(tokens[:], w_gate[:]) + b_in[1]
    total[:] += multiply((value * gelu(gate)).astype(tokens.dtype), w_out[:])

    @pl.when(piece == pl.num_programs(1) - 1)
    def _():
        out[:] = total[:].astype(out.dtype)


def gelu(x):
    """Exact GELU of float32, by an erf that needs no more than the vector unit has."""
    z = jnp.abs(x) * 0.5**0.5
    t = 1 / (1 + ERF_P * z)
    series = ERF_A[-1]
    for a in ERF_A[-2::-1]:
        series = series * t + a
    tail = 0.5 * series * t * jnp.exp(-z * z)  # 1 - Phi(|x|)
    return x * jnp.where(x >= 0, 1 - tail, tail)
