"""The kernels around spatial attention, and the block of all three, equal their plain versions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from animate_jax.kernels import projections, spatial_block
from animate_jax.kernels.spatial_block import Rows, Weights
from tests.parity import relative_l2

EPS = 1e-5


def example(shape, referenced=0, constant=False, dtype=jnp.float32):
    """Tokens (B, F, N, C) far from zero mean, of which the last rows have a reference; weights."""
    batch, _, tokens, channels = shape
    draw = np.random.default_rng(0).standard_normal

    def normal(*shape, scale=1.0):
        return jnp.asarray(scale * draw(shape, np.float32), dtype)

    norm = [normal(channels).astype(jnp.float32) for _ in range(2)]
    square = [normal(channels, channels, scale=channels**-0.5) for _ in range(4)]
    reference = None
    if referenced:
        reference = tuple(normal(referenced, tokens + 8, channels) for _ in range(2))
    x = 3 + 2 * normal(*shape)
    constant = normal(batch, 1, channels) if constant else None
    return Rows(x, reference, None, constant), Weights(*norm, *square, normal(channels))


def fused(rows, weights, heads):
    return spatial_block._fused(rows, weights, heads, EPS, interpret=True)


plain = jax.jit(functools.partial(spatial_block._plain, eps=EPS), static_argnames="heads")


def largest_error(ours, theirs):
    return max(
        relative_l2(a, b)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )


def both(function, *inputs):
    """Result and gradient."""

    @jax.jit
    def run(*inputs):
        out, gradient = jax.vjp(function, *inputs)
        wave = [jnp.sin(jnp.arange(y.size, dtype=y.dtype)) for y in jax.tree.leaves(out)]
        like = zip(wave, jax.tree.leaves(out))
        cotangent = jax.tree.unflatten(
            jax.tree.structure(out), [w.reshape(y.shape) for w, y in like]
        )
        return out, gradient(cotangent)

    return run(*inputs)


# Channels that fill the lanes or not, blocks of tokens that are full or end early.
SHAPES = [(1, 2, 128, 128), (2, 1, 300, 40), (1, 1, 520, 160)]


@pytest.mark.parametrize("shape", SHAPES)
def test_projections_equal_plain(shape):
    rows, weights = example(shape)
    weights = projections.Weights(*weights[:5])
    assert projections.supports(rows.x)
    ours = both(lambda x, w: projections.project(x, w, EPS, True), rows.x, weights)
    theirs = both(lambda x, w: projections.project_plain(x, w, EPS), rows.x, weights)
    assert largest_error(ours[0], theirs[0]) < 1e-6
    assert largest_error(ours[1], theirs[1]) < 1e-5
    assert not np.any(ours[0][0][..., shape[2] :])


@pytest.mark.parametrize("shape", SHAPES)
def test_output_equals_plain(shape):
    rows, weights = example(shape, constant=True)
    attended = projections.project_plain(rows.x, projections.Weights(*weights[:5]), EPS)[0]
    inputs = rows.x, attended, weights.w_out, rows.constant[:, 0]
    ours = both(lambda *x: projections.add_output(*x, True), *inputs)
    assert largest_error(ours, both(projections.add_output_plain, *inputs)) < 1e-6


@pytest.mark.parametrize(
    "shape, referenced, constant",
    [
        ((1, 2, 128, 64), 0, True),
        ((2, 1, 150, 64), 2, False),
        ((3, 1, 128, 64), 1, True),  # as under guidance: rows without a reference come first
    ],
)
def test_block_equals_plain(shape, referenced, constant):
    rows, weights = example(shape, referenced, constant)
    assert spatial_block.supports(rows, weights, 2)
    ours, theirs = (both(functools.partial(f, heads=2), rows, weights) for f in (fused, plain))
    assert largest_error(ours, theirs) < 1e-5


def test_rows_whose_reference_is_hidden():
    rows, weights = example((3, 1, 128, 64), 2)
    hidden = rows._replace(has_reference=jnp.array([False, True]))
    out = fused(hidden, weights, 2)
    assert relative_l2(out, plain(hidden, weights, heads=2)) < 1e-6
    other = jax.tree.map(lambda y: y.at[0].add(1), rows.reference)
    assert np.array_equal(out, fused(hidden._replace(reference=other), weights, 2))


def test_bfloat16_is_as_near_to_float32_as_plain():
    inputs = example((1, 1, 256, 160), 1, True, jnp.bfloat16)
    exact = plain(*jax.tree.map(lambda a: a.astype(jnp.float32), inputs), heads=4)
    mine, its = (relative_l2(f(*inputs, heads=4), exact) for f in (fused, plain))
    assert mine < 1.1 * its < 1e-2


def kernels_in(shape, referenced=0, **mesh):
    """Names of kernels in the program for tokens of this shape, on a mesh of these axes."""
    rows, weights = example(shape, referenced)
    mesh = AbstractMesh(tuple(mesh.values()), tuple(mesh), axis_types=(AxisType.Auto,) * len(mesh))
    with jax.sharding.use_abstract_mesh(mesh):
        program = str(
            jax.make_jaxpr(lambda r, w: spatial_block.spatial_block(r, w, 2))(rows, weights)
        )
    names = "project", "attention_forward", "add_output"
    return {name for name in names if f"=spatial_{name}" in program}


def test_which_kernel_runs_where():
    small, all_three = (4, 1, 128, 64), {"project", "attention_forward", "add_output"}
    assert kernels_in(small, data=1) == all_three
    assert kernels_in(small, 4, data=2, fsdp=2, tensor=1) == all_three
    assert kernels_in(small, 2, data=1) == all_three
    assert kernels_in(small, 2, data=2) == {"attention_forward"}
    assert kernels_in(small, data=2, tensor=2) == {"attention_forward"}
    assert kernels_in((4, 1, 64, 64), data=1) == set()
