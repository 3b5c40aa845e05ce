"""A transformer block's self-attention with the LayerNorm before it and the residual around both.

    out = x + attention(q, k, v) W_out + b_out + constant
    q, k, v = LayerNorm(x) W_q, LayerNorm(x) W_k, LayerNorm(x) W_v

On a TPU three kernels hand each other arrays turned on their side: those of `projections` stand
before and after the attention of `spatial`, so that XLA neither turns nor normalises nor adds.
"""

from __future__ import annotations

import functools
import typing

import jax
import jax.numpy as jnp

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


def spatial_block(
    rows: Rows, weights: Weights, heads: int, eps: float = 1e-5, places=None
) -> jax.Array:
    """Returns (B, F, N, C); see `kernels.attention` for the reference.

    places: None, or what is added to the queries, to the rows' own keys and to the reference's;
    (N, C) each, or an array for every row.
    """
    one = functools.partial(_plain, heads=heads, eps=eps, places=places)
    tpu = None
    if places is None and supports(rows, weights, heads):
        tpu = rows_over_mesh(functools.partial(_fused, heads=heads, eps=eps))
    return by_platform(one, rows, weights, tpu=tpu)


def _plain(rows, weights, heads, eps, places=None):
    x, reference, has_reference, constant = rows
    tokens = normalise(x, weights.scale, weights.shift, eps)
    query, key, value = (tokens @ w for w in (weights.w_query, weights.w_key, weights.w_value))
    if places is not None:
        query, key = query + places[0], key + places[1]
        if reference is not None:
            reference = reference[0] + places[2], reference[1]
    attended = attention(query, key, value, heads, reference, has_reference)
    x = x + (attended @ weights.w_out + weights.b_out)
    return x if constant is None else x + constant[:, None]


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
