"""A transformer block's self-attention with the LayerNorm before it and the residual around both.

    out = x + attention(q, k, v) W_out + b_out + constant
    q, k, v = LayerNorm(x) W_q, LayerNorm(x) W_k, LayerNorm(x) W_v

Networks that are told where tokens are add that to q and k, and may have more values (BodyValues).

On a TPU three kernels hand each other arrays turned on their side: those of `projections` stand
before and after the attention of `spatial`, so that XLA neither turns nor normalises nor adds.
"""

from __future__ import annotations

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from animate_jax.kernels import projections, spatial
from animate_jax.kernels.attention import attention
from animate_jax.kernels.dispatch import (
    HEAD_AXIS,
    axis_size,
    by_platform,
    rows_are_split,
    rows_over_mesh,
)
from animate_jax.kernels.parts import normalise
from animate_jax.kernels.plain_attention import split_heads
from animate_jax.kernels.spatial_plan import plan_of


class Weights(typing.NamedTuple):
    """C channels. All in the compute dtype but the norm's, which are float32."""

    scale: jax.Array  # (C,)
    shift: jax.Array  # (C,)
    w_query: jax.Array  # (C, C)
    w_key: jax.Array  # (C, C)
    w_value: jax.Array  # (C, C)
    w_out: jax.Array  # (C, C)
    b_out: jax.Array  # (C,)


class Rows(typing.NamedTuple):
    """What each row brings; B rows, the last R of them with a reference. All but the mask are in
    the compute dtype."""

    x: jax.Array  # (B, F, N, C)
    reference: tuple[jax.Array, jax.Array] | None = None  # keys and values (R, K, C)
    has_reference: jax.Array | None = None  # bool (R,): False hides the reference from that row
    constant: jax.Array | None = None  # (B, 1, C), added everywhere


class BodyValues(typing.NamedTuple):
    """More values, which reach a query rotated by the way from their token's place to its own: by
    minus the query's angles what they were rotated by theirs. So it is told what was seen as seen
    from there, in finer steps than tokens (arXiv 2310.10375, section 3.2)."""

    w_value: jax.Array  # (C, C)
    w_out: jax.Array  # (C, C)
    angles: jax.Array  # (..., N, C / 2) of the rows' own tokens, or (C / 2,) of all alike
    reference: jax.Array | None = None  # values (R, K, C), rotated


class Places(typing.NamedTuple):
    """What is known of where tokens are: (N, C), or an array for every row, and the values."""

    query: jax.Array  # added to the queries
    key: jax.Array  # to the rows' own keys
    reference_key: jax.Array  # to the reference's
    values: BodyValues | None = None


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """x (..., N, C), every pair of neighbouring channels, as a point of the plane, rotated by its
    angle (..., N, C / 2)."""
    angles = jnp.repeat(angles, 2, -1)
    quarter = np.kron(np.eye(x.shape[-1] // 2), [[0, 1], [-1, 0]])
    across = x @ quarter.astype(x.dtype)  # faster than taking pairs apart
    return x * jnp.cos(angles).astype(x.dtype) + across * jnp.sin(angles).astype(x.dtype)


def spatial_block(
    rows: Rows, weights: Weights, heads: int, eps: float = 1e-5, places: Places | None = None
) -> jax.Array:
    """Returns (B, F, N, C); see `kernels.attention` for the reference."""
    one = functools.partial(_plain, heads=heads, eps=eps, places=places)
    tpu = None
    if places is None and supports(rows, weights, heads):
        tpu = rows_over_mesh(functools.partial(_fused, heads=heads, eps=eps))
    return by_platform(one, rows, weights, tpu=tpu)


def _plain(rows, weights, heads, eps, places=None):
    x, reference, has_reference, constant = rows
    tokens = normalise(x, weights.scale, weights.shift, eps)
    query, key, value = (tokens @ w for w in (weights.w_query, weights.w_key, weights.w_value))
    more = None
    if places is not None:
        query, key, more = query + places.query, key + places.key, places.values
        if reference is not None:
            reference = reference[0] + places.reference_key, reference[1]
    if more is not None:
        value = _beside(value, rotate(tokens @ more.w_value, more.angles), heads)
        if reference is not None:
            reference = reference[0], _beside(reference[1], more.reference, heads)
    attended = attention(query, key, value, heads, reference, has_reference)
    if more is not None:
        attended, seen = _apart(attended, heads)
        x = x + rotate(seen, -more.angles) @ more.w_out
    x = x + (attended @ weights.w_out + weights.b_out)
    return x if constant is None else x + constant[:, None]


def _beside(x, y, heads):
    """(..., C) twice -> (..., 2 C), side by side in every head."""
    both = jnp.concatenate([split_heads(x, heads), split_heads(y, heads)], -1)
    return both.reshape(*x.shape[:-1], -1)


def _apart(x, heads):
    """The way back."""
    return tuple(y.reshape(*x.shape[:-1], -1) for y in jnp.split(split_heads(x, heads), 2, -1))


def supports(rows: Rows, weights: Weights, heads: int) -> bool:
    """Whether the kernels take rows and weights of these shapes and types."""
    x, reference = rows.x, rows.reference
    return (
        projections.supports(x)
        and spatial.supports(x, x, heads, reference)
        and x.dtype == weights.w_query.dtype
        and axis_size(HEAD_AXIS) == 1  # else XLA splits the projections, head by head
        # Devices cannot each take their part of rows that only some of have a reference.
        and (reference is None or len(reference[0]) == len(x) or not rows_are_split(len(x)))
    )


def _fused(rows, weights, heads, eps, interpret=False):
    x, reference, has_reference, constant = rows
    *before, w_out, b_out = weights
    plan = plan_of(x, x, reference, heads)
    turned = projections.project(x, projections.Weights(*before), eps, interpret)
    reference = jax.tree.map(spatial.turn, reference)
    attended = spatial.attention_turned(*turned, reference, has_reference, plan, interpret)
    row = jnp.broadcast_to(b_out.astype(jnp.float32), (len(x), len(b_out)))
    if constant is not None:
        row += constant[:, 0]
    return projections.add_output(x, attended, w_out, row, interpret)
