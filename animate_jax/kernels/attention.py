"""Softmax attention: which implementation runs is decided here, by platform and shape.

Arrays are tokens with the heads side by side in the channels. Scores and softmax are float32.
On a TPU the kernels of `spatial` and `temporal` run, on an NVIDIA GPU cuDNN's flash attention
(arXiv 2205.14135); elsewhere, and for shapes that those do not take, plain XLA, to which they are
all equal.

Plain XLA has bounded memory: where all scores at once would pass SCORE_BYTES, rows and then queries
go through in slices, so that a 24-frame clip at 768x768 needs no more memory than a small one. On a
CPU the slices are such as its caches hold. Every device slices its own rows: left to XLA, it would
gather those of all devices for every slice.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from animate_jax.kernels import spatial, temporal
from animate_jax.kernels.dispatch import by_platform, over_mesh

SCORE_BYTES = 512 * 2**20
CACHE_BYTES = 32 * 2**20


def attention(query, key, value, heads: int, reference=None, has_reference=None):
    """Every query attends to its own row's keys and, where there are any, to the reference's.

    Equal to concatenating the reference's keys and values to the row's own (Animate Anyone,
    section 3.2), without doing so.

    query (B, F, N, C), key and value (B, F, M, C).
    reference: None, or key and value (R, K, C) shared by the F frames of a row. It belongs to the
        last R rows; those before them attend to themselves only.
    has_reference: None, or bool (R,); False hides the reference from that row.
    Returns (B, F, N, C).
    """
    alone = 0 if reference is None else query.shape[0] - reference[0].shape[0]
    if alone:
        rows = query, key, value
        own = attention(*(x[:alone] for x in rows), heads)
        out = attention(*(x[alone:] for x in rows), heads, reference, has_reference)
        return jnp.concatenate([own, out])
    tpu = cuda = None
    if spatial.supports(query, key, heads, reference):
        tpu = over_mesh(spatial.attention, heads)
    if _cudnn_supports(query, heads):
        cuda = functools.partial(_attention_cudnn, heads=heads)
    rows = query, key, value, reference, has_reference
    plain, cpu = (
        over_mesh(functools.partial(_attention_plain, score_bytes=size), heads)
        for size in (SCORE_BYTES, CACHE_BYTES)
    )
    return by_platform(plain, *rows, tpu=tpu, cuda=cuda, cpu=cpu)


def temporal_attention(query, key, value, heads: int):
    """Self-attention along the frames, one sequence a pixel: (B, F, N, C) thrice -> the same."""
    tpu = over_mesh(temporal.temporal_attention, heads) if temporal.supports(query, heads) else None
    return by_platform(over_mesh(_temporal_attention_plain, heads), query, key, value, tpu=tpu)


def _cudnn_supports(query, heads):
    """Asks for the GPU's generation, so only a process that has one gets cuDNN's version."""
    width = query.shape[-1] // heads
    return (
        jax.default_backend() == "gpu"
        and query.dtype in (jnp.bfloat16, jnp.float16)
        and width % 8 == 0
        and width <= 128
        and float(getattr(jax.devices()[0], "compute_capability", 0)) >= 8
    )


def _attention_cudnn(query, key, value, reference, has_reference, heads):
    batch, frames, tokens, channels = query.shape
    lengths = None
    if reference is not None:
        own = key.shape[2]
        key, value = (
            jnp.concatenate([x, jnp.broadcast_to(y[:, None], (batch, frames, *y.shape[1:]))], 2)
            for x, y in zip((key, value), reference)
        )
        if has_reference is not None:
            lengths = jnp.where(has_reference, key.shape[2], own).astype(jnp.int32)
            lengths = jnp.repeat(lengths, frames)
    query, key, value = (
        _split_heads(x.reshape(batch * frames, -1, channels), heads) for x in (query, key, value)
    )
    out = jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return out.reshape(batch, frames, tokens, channels)


def _attention_plain(query, key, value, reference, has_reference, heads, score_bytes):
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
    return jnp.swapaxes(out, -3, -2).reshape(batch, frames, tokens, channels)


def _split_heads(x, heads):
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def _heads_first(x, heads):
    """(..., N, C) -> (..., H, N, D)."""
    return jnp.swapaxes(_split_heads(x, heads), -3, -2)


def _attend_clip(query, key, value, reference, has_reference, query_block=None):
    """One clip: query (F, H, N, D), key, value (F, H, M, D), reference None or (H, R, D) twice."""

    def attend(query, key, value):  # (H, N, D), (H, M, D) of one frame
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
        out = jnp.swapaxes(out, 0, 1).reshape(heads, whole, width)
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


def _temporal_attention_plain(query, key, value, heads):
    batch, frames, pixels, channels = query.shape
    split = functools.partial(_split_heads, heads=heads)
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
