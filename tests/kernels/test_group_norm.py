"""GroupNorm with SiLU: equal to PyTorch's, and its kernel to the plain sums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from animate_jax.kernels import group_norm as kernels
from tests.parity import relative_l2

EPS = 1e-5


def example(shape, mean=0.0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    x = mean + jax.random.normal(keys[0], shape)
    scale = 1 + jax.random.normal(keys[1], shape[-1:])
    return x.astype(dtype), scale, jax.random.normal(keys[2], shape[-1:]), keys[3]


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_equals_torch_forward_and_backward(silu, mean):
    x, scale, bias, key = example((2, 3, 5, 7, 24), mean)
    cotangent = jax.random.normal(key, x.shape)
    ours, pull = jax.vjp(lambda *a: kernels.group_norm(*a, 6, EPS, silu), x, scale, bias)

    def first(a):  # channels
        a = np.array(a, np.float64).reshape(6, 5, 7, 24)
        return torch.tensor(np.moveaxis(a, -1, 1))

    leaves = [first(x), *(torch.tensor(np.array(w, np.float64)) for w in (scale, bias))]
    for leaf in leaves:
        leaf.requires_grad_()
    theirs = torch.nn.functional.group_norm(leaves[0], 6, *leaves[1:], EPS)
    theirs = torch.nn.functional.silu(theirs) if silu else theirs
    theirs.backward(first(cotangent))

    def last(a):
        return np.moveaxis(a.detach().numpy(), 1, -1).reshape(x.shape)

    # Where float32 holds 300 + x, x itself is known to 1.5e-5.
    bound = 1e-4 if mean else 2e-6
    assert relative_l2(ours, last(theirs)) < bound
    dx, d_scale, d_bias = pull(cotangent)
    assert relative_l2(dx, last(leaves[0].grad)) < bound
    assert relative_l2(d_scale, leaves[1].grad.numpy()) < bound
    assert relative_l2(d_bias, leaves[2].grad.numpy()) < bound


# Channels beside and between whole tiles, pixels in more than one block, few pictures.
@pytest.mark.parametrize("shape", [(8, 8, 8, 40), (2, 4, 4, 8, 320), (4, 32, 32, 384)])
def test_kernel_equals_plain(shape):
    x, scale, bias, key = example(shape)
    assert kernels.supports(x)
    cotangent = jax.random.normal(key, shape)
    interpreted = functools.partial(kernels.kernel_sums, interpret=True)

    def both(sums):
        def norm(*args):
            return kernels._group_norm(*args, 8, EPS, True, sums)

        out, pull = jax.vjp(norm, x, scale, bias)
        return out, *pull(cotangent)

    for ours, plain in zip(both(interpreted), both(kernels.plain_sums), strict=True):
        assert relative_l2(ours, plain) < 1e-6


def test_bfloat16_statistics_are_float32():
    x, scale, bias, _ = example((1, 32, 32, 64), mean=2.0, dtype=jnp.bfloat16)
    exact = kernels.group_norm(x.astype(jnp.float32), scale, bias, 8, EPS, True)
    ours = kernels.group_norm(x, scale, bias, 8, EPS, True)
    assert ours.dtype == jnp.bfloat16
    assert relative_l2(ours.astype(jnp.float32), exact) < 3e-3


def test_programs_for_a_tpu_have_the_kernel():
    def loss(x, scale, bias):
        return kernels.group_norm(x, scale, bias, 8, EPS, True).astype(jnp.float32).sum()

    x, scale, bias, _ = example((8, 8, 8, 64), dtype=jnp.bfloat16)
    for program, count in ((loss, 1), (jax.grad(loss), 2)):
        trace = jax.jit(program).trace(x, scale, bias)
        calls = [
            trace.lower(lowering_platforms=(platform,)).as_text().count("tpu_custom_call")
            for platform in ("tpu", "cpu")
        ]
        assert calls == [count, 0]
