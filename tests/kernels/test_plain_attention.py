"""Attention in plain XLA: what runs where no kernel does, and what the kernels are equal to."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.kernels import attention as kernels
from animate_jax.kernels import spatial
from animate_jax.kernels.plain_attention import plain_attention

HEADS, TOKENS, KEYS = 2, 150, 100
HAS_REFERENCE = jnp.array([True, False])


def sliced(query, key, value, reference_key, reference_value):
    reference = reference_key, reference_value
    return kernels.attention(query, key, value, HEADS, reference, HAS_REFERENCE)


def concatenated(query, key, value, reference_key, reference_value):
    """The definition: keys and values of both sources together, all scores at once."""
    frames, hidden = query.shape[1], jnp.where(HAS_REFERENCE, 0.0, -jnp.inf)
    key, value = (
        jnp.concatenate([x, jnp.repeat(y[:, None], frames, 1)], 2)
        for x, y in ((key, reference_key), (value, reference_value))
    )
    query, key, value = (x.reshape(*x.shape[:3], HEADS, -1) for x in (query, key, value))
    scores = jnp.einsum("bfnhd,bfmhd->bfhnm", query, key) * query.shape[-1] ** -0.5
    scores = scores.at[..., TOKENS:].add(hidden[:, None, None, None, None])
    return jnp.einsum("bfhnm,bfmhd->bfnhd", jax.nn.softmax(scores), value).reshape(
        *query.shape[:3], -1
    )


def arrays(key, dtype=jnp.float32, width=16):
    """width: of the values."""
    shapes = [(2, 3, TOKENS, 16)] * 2 + [(2, 3, TOKENS, width), (2, KEYS, 16), (2, KEYS, width)]
    return [
        jax.random.normal(k, shape, dtype)
        for k, shape in zip(jax.random.split(key, len(shapes)), shapes)
    ]


def with_gradient(attend):
    def run(d_out, *inputs):
        out, backward = jax.vjp(attend, *inputs)
        return out, *backward(d_out)

    return jax.jit(run)


@pytest.mark.parametrize("block, width", [(TOKENS, 16), (75, 16), (64, 16), (1, 16), (64, 32)])
def test_slices_of_any_size_equal_the_definition(block, width, monkeypatch):
    """64 does not divide 150: the last slice is a smaller one. Forward and gradient, also of values
    that are wider than keys."""
    monkeypatch.setattr(kernels, "CACHE_BYTES", 4 * HEADS * (TOKENS + KEYS) * block)
    inputs = arrays(jax.random.key(0), width=width)
    d_out = jax.random.normal(jax.random.key(1), inputs[2].shape)
    ours = with_gradient(lambda *x: sliced(*x))(d_out, *inputs)
    for got, expected in zip(ours, with_gradient(concatenated)(d_out, *inputs)):
        np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("kernel", ["spatial", "plain"])
def test_kernels_take_wide_values_with_queries_and_keys_made_as_wide(kernel):
    """The kernel for TPUs, interpreted, and what stands for any other; forward and gradient."""

    def interpreted(*rows, heads):
        return spatial.attention(*rows, heads=heads, interpret=True)

    def plain(*rows, heads):
        assert rows[0].shape == rows[2].shape
        return plain_attention(*rows, heads, 2**30)

    of_widened = kernels._of_widened({"spatial": interpreted, "plain": plain}[kernel])

    def attend(query, key, value, *reference):
        return of_widened(query, key, value, reference, HAS_REFERENCE, heads=HEADS)

    inputs = arrays(jax.random.key(0), width=32)
    d_out = jax.random.normal(jax.random.key(1), inputs[2].shape)
    ours = with_gradient(attend)(d_out, *inputs)
    for got, expected in zip(ours, with_gradient(concatenated)(d_out, *inputs)):
        np.testing.assert_allclose(got, expected, atol=3e-6)


def test_gradients_in_half_precision():
    inputs = arrays(jax.random.key(0))
    d_out = jax.random.normal(jax.random.key(1), inputs[0].shape)
    half = [x.astype(jnp.bfloat16) for x in (d_out, *inputs)]
    ours = with_gradient(sliced)(*half)
    for got, expected in zip(ours, with_gradient(concatenated)(d_out, *inputs)):
        assert got.dtype == jnp.bfloat16
        error = jnp.abs(got.astype(jnp.float32) - expected).max() / jnp.abs(expected).max()
        assert error < 0.02


def test_a_cpu_never_copies_scores_transposed():
    """Which took half of the time of attention's gradient: XLA multiplies them as they lie."""
    inputs = [jax.ShapeDtypeStruct((1, 1, 1024, 16), jnp.float32)] * 4

    def run(d_out, *inputs):
        return jax.vjp(lambda *x: kernels.attention(*x, 1), *inputs)[1](d_out)

    program = jax.jit(run, backend="cpu").lower(*inputs).compile().as_text()
    scores = re.compile(r"f32\[[\d,]*1024,[\d,]*1024[\d,]*\]\S* (?:copy|transpose)\(")
    assert "1024,1024" in program and not scores.search(program)
