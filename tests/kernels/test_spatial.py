"""The TPU kernels for attention over own and reference keys, interpreted, equal plain XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.kernels import spatial, spatial_plan
from animate_jax.kernels.attention import attention


def relative(ours, truth):
    ours, truth = (np.asarray(x, np.float64) for x in (ours, truth))
    return np.abs(ours - truth).max() / np.abs(truth).max()


def draw(batch, frames, tokens, keys, reference_keys, channels):
    """Inputs (query, key, value, reference) and a cotangent."""

    def normal(i, *shape):
        return jax.random.normal(jax.random.key(i), (*shape, channels))

    query, cotangent = (normal(i, batch, frames, tokens) for i in (0, 1))
    key, value = (normal(i, batch, frames, keys) for i in (2, 3))
    reference = None
    if reference_keys:
        reference = tuple(normal(i, batch, reference_keys) for i in (4, 5))
    return (query, key, value, reference), cotangent


def errors(inputs, cotangent, heads, has_reference=None):
    def ours(*x):
        return spatial.attention(*x, has_reference, heads=heads, interpret=True)

    def plain(query, key, value, reference):
        return attention(query, key, value, heads, reference, has_reference)

    (out, gradient), (truth, true_gradient) = (jax.vjp(f, *inputs) for f in (ours, plain))
    pairs = [(out, truth)]
    pairs += zip(*(jax.tree.leaves(g(cotangent)) for g in (gradient, true_gradient)))
    return [relative(*pair) for pair in pairs]


@pytest.mark.parametrize(
    "frames, tokens, keys, reference_keys, heads, width",
    [
        (1, 128, 128, 0, 2, 40),
        (2, 150, 150, 200, 4, 40),  # tokens and keys padded, two groups of heads
        (2, 256, 300, 128, 2, 160),  # a head wider than the lanes
        (1, 1152, 640, 128, 2, 80),  # many blocks of queries and keys
    ],
)
def test_equals_plain(frames, tokens, keys, reference_keys, heads, width):
    inputs, cotangent = draw(1, frames, tokens, keys, reference_keys, heads * width)
    assert spatial.supports(inputs[0], inputs[1], heads, inputs[3])
    assert max(errors(inputs, cotangent, heads)) < 4e-6


def test_a_small_fast_memory_takes_fewer_queries_at_a_time(monkeypatch):
    """As v4's of 16 MiB does at 64x64: at last the gradient goes through plain XLA."""
    inputs, cotangent = draw(2, 2, 512, 150, 200, 160)
    has_reference = jnp.array([False, True])
    taken = []
    for megabytes in (40, 8, 5, 1):
        monkeypatch.setattr(spatial_plan, "fast_memory", lambda size=megabytes: size * 2**20)
        monkeypatch.setattr(spatial_plan, "reserve", lambda size=megabytes: size * 2**18)
        plan = spatial_plan.plan_of(inputs[0], inputs[1], inputs[3], 4)
        taken.append((plan.queries, plan.fits(backward=True)))
        if spatial.supports(inputs[0], inputs[1], 4, inputs[3]):
            assert max(errors(inputs, cotangent, 4, has_reference)) < 4e-6
    assert taken == [(512, True), (256, True), (256, False), (128, False)]
    assert not spatial.supports(inputs[0], inputs[1], 4, inputs[3])
    assert max(errors((*inputs[:3], None), cotangent, 4)) < 4e-6


def test_rows_without_reference():
    inputs, cotangent = draw(2, 2, 128, 128, 128, 64)
    has_reference = jnp.array([False, True])
    assert max(errors(inputs, cotangent, 2, has_reference)) < 4e-6

    def out(reference):
        return spatial.attention(*inputs[:3], reference, has_reference, heads=2, interpret=True)

    other = jax.tree.map(lambda x: x + 1, inputs[3])
    same = [bool((a == b).all()) for a, b in zip(out(inputs[3]), out(other))]
    assert same == [True, False]


def test_large_scores():
    (query, *others), cotangent = draw(1, 1, 128, 128, 128, 40)
    assert max(errors((query * 100, *others), cotangent, 1)) < 1e-4


def test_what_is_left_to_plain():
    def tokens(count, channels=320, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((1, 24, count, channels), dtype)

    def reference(count):
        return (jax.ShapeDtypeStruct((1, count, 320), jnp.bfloat16),) * 2

    assert spatial.supports(tokens(4096), tokens(4096), 8, reference(4096))
    assert not spatial.supports(tokens(64), tokens(64), 8)
    assert not spatial.supports(tokens(4096), tokens(4), 8)
    assert not spatial.supports(tokens(4096, 36), tokens(4096, 36), 3)
    assert not spatial.supports(tokens(65536), tokens(65536), 8, reference(65536))
    assert not spatial.supports(tokens(256, dtype=jnp.float16), tokens(256), 8)
