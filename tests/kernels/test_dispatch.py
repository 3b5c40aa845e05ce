"""Kernels are chosen by the platform that a program is compiled for, and spread over its mesh."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from animate_jax.kernels import attention as kernels
from animate_jax.kernels.dispatch import by_platform, keep_rows, over_mesh
from animate_jax.models.layers import Upsample


def lowered(platform, f, *shapes):
    """The program of `f` for a platform that need not be there."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    return jax.jit(f).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("f", [kernels.attention, kernels.temporal_attention])
def test_programs_for_a_tpu_have_the_kernel(f):
    def loss(x):
        return f(x, x, x, 4).astype(jnp.float32).sum()

    for program, count in ((loss, 1), (jax.value_and_grad(loss), 2)):
        texts = {p: lowered(p, program, (1, 2, 128, 160)) for p in ("tpu", "cpu", "cuda")}
        calls = {platform: text.count("tpu_custom_call") for platform, text in texts.items()}
        assert calls == {"tpu": count, "cpu": 0, "cuda": 0}


def test_values_wider_than_keys_have_the_kernel_too():
    def f(x, reference, mask):
        wide = [jnp.concatenate([x, x], -1) for x in (x, reference)]
        return kernels.attention(x, x, wide[0], 4, (reference, wide[1]), mask[:, 0, 0] > 0)

    shapes = (1, 2, 128, 160), (1, 150, 160), (1, 1, 1)
    texts = {p: lowered(p, f, *shapes) for p in ("tpu", "cpu")}
    assert {p: text.count("tpu_custom_call") for p, text in texts.items()} == {"tpu": 1, "cpu": 0}


def test_shapes_that_no_kernel_takes_are_plain():
    def f(x):
        return kernels.attention(x, x, x, 4) + kernels.temporal_attention(x, x, x, 4)

    assert "tpu_custom_call" not in lowered("tpu", f, (1, 2, 9, 160))


def test_by_platform_runs_the_default_on_a_cpu():
    def tpu(x):
        return x + 2

    out = jax.jit(lambda x: by_platform(lambda x: x + 1, x, tpu=tpu))(jnp.zeros(()))
    assert out == 1


def local_shapes(heads, rows, **sizes):
    """What each device is handed: (rows, tokens, channels) of an array, rows of a mask, heads."""
    seen = []

    def kernel(x, mask, nothing, *, heads):
        seen.append((x.shape, mask.shape, nothing, heads))
        return x

    mesh = AbstractMesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )
    x, mask = jnp.zeros((rows, 16, 8 * heads)), jnp.zeros(rows, bool)
    with jax.sharding.use_abstract_mesh(mesh):
        out = jax.eval_shape(lambda x, mask: over_mesh(kernel, heads)(x, mask, None), x, mask)
    assert out.shape == x.shape
    return seen[-1]


def test_rows_and_heads_over_the_mesh():
    assert local_shapes(8, 4, data=1, fsdp=1, tensor=1) == ((4, 16, 64), (4,), None, 8)
    assert local_shapes(8, 4, data=2, fsdp=2, tensor=2) == ((1, 16, 32), (1,), None, 4)
    assert local_shapes(8, 6, data=2, fsdp=2) == ((3, 16, 64), (3,), None, 8)
    assert local_shapes(3, 4, data=4, tensor=2) == ((1, 16, 24), (1,), None, 3)


def test_without_a_mesh_the_call_is_direct():
    out = over_mesh(lambda x, *, heads: x * heads, 3)(np.float32(2))
    assert out == 6


def test_rows_stay_on_their_devices():
    """What is compiled is told so, by axes that divide the rows; without a mesh there is nothing
    to tell."""
    x = jnp.zeros((4, 3, 2, 2, 8))
    upsample = Upsample(8, jnp.float32)
    params = upsample.init(jax.random.key(0), x)
    lower = jax.jit(upsample.apply).lower
    assert "sharding_constraint" not in lower(params, x).as_text()

    def told(rows, **axes):
        mesh = AbstractMesh(
            tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes)
        )
        with jax.sharding.use_abstract_mesh(mesh):
            text = jax.jit(lambda x: keep_rows(x)).lower(jnp.zeros((rows, 2))).as_text()
        return [line for line in text.splitlines() if "sharding_constraint" in line]

    (line,) = told(8, data=2, fsdp=4)
    assert '{"data", "fsdp"}, {?}' in line
    (line,) = told(6, data=2, fsdp=4)
    assert '{"data"}, {?}' in line
    assert told(5, data=2, fsdp=4) == told(8, data=1, fsdp=1) == []


ON_EIGHT_DEVICES = """
import functools, jax
from animate_jax.kernels import feed_forward
from animate_jax.kernels.dispatch import rows_over_mesh
from animate_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from tests.kernels.test_feed_forward import example, plain
from tests.parity import relative_l2

kernel = functools.partial(feed_forward._fused, eps=1e-5, interpret=True)
x, weights = example((4, 40, 32))
cotangent = jax.random.normal(jax.random.key(1), x.shape)
y, back = jax.vjp(plain, x, weights)
expected = jax.device_get((y, back(cotangent)))
mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
with jax.set_mesh(mesh):
    rows = jax.device_put((x, cotangent), batch_sharding(mesh))
    weights = jax.device_put(weights, replicated(mesh))

    @jax.jit
    def both(x, cotangent, weights):
        y, back = jax.vjp(rows_over_mesh(kernel), x, weights)
        return y, back(cotangent)

    found = both(*rows, weights)
assert len(found[0].sharding.device_set) == 8
pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
print(max(relative_l2(jax.device_get(a), b) for a, b in pairs))
"""


def test_a_kernel_over_a_mesh_has_the_gradients_of_the_whole():
    """Of the rows of every device, and of weights that all have: summed once over the rows."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", ON_EIGHT_DEVICES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 1e-6
