"""The products around spatial attention as two Pallas kernels for TPU.

    q, k, v = (LayerNorm(x) W_q)', (LayerNorm(x) W_k)', (LayerNorm(x) W_v)'     before it
    out     = x + attended' W_out + row                                         after it

The attention of `kernels.spatial` has its arrays turned on their side, (channels, tokens), here
marked by '. The matrix unit turns either of its inputs on the way in, so that nothing is turned for
its own sake: W' LayerNorm(x)' and attended'' W_out. The gradient of the first is two kernels more,
one for the tokens and one for the weights, which falls away where they are not learnt; that of the
second is the plain version's.
"""

from __future__ import annotations

import functools
import typing

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from animate_jax.kernels.dispatch import fast_memory, reserve
from animate_jax.kernels.parts import (
    COLUMNS_BY_COLUMNS,
    COLUMNS_BY_ROWS,
    LANES,
    multiply,
    normalise,
    normalise_gradient,
)
from animate_jax.kernels.spatial import turn
from animate_jax.kernels.spatial_plan import BLOCKS

TOKENS_AT_ONCE = 256  # to normalise


class Weights(typing.NamedTuple):
    """Of the norm, float32, and the three projections, in the compute dtype; C channels."""

    scale: jax.Array  # (C,)
    shift: jax.Array  # (C,)
    w_query: jax.Array  # (C, C)
    w_key: jax.Array  # (C, C)
    w_value: jax.Array  # (C, C)


def supports(x) -> bool:
    """Whether the kernels take tokens (B, F, N, C) of this shape and type."""
    return (
        x.dtype in (jnp.bfloat16, jnp.float32)
        and x.shape[2] >= LANES
        and x.shape[3] % 8 == 0
        and _block(x) is not None
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def project(x, weights: Weights, eps: float, interpret: bool = False):
    """x (B, F, N, C) -> query, key and value as `spatial.turn` returns them; zero beyond N."""
    return _run_project(x, weights, eps, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def add_output(x, attended, w_out, row, interpret: bool = False):
    """x (B, F, N, C), attended (B, F, C, N rounded up), row (B, C) float32 -> (B, F, N, C)."""
    return _run_add_output(x, attended, w_out, row, interpret)


def project_plain(x, weights: Weights, eps: float):
    tokens = normalise(x, weights.scale, weights.shift, eps)
    return tuple(turn(tokens @ w) for w in weights[2:])


def add_output_plain(x, attended, w_out, row):
    attended = jnp.swapaxes(attended, -1, -2)[..., : x.shape[2], :]
    return x + (attended @ w_out + row[:, None, None].astype(x.dtype))


def _project_with_residuals(x, weights, eps, interpret):
    return _run_project(x, weights, eps, interpret), (x, weights)


def _project_gradient(eps, interpret, residuals, cotangents):
    x, weights = residuals
    if not _gradient_fits(x):
        return jax.vjp(functools.partial(project_plain, eps=eps), x, weights)[1](cotangents)
    dx, sums = _run_tokens_gradient(x, weights, cotangents, eps, interpret)
    d_square = _run_weights_gradient(x, weights, cotangents, eps, interpret)
    d_norm = sums.sum((0, 1, 2))
    grown = (*d_norm, *d_square)
    return dx, Weights(*(d.astype(w.dtype) for d, w in zip(grown, weights)))


project.defvjp(_project_with_residuals, _project_gradient)


def _add_output_with_residuals(*inputs):
    *inputs, interpret = inputs
    return _run_add_output(*inputs, interpret), tuple(inputs)


def _add_output_gradient(interpret, residuals, cotangent):
    return jax.vjp(add_output_plain, *residuals)[1](cotangent)


add_output.defvjp(_add_output_with_residuals, _add_output_gradient)


def _up(n, multiple):
    return -(-n // multiple) * multiple


def _block(x):
    """Tokens of a block: the most that divide them, rounded up, and fit; None if none do."""
    tokens = _up(x.shape[2], LANES)
    fitting = (n for n in BLOCKS if tokens % n == 0 and _memory(n, x) <= fast_memory())
    return next(fitting, None)


def _gradient_fits(x):
    """Whether the fast memory has room for the weights' gradients beside the blocks."""
    wide, item = _up(x.shape[3], LANES), x.dtype.itemsize
    return _memory(_block(x), x) + 3 * wide * wide * (4 + item) <= fast_memory()


def _memory(block, x):
    """Bytes of fast memory for `project` or its gradient: what is moved is there twice."""
    wide, item = _up(x.shape[3], LANES), x.dtype.itemsize
    moved = 5 * block * wide * item
    kept = block * wide * item + 3 * wide * wide * item
    return 2 * moved + kept + 4 * 4 * block * wide + reserve()


@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def _run_project(x, weights, eps, interpret):
    batch, frames, tokens, channels = x.shape
    turned = jax.ShapeDtypeStruct((batch, frames, channels, _up(tokens, LANES)), x.dtype)
    rows = jnp.stack([weights.scale, weights.shift]).astype(jnp.float32)[:, None]
    return _call(
        functools.partial(_project, tokens=tokens, eps=eps),
        x,
        [(x, _straight(x)), *((w, _whole(w)) for w in (rows, *weights[2:]))],
        [(turned, _turned(x))] * 3,
        [pltpu.VMEM((_block(x), channels), x.dtype)],
        interpret,
    )


@functools.partial(jax.jit, static_argnames="interpret")
def _run_add_output(x, attended, w_out, row, interpret):
    row_spec = pl.BlockSpec((1, 1, x.shape[3]), lambda b, f, n: (b, 0, 0))
    return _call(
        _add_output,
        x,
        [
            (x, _straight(x)),
            (attended, _turned(x)),
            (w_out, _whole(w_out)),
            (row[:, None].astype(jnp.float32), row_spec),
        ],
        [(x, _straight(x))],
        [],
        interpret,
    )[0]


@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def _run_tokens_gradient(x, weights, cotangents, eps, interpret):
    """What x gets, and for every block of tokens what scale and shift get, float32."""
    batch, frames, tokens, channels = x.shape
    blocks = pl.cdiv(tokens, _block(x))
    sums = jax.ShapeDtypeStruct((batch, frames, blocks, 2, channels), jnp.float32)
    spec = pl.BlockSpec((1, 1, 1, 2, channels), lambda b, f, n: (b, f, n, 0, 0))
    scale = weights.scale.astype(jnp.float32)[None]
    return _call(
        functools.partial(_project_tokens_gradient, count=tokens, eps=eps),
        x,
        [
            (x, _straight(x)),
            *((y, _turned(x)) for y in cotangents),
            *((w, _whole(w)) for w in (scale, *weights[2:])),
        ],
        [(x, _straight(x)), (sums, spec)],
        [],
        interpret,
    )


@functools.partial(jax.jit, static_argnames=("eps", "interpret"))
def _run_weights_gradient(x, weights, cotangents, eps, interpret):
    """What the three projections get."""
    rows = jnp.stack([weights.scale, weights.shift]).astype(jnp.float32)[:, None]
    square = weights.w_query
    return _call(
        functools.partial(_project_weights_gradient, count=x.shape[2], eps=eps),
        x,
        [(x, _straight(x)), *((y, _turned(x)) for y in cotangents), (rows, _whole(rows))],
        [(square, _whole(square))] * 3,
        [pltpu.VMEM(square.shape, jnp.float32)] * 3,
        interpret,
        order="arbitrary",  # sums go over all blocks
    )


def _call(kernel, x, inputs, outputs, scratch, interpret, order="parallel"):
    """Runs a kernel over blocks of tokens; inputs and outputs with their blocks."""
    batch, frames, tokens, _ = x.shape
    name = getattr(kernel, "func", kernel).__name__
    return pl.pallas_call(
        kernel,
        grid=(batch, frames, pl.cdiv(tokens, _block(x))),
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for _, spec in outputs],
        out_shape=[jax.ShapeDtypeStruct(y.shape, y.dtype) for y, _ in outputs],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(order,) * 3,
            vmem_limit_bytes=_memory(_block(x), x)
            + sum(4 * y.shape[0] * y.shape[1] * 2 for y in scratch),
        ),
        interpret=interpret,
        name=f"spatial{name}",
    )(*(y for y, _ in inputs))


def _straight(x):
    """Blocks of (B, F, N, C)."""
    return pl.BlockSpec((1, 1, _block(x), x.shape[3]), lambda b, f, n: (b, f, n, 0))


def _turned(x):
    """Blocks of (B, F, C, N)."""
    return pl.BlockSpec((1, 1, x.shape[3], _block(x)), lambda b, f, n: (b, f, 0, n))


def _whole(w):
    return pl.BlockSpec(w.shape, lambda b, f, n: (0,) * w.ndim, pipeline_mode=pl.Buffered(1))


def _project(x, rows, w_query, w_key, w_value, query, key, value, straight, *, tokens, eps):
    block, channels = straight.shape
    at_once = min(block, TOKENS_AT_ONCE)
    first_of_all = pl.program_id(2) * block

    def normalise_some(i, _):
        first = pl.multiple_of(i * at_once, at_once)
        y = normalise(x[0, 0, pl.ds(first, at_once)], rows[0], rows[1], eps)
        if tokens % LANES:
            index = first_of_all + first + jax.lax.broadcasted_iota(jnp.int32, (at_once, 1), 0)
            y = jnp.where(index < tokens, y, 0)
        straight[pl.ds(first, at_once)] = y

    def put(w, out, first, width):
        part = pl.ds(first, width)
        y = multiply(w[:, part], straight[:], COLUMNS_BY_ROWS)
        out[0, 0, part] = y.astype(out.dtype)

    jax.lax.fori_loop(0, block // at_once, normalise_some, None)
    for w, out in (w_query, query), (w_key, key), (w_value, value):

        def put_lanes(i, _, w=w, out=out):
            put(w, out, pl.multiple_of(i * LANES, LANES), LANES)

        if full := channels // LANES:
            jax.lax.fori_loop(0, full, put_lanes, None)
        if rest := channels % LANES:
            put(w, out, channels - rest, rest)


def _add_output(x, attended, w_out, row, out):
    y = multiply(attended[0, 0], w_out[:], COLUMNS_BY_COLUMNS)
    out[0, 0] = (x[0, 0].astype(jnp.float32) + (y + row[0])).astype(out.dtype)


def _project_tokens_gradient(
    x, d_query, d_key, d_value, scale, w_query, w_key, w_value, dx, sums, *, count, eps
):
    pairs = (d_query, w_query), (d_key, w_key), (d_value, w_value)
    d_tokens = sum(multiply(d[0, 0], w[:], COLUMNS_BY_ROWS) for d, w in pairs)
    d_x, d_scale = normalise_gradient(x[0, 0], scale[:], d_tokens, eps)
    dx[0, 0] = d_x.astype(dx.dtype)
    for i, part in enumerate((d_scale, d_tokens)):
        sums[0, 0, 0, i] = _only_tokens(part, count).sum(0)


def _project_weights_gradient(x, d_query, d_key, d_value, rows, *refs, count, eps):
    outputs, totals = refs[:3], refs[3:]
    places = [pl.program_id(i) for i in range(3)]
    ends = [place == pl.num_programs(i) - 1 for i, place in enumerate(places)]

    @pl.when(functools.reduce(jnp.logical_and, [place == 0 for place in places]))
    def _():
        for total in totals:
            total[:] = jnp.zeros_like(total)

    tokens = _only_tokens(normalise(x[0, 0], rows[0], rows[1], eps), count)
    for d, total in zip((d_query, d_key, d_value), totals):
        total[:] += multiply(tokens, d[0, 0], COLUMNS_BY_ROWS)

    @pl.when(functools.reduce(jnp.logical_and, ends))
    def _():
        for total, out in zip(totals, outputs):
            out[:] = total[:].astype(out.dtype)


def _only_tokens(x, count):
    """Zero in the rows of the last block that no token stands in."""
    block = x.shape[0]
    if count % block == 0:
        return x
    row = pl.program_id(2) * block + jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0)
    return jnp.where(row < count, x, jnp.zeros_like(x))
