"""What several kernels share: LayerNorm and its gradient, and products with float32 results."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

LANES = 128
TILES_AT_ONCE = 3  # of LANES channels
# Names by which a backward pass may keep results, in place of computing them again.
ATTENTION, BLOCK = "attention", "block"
ROWS_BY_COLUMNS = ((1,), (0,)), ((), ())  # a b
ROWS_BY_ROWS = ((1,), (1,)), ((), ())  # a b'
COLUMNS_BY_ROWS = ((0,), (1,)), ((), ())  # a' b'
COLUMNS_BY_COLUMNS = ((0,), (0,)), ((), ())  # a' b


def multiply(a, b, dimensions=ROWS_BY_COLUMNS):
    """A matrix product with a float32 result, exact for float32 inputs."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dimensions, exact, jnp.float32)


def normalise(x, scale, shift, eps):
    """LayerNorm over the last axis; statistics in float32, the variance in two passes."""
    y = x.astype(jnp.float32)
    y -= y.mean(-1, keepdims=True)
    variance = (y * y).mean(-1, keepdims=True)
    return (y * (jax.lax.rsqrt(variance + eps) * scale) + shift).astype(x.dtype)


def normalise_gradient(x, scale, cotangent, eps):
    """Of `normalise`, for a float32 cotangent: what x gets, and what each row brings to scale."""
    y = x.astype(jnp.float32)
    y -= y.mean(-1, keepdims=True)
    rate = jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + eps)
    y *= rate
    slope = cotangent * scale
    along = (slope * y).mean(-1, keepdims=True)
    return rate * (slope - slope.mean(-1, keepdims=True) - y * along), cotangent * y


def in_loop(do, tiles: int) -> None:
    """Calls do(tile, None) for every tile.

    A wide block's tiles go through a loop: a program for each would take long to compile.
    """
    if tiles <= TILES_AT_ONCE:
        for tile in range(tiles):
            do(tile, None)
    else:
        jax.lax.fori_loop(0, tiles, do, None)


def lanes(tile, width: int = LANES):
    """The channels of a tile of 128, or the first `width` of them."""
    if isinstance(tile, int):
        return slice(tile * LANES, tile * LANES + width)
    return pl.ds(pl.multiple_of(tile * LANES, LANES), width)
