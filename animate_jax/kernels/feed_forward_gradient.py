"""The gradient of a transformer block's feed-forward, as two Pallas kernels for TPU.

With t = LayerNorm(x), and value and gate the halves of t W_in + b_in, for a cotangent g of
x + (value * gelu(gate)) W_out + b_out:

    d_hidden = g W_out';  d_value = d_hidden * gelu(gate);  d_gate = d_hidden * value * gelu'(gate)
    d_t = [d_value, d_gate] W_in'
    d_W_in = t' [d_value, d_gate];  d_W_out = (value * gelu(gate))' g

One kernel gives what goes to the tokens, the other what goes to the two layers: each computes the
hidden channels again, a piece of them for a block of tokens at a time, so that none is written out.
Where nothing is learnt the second is not needed, and XLA leaves it out.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from animate_jax.kernels.dispatch import fast_memory, reserve
from animate_jax.kernels.geglu import Weights, block_of, gelu_and_slope, piece_of
from animate_jax.kernels.parts import (
    COLUMNS_BY_COLUMNS,
    LANES,
    ROWS_BY_ROWS,
    multiply,
    normalise,
    normalise_gradient,
)


def gradient(x, weights: Weights, cotangent, eps: float, interpret: bool = False):
    """Cotangents of x (tokens, C) and of the weights, in their dtypes."""
    dx, sums = _run_tokens(x, weights, cotangent, eps, interpret)
    d_scale, d_shift, d_b_out = sums.sum(0)
    d_w_in, d_b_in, d_w_out = _run_weights(x, weights, cotangent, eps, interpret)
    grown = Weights(d_scale, d_shift, d_w_in, d_b_in, d_w_out, d_b_out)
    return dx, Weights(*(d.astype(w.dtype) for d, w in zip(grown, weights)))


def supports(x, weights: Weights) -> bool:
    """Whether the kernels take tokens (B, ..., C) and weights that the forward pass takes."""
    return all(_block(x, weights, kept) is not None for kept in (_kept_tokens, _kept_weights))


def _block(x, weights, kept):
    """Tokens of a block."""
    memory = functools.partial(_memory, weights=weights, kept=kept)
    return block_of(x.size // x.shape[-1], memory, fast_memory())


def _memory(block, weights, kept):
    """Bytes of fast memory: what is moved is there twice; seven hidden arrays are worked on."""
    channels, item = weights.w_in.shape[0], weights.w_in.dtype.itemsize
    piece, wide = piece_of(weights), -(-channels // LANES) * LANES
    moved = (3 * block * wide + 3 * piece * wide) * item
    hidden = 7 * 4 * block * piece
    return 2 * moved + block * wide * item + hidden + kept(block, piece, wide, item) + reserve()


def _kept_tokens(block, piece, wide, item):
    return 3 * 4 * block * wide


def _kept_weights(block, piece, wide, item):
    return 3 * piece * wide * (4 + 2 * item)


def _operands(x, weights, cotangent, block, piece, order):
    """Inputs of both kernels with their blocks; order: grid indices -> (block, piece)."""
    channels, hidden = x.shape[1], weights.w_out.shape[0]
    pieces = hidden // piece
    rows = jnp.stack([weights.scale, weights.shift]).astype(jnp.float32)[:, None]
    b_in = weights.b_in.astype(jnp.float32).reshape(2, 1, hidden)

    def spec(shape, index):
        return pl.BlockSpec(shape, lambda *grid: index(*order(*grid)))

    tokens = spec((block, channels), lambda t, h: (t, 0))
    return [
        (x, tokens),
        (cotangent, tokens),
        (rows, spec((2, 1, channels), lambda t, h: (0, 0, 0))),
        (weights.w_in, spec((channels, piece), lambda t, h: (0, h))),
        (weights.w_in, spec((channels, piece), lambda t, h: (0, h + pieces))),
        (b_in, spec((2, 1, piece), lambda t, h: (0, 0, h))),
        (weights.w_out, spec((piece, channels), lambda t, h: (h, 0))),
    ]


@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def _run_tokens(x, weights, cotangent, eps, interpret):
    """dx (tokens, C); and per block of tokens what scale, shift and b_out get, float32."""
    (tokens, channels), piece = x.shape, piece_of(weights)
    block = _block(x, weights, _kept_tokens)
    blocks = pl.cdiv(tokens, block)
    operands = _operands(x, weights, cotangent, block, piece, lambda t, h: (t, h))
    return pl.pallas_call(
        functools.partial(_tokens_kernel, count=tokens, eps=eps),
        grid=(blocks, weights.w_out.shape[0] // piece),
        in_specs=[spec for _, spec in operands],
        out_specs=[
            pl.BlockSpec((block, channels), lambda t, h: (t, 0)),
            pl.BlockSpec((1, 3, channels), lambda t, h: (t, 0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((blocks, 3, channels), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((block, channels), x.dtype),
            pltpu.VMEM((block, channels), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=_memory(block, weights, _kept_tokens),
        ),
        interpret=interpret,
        name="feed_forward_tokens_gradient",
    )(*(operand for operand, _ in operands))


def _tokens_kernel(
    x, cotangent, rows, w_value, w_gate, b_in, w_out, dx, sums, tokens, total, *, count, eps
):
    block, piece = pl.program_id(0), pl.program_id(1)

    @pl.when(piece == 0)
    def _():
        tokens[:] = normalise(x[:], rows[0], rows[1], eps)

    _, d_value, d_gate = _hidden(tokens[:], cotangent[:], w_value, w_gate, b_in, w_out)
    change = multiply(d_value, w_value[:], ROWS_BY_ROWS) + multiply(d_gate, w_gate[:], ROWS_BY_ROWS)

    @pl.when(piece == 0)
    def _():
        total[:] = change

    @pl.when(piece > 0)
    def _():
        total[:] += change

    @pl.when(piece == pl.num_programs(1) - 1)
    def _():
        d_y, d_scale = normalise_gradient(x[:], rows[0], total[:], eps)
        g = cotangent[:].astype(jnp.float32)
        dx[:] = (g + d_y).astype(dx.dtype)
        for i, part in enumerate((d_scale, total[:], g)):
            sums[0, i] = _only_tokens(part, block, count).sum(0)


@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def _run_weights(x, weights, cotangent, eps, interpret):
    """What w_in (C, 2 H), b_in (2, 1, H) and w_out (H, C) get, in the dtype of the weights."""
    (tokens, channels), piece = x.shape, piece_of(weights)
    hidden, dtype = weights.w_out.shape[0], weights.w_in.dtype
    block = _block(x, weights, _kept_weights)
    operands = _operands(x, weights, cotangent, block, piece, lambda h, t: (t, h))
    d_value, d_gate, d_b_in, d_w_out = pl.pallas_call(
        functools.partial(_weights_kernel, count=tokens, eps=eps),
        grid=(hidden // piece, pl.cdiv(tokens, block)),
        in_specs=[spec for _, spec in operands],
        out_specs=[
            pl.BlockSpec((channels, piece), lambda h, t: (0, h)),
            pl.BlockSpec((channels, piece), lambda h, t: (0, h)),
            pl.BlockSpec((2, 1, piece), lambda h, t: (0, 0, h)),
            pl.BlockSpec((piece, channels), lambda h, t: (h, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((channels, hidden), dtype),
            jax.ShapeDtypeStruct((channels, hidden), dtype),
            jax.ShapeDtypeStruct((2, 1, hidden), jnp.float32),
            jax.ShapeDtypeStruct((hidden, channels), dtype),
        ],
        scratch_shapes=[
            pltpu.VMEM((channels, piece), jnp.float32),
            pltpu.VMEM((channels, piece), jnp.float32),
            pltpu.VMEM((piece, channels), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=_memory(block, weights, _kept_weights),
        ),
        interpret=interpret,
        name="feed_forward_weights_gradient",
    )(*(operand for operand, _ in operands))
    return jnp.concatenate([d_value, d_gate], 1), d_b_in.reshape(-1), d_w_out


def _weights_kernel(x, cotangent, rows, w_value, w_gate, b_in, w_out, *refs, count, eps):
    *outputs, sum_value, sum_gate, sum_out = refs
    out_value, out_gate, d_b_in, out_out = outputs
    index = pl.program_id(1)

    @pl.when(index == 0)
    def _():
        for ref in (sum_value, sum_gate, d_b_in, sum_out):
            ref[:] = jnp.zeros_like(ref)

    tokens = _only_tokens(normalise(x[:], rows[0], rows[1], eps), index, count)
    g = _only_tokens(cotangent[:], index, count)
    hidden, d_value, d_gate = _hidden(tokens, g, w_value, w_gate, b_in, w_out)
    sum_value[:] += multiply(tokens, d_value, COLUMNS_BY_COLUMNS)
    sum_gate[:] += multiply(tokens, d_gate, COLUMNS_BY_COLUMNS)
    sum_out[:] += multiply(hidden, g, COLUMNS_BY_COLUMNS)
    for i, d in enumerate((d_value, d_gate)):
        d_b_in[i] += d.astype(jnp.float32).sum(0, keepdims=True)

    @pl.when(index == pl.num_programs(1) - 1)
    def _():
        for total, out in (sum_value, out_value), (sum_gate, out_gate), (sum_out, out_out):
            out[:] = total[:].astype(out.dtype)


def _hidden(tokens, g, w_value, w_gate, b_in, w_out):
    """A piece of the hidden channels, and the cotangents of values and gates, in the dtype of the
    tokens."""
    value = multiply(tokens, w_value[:]) + b_in[0]
    gate = multiply(tokens, w_gate[:]) + b_in[1]
    d_hidden = multiply(g, w_out[:], ROWS_BY_ROWS)
    active, slope = gelu_and_slope(gate)
    parts = value * active, d_hidden * active, d_hidden * value * slope
    return tuple(x.astype(tokens.dtype) for x in parts)


def _only_tokens(x, block_index, count):
    """Zero in the rows of the last block that no token stands in."""
    block = x.shape[0]
    if count % block == 0:
        return x
    row = block_index * block + jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0)
    return jnp.where(row < count, x, jnp.zeros_like(x))
