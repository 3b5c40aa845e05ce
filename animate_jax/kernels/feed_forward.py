"""A transformer block's feed-forward as one Pallas kernel for TPU, with norm and residual.

    out = x + (value * gelu(gate)) W_out + b_out
    value, gate = halves of LayerNorm(x) W_in + b_in              (GEGLU, arXiv 2002.05202)

The hidden activations, eight times as wide as the tokens, stay in fast memory: a block of tokens
meets one piece of the weights after the other, and what each piece contributes is summed up. The
backward pass (`feed_forward_gradient`) begins from the tokens again, so none is kept for it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from animate_jax.kernels import feed_forward_gradient
from animate_jax.kernels.dispatch import (
    HEAD_AXIS,
    axis_size,
    by_platform,
    fast_memory,
    reserve,
    rows_over_mesh,
)
from animate_jax.kernels.feed_forward_gradient import gradient
from animate_jax.kernels.geglu import Weights, block_of, gelu_and_slope, piece_of
from animate_jax.kernels.parts import BLOCK, LANES, multiply, normalise


def feed_forward(x: jax.Array, weights: Weights, eps: float = 1e-5) -> jax.Array:
    """x (B, ..., C) in the compute dtype -> the same."""
    one = functools.partial(_plain, eps=eps)
    tpu = rows_over_mesh(functools.partial(_fused, eps=eps)) if supports(x, weights) else None
    return by_platform(one, x, weights, tpu=tpu)


def _plain(x, weights, eps):
    tokens = normalise(x, weights.scale, weights.shift, eps)
    value, gate = jnp.split(tokens @ weights.w_in + weights.b_in, 2, -1)
    return x + (value * jax.nn.gelu(gate, approximate=False)) @ weights.w_out + weights.b_out


def supports(x, weights: Weights) -> bool:
    """Whether the kernel takes tokens (B, ..., C) and weights of these shapes and types."""
    return (
        x.dtype in (jnp.bfloat16, jnp.float32)
        and x.dtype == weights.w_in.dtype
        and axis_size(HEAD_AXIS) == 1  # else XLA splits the hidden channels
        and x[0].size // x.shape[-1] >= LANES
        and x.shape[-1] % 8 == 0
        and piece_of(weights) is not None
        and _block(x, weights) is not None
        and feed_forward_gradient.supports(x, weights)
    )


def _fused(x, weights, eps, interpret=False):
    tokens = x.reshape(-1, x.shape[-1])
    out = checkpoint_name(_feed_forward(tokens, weights, eps, interpret), BLOCK)
    return out.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _feed_forward(x, weights, eps, interpret):
    return _run(x, weights, eps, interpret)


def _with_residuals(x, weights, eps, interpret):
    return _run(x, weights, eps, interpret), (x, weights)


def _gradient(eps, interpret, residuals, cotangent):
    return gradient(*residuals, cotangent, eps, interpret)


_feed_forward.defvjp(_with_residuals, _gradient)


def _block(x, weights):
    """Tokens of a block."""
    memory = functools.partial(_memory, weights=weights)
    return block_of(x.size // x.shape[-1], memory, fast_memory())


def _memory(block, weights):
    """Bytes of fast memory: what is moved is there twice."""
    channels, item = weights.w_in.shape[0], weights.w_in.dtype.itemsize
    piece, wide = piece_of(weights), -(-channels // LANES) * LANES
    moved = (2 * block * wide + 3 * piece * wide) * item
    kept = block * (wide * (4 + item) + 4 * 4 * piece)
    return 2 * moved + kept + reserve()


@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def _run(x, weights, eps, interpret):
    (tokens, channels), hidden = x.shape, weights.w_out.shape[0]
    block, piece = _block(x, weights), piece_of(weights)
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

    value = multiply(tokens[:], w_value[:]) + b_in[0]
    gate = multiply(tokens[:], w_gate[:]) + b_in[1]
    total[:] += multiply((value * gelu_and_slope(gate)[0]).astype(tokens.dtype), w_out[:])

    @pl.when(piece == pl.num_programs(1) - 1)
    def _():
        out[:] = total[:].astype(out.dtype)
