"""Convolutions on squares of pixels equal those on pixels, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.kernels import narrow_convolutions as kernels
from animate_jax.kernels.narrow_convolutions import Layer, narrow_convolutions
from tests.parity import relative_l2


def example(channels, size=(2, 16, 24), dtype=jnp.float32):
    draw = np.random.default_rng(0).standard_normal
    layers = [
        Layer(
            jnp.asarray(draw((3, 3, a, b), np.float32) * (9 * a) ** -0.5, dtype),
            jnp.asarray(draw(b, np.float32), dtype),
        )
        for a, b in zip(channels, channels[1:])
    ]
    return jnp.asarray(draw((*size, channels[0]), np.float32), dtype), layers


def versions(x, layers, strides, monkeypatch):
    """The plain version's and the folded one's result and gradient."""
    found = []

    def both(plain, *inputs, tpu):
        found.extend([plain, tpu])
        return plain(*inputs)

    monkeypatch.setattr(kernels, "by_platform", both)
    narrow_convolutions(x, layers, strides)
    results = []
    for function in found:
        out, pull = jax.vjp(function, x, layers)
        results.append(jax.tree.leaves((out, pull(jnp.cos(out)))))
    return results


@pytest.mark.parametrize(
    "channels, strides",
    [
        ((3, 8, 8, 16, 16, 24), (1, 1, 2, 1, 2)),  # as in the pose guider
        ((3, 4, 4, 8, 8, 8, 8, 8), (1, 1, 2, 1, 2, 1, 2)),  # squares are used up
        ((2, 6), (1,)),
        ((2, 6), (2,)),
    ],
)
def test_equal(channels, strides, monkeypatch):
    plain, folded = versions(*example(channels), strides, monkeypatch)
    for a, b in zip(plain, folded, strict=True):
        assert a.shape == b.shape and relative_l2(b, a) < 1e-5


def test_sizes_that_are_no_squares_stay(monkeypatch):
    x, layers = example((3, 4), size=(1, 6, 8))
    chosen = []
    monkeypatch.setattr(kernels, "by_platform", lambda *_, tpu: chosen.append(tpu))
    narrow_convolutions(x, layers, (1,))
    assert chosen == [None]
