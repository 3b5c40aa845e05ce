"""The TPU kernel for temporal attention, interpreted, equals plain XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.kernels import temporal
from animate_jax.kernels.attention import temporal_attention


def relative(ours, truth):
    ours, truth = (np.asarray(x, np.float64) for x in (ours, truth))
    return np.abs(ours - truth).max() / np.abs(truth).max()


def draw(shape, dtype=jnp.float32, loudness=1.0):
    """Query, key, value, cotangent."""
    query, *others = (
        jax.random.normal(jax.random.key(i), shape, jnp.float32).astype(dtype) for i in range(4)
    )
    return query * loudness, *others


def errors(arrays, heads):
    """Of the output, then of the gradients, against plain XLA in float32."""
    *inputs, cotangent = arrays
    out, gradient = jax.vjp(
        lambda *x: temporal.temporal_attention(*x, heads=heads, interpret=True), *inputs
    )
    *inputs, single = (x.astype(jnp.float32) for x in arrays)
    truth, true_gradient = jax.vjp(lambda *x: temporal_attention(*x, heads), *inputs)
    pairs = [(out, truth), *zip(gradient(cotangent), true_gradient(single))]
    return [relative(*pair) for pair in pairs]


@pytest.mark.parametrize(
    "frames, pixels, heads, width",
    [
        (24, 16, 4, 40),  # heads across tiles of channels, frames padded
        (5, 20, 8, 8),  # the last block of pixels is incomplete
        (40, 16, 3, 80),  # two heads a product, the last one alone
        (3, 16, 4, 192),  # heads wider than a tile, channels in two blocks
    ],
)
def test_equals_plain(frames, pixels, heads, width):
    arrays = draw((1, frames, pixels, heads * width))
    assert temporal.supports(arrays[0], heads)
    assert max(errors(arrays, heads)) < 2e-6


def test_large_scores_take_the_exact_softmax():
    arrays = draw((1, 24, 16, 80), loudness=100.0)
    assert max(errors(arrays, 2)) < 1e-4


def test_far_apart_heads_of_one_block():
    """One head's scores are all far below zero: without its own maximum its sum would be zero."""
    query, key, value, cotangent = draw((1, 4, 16, 32))
    query = query.at[..., :16].set(-30.0)
    key = key.at[..., :16].set(30.0 + key[..., :16])
    assert max(errors((query, key, value, cotangent), 2)) < 5e-4


def test_bfloat16_pixels_in_pairs_and_a_block_in_parts(monkeypatch):
    monkeypatch.setattr(temporal, "SCORE_REGISTERS", 16)
    arrays = draw((1, 24, 16, 160), jnp.bfloat16)
    assert max(errors(arrays, 4)) < 0.012  # three roundings of 2**-9


def test_what_is_left_to_plain():
    def query(frames, pixels, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((1, frames, pixels, 320), dtype)

    assert temporal.supports(query(24, 4096), 8)
    assert temporal.supports(query(128, 64), 8)
    assert not temporal.supports(query(129, 64), 8)
    assert not temporal.supports(query(24, 4), 8)
    assert not temporal.supports(query(24, 64, jnp.float16), 8)
