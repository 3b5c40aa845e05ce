"""Attention of a frame's queries over its own keys and a reference's, as Pallas kernels for TPU.

Flash attention (arXiv 2205.14135) with two sources of keys that are never concatenated; a row
without a reference does not visit it. Everything is turned on its side: arrays are (channels,
tokens), scores have keys down and queries across,

    S' = K Q'  (keys, queries)        O' = V' softmax(S')  (width, queries)

so that maxima and sums run down the registers, and the second product streams the few rows of V'
past the weights instead of the weights past the few columns of V. For narrow heads that halves the
work of the matrix unit: it always multiplies by 128 columns, of which a head of 40 would use 40.
A row of ones below V' makes that product sum the weights too. Heads are rows, so cutting them apart
is free, and so is turning: XLA lets the projections around write and read turned arrays.

The grid is (batch, groups of heads, frames, blocks of queries). All keys of a frame and of the
reference stay in fast memory for one group of heads.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from animate_jax.kernels.dispatch import reserve
from animate_jax.kernels.parts import ATTENTION, LANES, ROWS_BY_ROWS, multiply
from animate_jax.kernels.plain_attention import SCORE_BYTES, plain_attention
from animate_jax.kernels.spatial_plan import KEY_BLOCK, Plan, block_of, plan_of, up

LOG2_E = math.log2(math.e)


def supports(query, key, heads: int, reference=None) -> bool:
    """Whether the kernels take query (B, F, N, C) and key (B, F, M, C) of this shape and type.

    The gradient of what they take is plain where a chip's fast memory is too small for it.
    """
    if query.shape[-1] % (8 * heads) or query.dtype not in (jnp.bfloat16, jnp.float32):
        return False
    if query.shape[2] < LANES or key.shape[2] < LANES:
        return False
    return plan_of(query, key, reference, heads).fits(backward=False)


def attention(query, key, value, reference=None, has_reference=None, *, heads, interpret=False):
    """The same as `kernels.attention.attention`; interpret: run on any platform, slowly."""
    plan = plan_of(query, key, reference, heads)
    tokens = query.shape[2]
    query, key, value, reference = jax.tree.map(turn, (query, key, value, reference))
    out = attention_turned(query, key, value, reference, has_reference, plan, interpret)
    return jnp.swapaxes(out, -1, -2)[..., :tokens, :]


def turn(x):
    """(..., tokens, channels) -> (..., channels, tokens rounded up to a multiple of 128)."""
    x = jnp.swapaxes(x, -1, -2)
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % LANES)])


def attention_turned(query, key, value, reference, has_reference, plan, interpret=False):
    """The same of what `turn` returns: (B, F, C, N) thrice and (R, C, M) twice -> (B, F, C, N).

    A reference of fewer rows than the queries belongs to the last R of them; has_reference (R,).
    """
    if reference is None:
        has_reference = None
    else:
        rows = reference[0].shape[0]
        if has_reference is None:
            has_reference = jnp.ones(rows)
        has_reference = jnp.pad(has_reference.astype(jnp.int32), (query.shape[0] - rows, 0))
    return _attention(query, key, value, reference, has_reference, plan, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attention(query, key, value, reference, has_reference, plan, interpret):
    return _run_forward(query, key, value, reference, has_reference, plan, interpret)[0]


def _with_residuals(query, key, value, reference, has_reference, plan, interpret):
    inputs = query, key, value, reference, has_reference
    out, log_sums = (checkpoint_name(x, ATTENTION) for x in _run_forward(*inputs, plan, interpret))
    return out, (inputs, out, log_sums)


def _gradient(plan, interpret, residuals, cotangent):
    (query, key, value, reference, has_reference), out, log_sums = residuals
    if not plan.fits(backward=True):
        return _plain_gradient(*residuals[0], cotangent, plan)
    if has_reference is None:
        inputs = query, key, value, None, None, out, log_sums, cotangent
        return *_run_backward(*inputs, plan, interpret), None, None
    # Two rows may read the same reference, but not write its gradient.
    alone = query.shape[0] - reference[0].shape[0]
    whole = jax.tree.map(lambda x: jnp.pad(x, ((alone, 0), (0, 0), (0, 0))), reference)
    inputs = query, key, value, whole, has_reference, out, log_sums, cotangent
    *own, d_key, d_value = _run_backward(*inputs, plan, interpret)
    d_reference = d_key[alone:], d_value[alone:]
    return *own, d_reference, np.zeros(has_reference.shape, jax.dtypes.float0)


_attention.defvjp(_with_residuals, _gradient)


def _plain_gradient(query, key, value, reference, has_reference, cotangent, plan):
    """Of turned arrays, whose padding is cut off first."""
    own, *others = plan.lengths

    def plain(query, key, value, reference):
        query = jnp.swapaxes(query, -1, -2)
        key, value = (jnp.swapaxes(x[..., :own], -1, -2) for x in (key, value))
        shown = None
        if reference is not None:
            alone = ((query.shape[0] - reference[0].shape[0], 0), (0, 0), (0, 0))
            reference = [
                jnp.pad(jnp.swapaxes(x[..., : others[0]], -1, -2), alone) for x in reference
            ]
            shown = has_reference > 0
        out = plain_attention(query, key, value, reference, shown, plan.heads, SCORE_BYTES)
        return jnp.swapaxes(out, -1, -2)

    gradients = jax.vjp(plain, query, key, value, reference)[1](cotangent)
    if has_reference is None:
        return *gradients, None
    return *gradients, np.zeros(has_reference.shape, jax.dtypes.float0)


@functools.partial(jax.jit, static_argnames=("plan", "interpret"))
def _run_forward(query, key, value, reference, has_reference, plan, interpret):
    sources = [key, value, *(reference or ())]
    batch, frames, _, tokens = query.shape
    log_sums = batch, frames, plan.groups, plan.together, tokens
    return _call(
        _forward,
        [(query, _queries(plan)), *((x, _keys(x, batch, plan)) for x in sources)],
        has_reference,
        [(query.shape, query.dtype, _queries(plan)), (log_sums, jnp.float32, _statistics(plan))],
        [
            pltpu.VMEM((x.shape[-1], up(plan.channels, LANES)), plan.dtype)
            if is_key
            else pltpu.VMEM((plan.together * plan.rows, x.shape[-1]), plan.dtype)
            for x, is_key in zip(sources, (True, False) * 2)
        ],
        plan,
        interpret,
    )


@functools.partial(jax.jit, static_argnames=("plan", "interpret"))
def _run_backward(
    query, key, value, reference, has_reference, out, log_sums, cotangent, plan, interpret
):
    sources, batch = [key, value, *(reference or ())], query.shape[0]
    return _call(
        _backward,
        [
            *((x, _queries(plan)) for x in (query, out, cotangent)),
            (log_sums, _statistics(plan)),
            *((x, _keys(x, batch, plan)) for x in sources),
        ],
        has_reference,
        [(query.shape, query.dtype, _queries(plan))]
        + [(x.shape, x.dtype, _keys(x, batch, plan)) for x in sources],
        [pltpu.VMEM((x.shape[-1], up(plan.channels, LANES)), plan.dtype) for x in sources]
        + [pltpu.VMEM((plan.channels, x.shape[-1]), jnp.float32) for x in sources],
        plan,
        interpret,
    )


def _call(kernel, inputs, has_reference, outputs, scratch, plan, interpret):
    batch, frames, _, tokens = inputs[0][0].shape
    if has_reference is not None:
        inputs = [(has_reference, pl.BlockSpec(memory_space=pltpu.SMEM)), *inputs]
    needed = plan.memory(backward=kernel is _backward)
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid=(batch, plan.groups, frames, tokens // plan.queries),
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for *_, spec in outputs],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=needed + reserve(),
        ),
        interpret=interpret,
        name=f"spatial_attention{kernel.__name__}",
    )(*(x for x, _ in inputs))


def _queries(plan):
    """Blocks of (B, F, C, N)."""
    shape = 1, 1, plan.channels, plan.queries
    return pl.BlockSpec(shape, lambda b, g, f, n: (b, f, g, n))


def _statistics(plan):
    """Blocks of (B, F, groups, heads of a group, N)."""
    shape = 1, 1, 1, plan.together, plan.queries
    return pl.BlockSpec(shape, lambda b, g, f, n: (b, f, g, 0, n))


def _keys(x, batch, plan):
    """Blocks of (B, F, C, M), or of a reference's (R, C, M), which belongs to the last R rows."""
    shape = plan.channels, x.shape[-1]
    if x.ndim == 3:
        alone = batch - x.shape[0]
        return pl.BlockSpec((1, *shape), lambda b, g, f, n: (jnp.maximum(b - alone, 0), g, 0))
    return pl.BlockSpec((1, 1, *shape), lambda b, g, f, n: (b, f, g, 0))


def _forward(*refs, plan: Plan):
    count = len(plan.lengths)
    has_reference, refs = (refs[0], refs[1:]) if count > 1 else (None, refs)
    query_ref, refs = _part(refs[0]), refs[1:]
    sources, (out_ref, log_sums_ref), prepared = _cut(refs, 2 * count, 2, 2 * count)
    out_ref, log_sums_ref = _part(out_ref), _part(log_sums_ref)

    for source in range(count):

        @pl.when(_is_new(source))
        def _(source=source):
            keys, values = sources[2 * source : 2 * source + 2]
            _straighten(keys, prepared[2 * source])
            _add_ones(values, prepared[2 * source + 1], plan)

    queries = _by_head(query_ref, plan, plan.width**-0.5 * LOG2_E)

    def visit(keys_ref, values_ref, block, length, i, state):
        tokens = pl.ds(pl.multiple_of(i * block, block), block)
        keys, values = keys_ref[tokens, :], values_ref[:, tokens]
        after = []
        for head, (top, total) in enumerate(state):
            scores = _scores(keys, queries[head], i * block, length)
            new_top = jnp.maximum(top, scores.max(0, keepdims=True))
            weights = jnp.exp2(scores - new_top).astype(plan.dtype)
            sums = multiply(values[head * plan.rows : (head + 1) * plan.rows], weights)
            after.append((new_top, total * jnp.exp2(top - new_top) + sums))
        return after

    top = jnp.full((1, plan.queries), -1e30, jnp.float32)
    state = [(top, jnp.zeros((plan.rows, plan.queries), jnp.float32))] * plan.together
    for source in range(count):
        visits, block, length = _visits(has_reference, source, plan)
        refs = prepared[2 * source : 2 * source + 2]
        state = jax.lax.fori_loop(0, visits, functools.partial(visit, *refs, block, length), state)

    for head, (top, total) in enumerate(state):
        sums = total[plan.width : plan.width + 1]
        out_ref[_rows(head, plan), :] = (total[: plan.width] / sums).astype(plan.dtype)
        log_sums_ref[head : head + 1, :] = top + jnp.log2(sums)


def _backward(*refs, plan: Plan):
    count = len(plan.lengths)
    has_reference, refs = (refs[0], refs[1:]) if count > 1 else (None, refs)
    (query_ref, out_ref, cotangent_ref, log_sums_ref), refs = map(_part, refs[:4]), refs[4:]
    sources, outputs, prepared, sums = _cut(refs, 2 * count, 1 + 2 * count, 2 * count, 2 * count)
    d_query_ref, d_sources = _part(outputs[0]), outputs[1:]

    for source in range(count):

        @pl.when(_is_new(source))
        def _(source=source):
            for i in (2 * source, 2 * source + 1):
                _straighten(sources[i], prepared[i])
                sums[i][...] = jnp.zeros_like(sums[i])

    queries = _by_head(query_ref, plan, plan.width**-0.5 * LOG2_E)
    cotangents = _by_head(cotangent_ref, plan)
    # The mean of the weights' gradient, by query.
    means = [
        (cotangent_ref[rows, :].astype(jnp.float32) * out_ref[rows, :].astype(jnp.float32)).sum(
            0, keepdims=True
        )
        for rows in (_rows(head, plan) for head in range(plan.together))
    ]

    def visit(source, block, length, i, d_queries):
        tokens = pl.ds(pl.multiple_of(i * block, block), block)
        keys, values = (ref[tokens, :] for ref in prepared[2 * source : 2 * source + 2])
        after = []
        for head, d_query in enumerate(d_queries):
            rows = _rows(head, plan)
            scores = _scores(keys, queries[head], i * block, length)
            weights = jnp.exp2(scores - log_sums_ref[head : head + 1, :])
            d_weights = multiply(values, cotangents[head])
            d_scores = (weights * (d_weights - means[head])).astype(plan.dtype)
            weights = weights.astype(plan.dtype)
            d_query += multiply(_part(sources[2 * source])[rows, tokens], d_scores)
            after.append(d_query)
            d_keys = multiply(query_ref[rows, :], d_scores, ROWS_BY_ROWS)
            sums[2 * source][rows, tokens] += d_keys
            d_values = multiply(cotangent_ref[rows, :], weights, ROWS_BY_ROWS)
            sums[2 * source + 1][rows, tokens] += d_values
        return after

    d_queries = [jnp.zeros((plan.width, plan.queries), jnp.float32)] * plan.together
    for source in range(count):
        visits, block, length = _visits(has_reference, source, plan)
        one = functools.partial(visit, source, block, length)
        d_queries = jax.lax.fori_loop(0, visits, one, d_queries)
    for head, d_query in enumerate(d_queries):
        d_query_ref[_rows(head, plan), :] = (d_query * plan.width**-0.5).astype(plan.dtype)

    for source in range(count):

        @pl.when(_is_done(source))
        def _(source=source):
            scaled = sums[2 * source][...] * plan.width**-0.5
            _part(d_sources[2 * source])[...] = scaled.astype(plan.dtype)
            _part(d_sources[2 * source + 1])[...] = sums[2 * source + 1][...].astype(plan.dtype)


def _cut(items, *lengths):
    """Consecutive parts of a sequence."""
    items = iter(items)
    return [[next(items) for _ in range(length)] for length in lengths]


def _part(ref):
    """The last two axes of a block."""
    return ref.at[(0,) * (len(ref.shape) - 2)]


def _rows(head, plan):
    return slice(head * plan.width, (head + 1) * plan.width)


def _is_new(source):
    """Whether a source's keys have just changed: a frame's own with the frame."""
    first = pl.program_id(3) == 0
    return first if source == 0 else first & (pl.program_id(2) == 0)


def _is_done(source):
    last = pl.program_id(3) == pl.num_programs(3) - 1
    return last if source == 0 else last & (pl.program_id(2) == pl.num_programs(2) - 1)


def _visits(has_reference, source, plan):
    """How many blocks of a source's keys this row looks at, the block, and the source's length."""
    length = plan.lengths[source]
    block = block_of(length, KEY_BLOCK)
    visits = up(length, LANES) // block
    if source > 0:
        visits = jnp.where(has_reference[pl.program_id(0)] != 0, visits, 0)
    return visits, block, length


def _straighten(turned_ref, straight_ref):
    """(channels, tokens) -> (tokens, lanes), zero beyond the channels."""
    turned = _part(turned_ref)
    channels, tokens = turned.shape
    missing = straight_ref.shape[1] - channels
    for first in range(0, tokens, LANES):
        x = turned[:, first : first + LANES].astype(jnp.float32)
        x = jnp.pad(x, ((0, missing), (0, 0)))
        straight_ref[first : first + LANES, :] = x.T.astype(straight_ref.dtype)


def _add_ones(values_ref, out_ref, plan):
    """A row of ones below every head's values."""
    values = _part(values_ref)
    tokens = values.shape[1]
    row = jax.lax.broadcasted_iota(jnp.int32, (plan.rows - plan.width, tokens), 0)
    ones = jnp.where(row == 0, 1.0, 0.0)
    for head in range(plan.together):
        x = jnp.concatenate([values[_rows(head, plan), :].astype(jnp.float32), ones])
        out_ref[head * plan.rows : (head + 1) * plan.rows, :] = x.astype(plan.dtype)


def _by_head(ref, plan, scale=1.0):
    """(channels, tokens) -> for every head (lanes, tokens) with the other heads' rows zero."""
    x = ref[...].astype(jnp.float32) * scale
    x = jnp.pad(x, ((0, up(plan.channels, LANES) - plan.channels), (0, 0)))
    row = jax.lax.broadcasted_iota(jnp.int32, (x.shape[0], 1), 0)
    return [
        jnp.where((row >= rows.start) & (row < rows.stop), x, 0.0).astype(plan.dtype)
        for rows in (_rows(head, plan) for head in range(plan.together))
    ]


def _scores(keys, query, first, length):
    """(keys, queries) float32, very negative beyond the source's length."""
    scores = multiply(keys, query)
    if length % LANES:
        index = first + jax.lax.broadcasted_iota(jnp.int32, (scores.shape[0], 1), 0)
        scores = jnp.where(index < length, scores, -1e30)
    return scores
