"""The fused feed-forward equals the plain one, and the plain one PyTorch's formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from animate_jax.kernels import feed_forward as kernels
from animate_jax.kernels.geglu import Weights, gelu_and_slope
from tests.parity import relative_l2

EPS = 1e-5


def example(shape, dtype=jnp.float32, hidden=None):
    channels = shape[-1]
    hidden = hidden or 4 * channels
    keys = jax.random.split(jax.random.key(0), 7)
    shapes = (channels,), (channels,), (channels, 2 * hidden), (2 * hidden,), (hidden, channels)
    arrays = [jax.random.normal(k, s) for k, s in zip(keys, (*shapes, (channels,)))]
    arrays[2] *= channels**-0.5
    arrays[4] *= hidden**-0.5
    x = 3 + 2 * jax.random.normal(keys[6], shape)
    weights = Weights(*arrays[:2], *(x.astype(dtype) for x in arrays[2:]))
    return x.astype(dtype), weights


def fused(x, weights):
    return kernels._fused(x, weights, EPS, interpret=True)


plain = functools.partial(kernels._plain, eps=EPS)


# Blocks that are full, that end early, and more than one piece of the hidden channels.
@pytest.mark.parametrize("shape", [(2, 128, 32), (1, 3, 100, 320), (1, 1100, 160)])
def test_equals_plain_forward_and_backward(shape):
    x, weights = example(shape)
    assert kernels.supports(x, weights)
    assert relative_l2(fused(x, weights), plain(x, weights)) < 1e-6
    cotangent = jax.random.normal(jax.random.key(1), shape)
    ours, theirs = (jax.vjp(f, x, weights)[1](cotangent) for f in (fused, plain))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert relative_l2(a, b) < 1e-6


def test_bfloat16_is_as_near_to_float32_as_plain():
    x, weights = example((1, 256, 320), jnp.bfloat16)
    exact = plain(*jax.tree.map(lambda a: a.astype(jnp.float32), (x, weights)))
    mine, its = (relative_l2(f(x, weights), exact) for f in (fused, plain))
    assert mine < 1.1 * its < 1e-2


def test_equals_torch():
    x, weights = example((2, 50, 40))
    scale, shift, w_in, b_in, w_out, b_out = (torch.tensor(np.array(w)) for w in weights)
    y = torch.tensor(np.array(x))
    tokens = torch.nn.functional.layer_norm(y, (40,), scale, shift, EPS)
    value, gate = (tokens @ w_in + b_in).chunk(2, -1)
    theirs = y + (value * torch.nn.functional.gelu(gate)) @ w_out + b_out
    assert relative_l2(plain(x, weights), theirs.numpy()) < 1e-6


def test_gelu_is_exact():
    x = jnp.linspace(-10, 10, 20001)
    exact = functools.partial(jax.nn.gelu, approximate=False)
    slope = jax.vmap(jax.grad(exact))(x)
    for ours, theirs in zip(gelu_and_slope(x), (exact(x), slope), strict=True):
        assert jnp.abs(ours - theirs).max() < 1e-6


def test_shapes_that_are_left_to_xla():
    assert not kernels.supports(*example((1, 64, 40)))  # too few tokens
    assert not kernels.supports(*example((1, 256, 36)))
    assert not kernels.supports(*example((1, 256, 40), hidden=100))
