"""Softmax attention in plain XLA, of bounded memory.

Where all scores at once would pass a limit, rows and then queries go through in slices, so that a
24-frame clip at 768x768 needs no more memory than a small one.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

SCORE_BYTES = 512 * 2**20


def plain_attention(
    query, key, value, reference, has_reference, heads: int, score_bytes: int
) -> jax.Array:
    """As `kernels.attention.attention`, for a reference of as many rows as the queries, or None."""
    batch, frames, tokens, channels = query.shape
    split = functools.partial(_heads_first, heads=heads)
    query = split(query) * (channels // heads) ** -0.5
    key, value = split(key), split(value)
    keys = key.shape[-2]
    if reference is not None:
        reference = split(reference[0]), split(reference[1])
        has_reference = jnp.ones(batch, bool) if has_reference is None else has_reference
        keys += reference[0].shape[-2]

    rows = query, key, value, reference, has_reference
    if 4 * heads * batch * frames * tokens * keys <= score_bytes:
        out = jax.vmap(_attend_clip)(*rows)
    else:
        block = min(tokens, max(1, score_bytes // (4 * heads * keys)))
        out = jax.lax.map(lambda row: _attend_clip(*row, query_block=block), rows)
    return jnp.swapaxes(out, -3, -2).reshape(batch, frames, tokens, -1)


def split_heads(x, heads):
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def _heads_first(x, heads):
    """(..., N, C) -> (..., H, N, D)."""
    return jnp.swapaxes(split_heads(x, heads), -3, -2)


def _attend_clip(query, key, value, reference, has_reference, query_block=None):
    """One clip: query (F, H, N, D), key (F, H, M, D), value (F, H, M, V), reference None or
    (H, R, D) and (H, R, V)."""

    def attend(query, key, value):  # (H, N, D), (H, M, D), (H, M, V) of one frame
        scores = _scores(query, key)
        top = scores.max(-1, keepdims=True)
        if reference is not None:
            reference_scores = jnp.where(has_reference, _scores(query, reference[0]), -jnp.inf)
            top = jnp.maximum(top, reference_scores.max(-1, keepdims=True))
        top = jax.lax.stop_gradient(top)  # it cancels, and its gradient would cost as much again
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        out = _weigh(weights, value)
        if reference is not None:
            weights = jnp.exp(reference_scores - top)
            total = total + weights.sum(-1, keepdims=True)
            out = out + _weigh(weights, reference[1])
        return (out / total).astype(query.dtype)

    if query_block is None:
        return jax.vmap(attend)(query, key, value)

    def attend_in_blocks(frame):
        query, key, value = frame
        one = jax.checkpoint(lambda block: attend(block, key, value))
        heads, tokens, width = query.shape
        whole = tokens // query_block * query_block
        blocks = query[:, :whole].reshape(heads, -1, query_block, width)
        out = jax.lax.map(one, jnp.swapaxes(blocks, 0, 1))
        out = jnp.swapaxes(out, 0, 1).reshape(heads, whole, -1)
        if whole == tokens:
            return out
        return jnp.concatenate([out, one(query[:, whole:])], 1)

    return jax.lax.map(attend_in_blocks, (query, key, value))


def _product(x, y, contract):
    """Of every head, in float32: (H, ., .) twice, contracted along one dimension of each."""
    numbers = ((contract[0],), (contract[1],)), ((0,), (0,))
    return jax.lax.dot_general(x, y, numbers, preferred_element_type=jnp.float32)


# The scores are the large array. In every product below they stand where their layout is already
# the one that XLA multiplies in: it would copy them transposed, at half of a CPU's time.


@jax.custom_vjp
def _scores(query, key):
    return _product(query, key, (2, 2))


def _scores_forward(query, key):
    return _scores(query, key), (query, key)


def _scores_backward(saved, d_scores):
    query, key = saved
    d_query = _product(d_scores, key, (2, 1))
    d_key = jnp.swapaxes(_product(query, d_scores, (1, 1)), 1, 2)
    return d_query.astype(query.dtype), d_key.astype(key.dtype)


_scores.defvjp(_scores_forward, _scores_backward)


def _weigh(weights, value):
    return _product(weights.astype(value.dtype), value, (2, 1))


def plain_temporal_attention(query, key, value, heads: int) -> jax.Array:
    """As `kernels.attention.temporal_attention`."""
    batch, frames, pixels, channels = query.shape
    split = functools.partial(split_heads, heads=heads)
    query, key, value = split(query) * (channels // heads) ** -0.5, split(key), split(value)
    if 4 * batch * pixels * heads * frames**2 <= SCORE_BYTES:
        out = _attend_in_time(query, key, value)
    else:
        block = max(1, SCORE_BYTES // (4 * batch * heads * frames**2))
        by_pixel = [jnp.moveaxis(x, 2, 0) for x in (query, key, value)]
        one = jax.checkpoint(lambda rows: _attend_in_time(*(x[:, :, None] for x in rows))[:, :, 0])
        out = jnp.moveaxis(jax.lax.map(one, by_pixel, batch_size=block), 0, 2)
    return out.reshape(query.shape[:3] + (channels,))


def _attend_in_time(query, key, value):
    scores = jnp.einsum("bfnhd,bgnhd->bnhfg", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("bnhfg,bgnhd->bfnhd", weights, value)
