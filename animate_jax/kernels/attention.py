"""Softmax attention: which implementation runs is decided here, by platform and shape.

Arrays are tokens with the heads side by side in the channels. Scores and softmax are float32.
On a TPU the kernels of `spatial` and `temporal` run, on an NVIDIA GPU cuDNN's flash attention
(arXiv 2205.14135); elsewhere, and for shapes that those do not take, plain XLA, to which they are
all equal.

On a CPU the slices of plain attention are such as its caches hold. Every device slices its own
rows: left to XLA, it would gather those of all devices for every slice.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from animate_jax.kernels import spatial, temporal
from animate_jax.kernels.dispatch import by_platform, over_mesh
from animate_jax.kernels.plain_attention import (
    SCORE_BYTES,
    plain_attention,
    plain_temporal_attention,
    split_heads,
)

CACHE_BYTES = 32 * 2**20


def attention(query, key, value, heads: int, reference=None, has_reference=None):
    """Every query attends to its own row's keys and, where there are any, to the reference's.

    Equal to concatenating the reference's keys and values to the row's own (Animate Anyone,
    section 3.2), without doing so.

    query (B, F, N, C), key (B, F, M, C) and value (B, F, M, V).
    reference: None, or key (R, K, C) and value (R, K, V), shared by the F frames of a row. It
        belongs to the last R rows; those before them attend to themselves only.
    has_reference: None, or bool (R,); False hides the reference from that row.
    Returns (B, F, N, V).
    """
    alone = 0 if reference is None else query.shape[0] - reference[0].shape[0]
    if alone:
        rows = query, key, value
        own = attention(*(x[:alone] for x in rows), heads)
        out = attention(*(x[alone:] for x in rows), heads, reference, has_reference)
        return jnp.concatenate([own, out])
    rows = query, key, value, reference, has_reference
    tpu = cuda = None
    if value.shape[-1] >= key.shape[-1]:
        widened = functools.partial(_widened, heads=heads)
        wide_query, wide_key, _, wide_reference, _ = jax.eval_shape(widened, *rows)
        if spatial.supports(wide_query, wide_key, heads, wide_reference):
            tpu = over_mesh(_of_widened(spatial.attention), heads)
        if _cudnn_supports(wide_query, heads):
            cuda = functools.partial(_of_widened(_attention_cudnn), heads=heads)
    plain, cpu = (
        over_mesh(functools.partial(plain_attention, score_bytes=size), heads)
        for size in (SCORE_BYTES, CACHE_BYTES)
    )
    return by_platform(plain, *rows, tpu=tpu, cuda=cuda, cpu=cpu)


def _of_widened(kernel):
    return lambda *rows, heads: kernel(*_widened(*rows, heads), heads=heads)


def _widened(query, key, value, reference, has_reference, heads):
    """The same attention with queries and keys as wide as the values, as kernels take no others.

    Zeros that are added to every head cost them little: a matrix unit multiplies by more rows than
    a narrow head has in any case, and the weights of the values are computed once.
    """
    more = (value.shape[-1] - key.shape[-1]) // heads
    if not more:
        return query, key, value, reference, has_reference

    def widen(x):
        zeros = [(0, 0)] * x.ndim + [(0, more)]
        return jnp.pad(split_heads(x, heads), zeros).reshape(*x.shape[:-1], -1)

    scale = (value.shape[-1] / key.shape[-1]) ** 0.5  # kernels divide by the root of the width
    if reference is not None:
        reference = widen(reference[0]), reference[1]
    return widen(query * scale), widen(key), value, reference, has_reference


def temporal_attention(query, key, value, heads: int):
    """Self-attention along the frames, one sequence a pixel: (B, F, N, C) thrice -> the same."""
    tpu = over_mesh(temporal.temporal_attention, heads) if temporal.supports(query, heads) else None
    return by_platform(over_mesh(plain_temporal_attention, heads), query, key, value, tpu=tpu)


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
        split_heads(x.reshape(batch * frames, -1, channels), heads) for x in (query, key, value)
    )
    out = jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return out.reshape(batch, frames, tokens, channels)
