"""The fused temporal attention block equals the plain one, and is chosen where it can be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from animate_jax.config import MotionConfig
from animate_jax.kernels import parts, temporal, temporal_block_forward, temporal_block_gradient
from animate_jax.kernels import temporal_block as kernels
from animate_jax.kernels.temporal_block import Weights, temporal_block
from animate_jax.models.motion import TemporalTransformerBlock
from tests.parity import relative_l2

EPS = 1e-5


@pytest.fixture(autouse=True)
def short_programs(monkeypatch):
    """Loops where a TPU's program has them unrolled, and the other way round for wide blocks."""
    monkeypatch.setattr(temporal, "SCORE_REGISTERS", 8)
    monkeypatch.setattr(temporal_block_forward, "FRAMES_AT_ONCE", 2)
    monkeypatch.setattr(parts, "TILES_AT_ONCE", 1)


def example(shape, dtype=jnp.float32):
    """Tokens (B, F, N, C) far from zero mean, and weights."""
    frames, channels = shape[1], shape[3]
    shapes = (channels,), (channels,), (frames, channels), *[(channels, channels)] * 4, (channels,)
    draw = np.random.default_rng(0).standard_normal
    *arrays, x = (draw(s, np.float32) for s in (*shapes, shape))
    layers = [jnp.asarray(a * channels ** (-0.5 * (a.ndim - 1)), dtype) for a in arrays[3:]]
    return jnp.asarray(3 + 2 * x, dtype), Weights(*map(jnp.asarray, arrays[:3]), *layers)


def fused(x, weights, heads):
    return kernels._fused(x, weights, heads, EPS, interpret=True)


plain = jax.jit(functools.partial(kernels._plain, eps=EPS), static_argnames="heads")


@pytest.mark.parametrize(
    "shape, heads",
    [
        ((1, 24, 16, 160), 4),  # heads across tiles of channels, the last tile not full
        ((1, 4, 20, 320), 4),  # tiles in a loop, the last block of pixels not full
        ((1, 3, 16, 256), 2),  # attention in two parts
    ],
)
def test_equals_plain(shape, heads):
    x, weights = example(shape)
    assert kernels.supports(x, weights, heads)
    assert relative_l2(fused(x, weights, heads), plain(x, weights, heads=heads)) < 1e-6


SMALL = 2, 5, 40, 64  # less than a tile, an odd number of frames, a block that ends early


@pytest.mark.parametrize(
    "shape, heads",
    [
        (SMALL, 8),
        ((1, 4, 20, 160), 4),  # heads across tiles of channels, blocks that are not full
        ((2, 3, 8, 256), 2),  # attention in two parts, sums over two clips
    ],
)
def test_gradient_equals_plain(shape, heads):
    x, weights = example(shape)
    assert temporal_block_gradient.supports(x, heads)
    cotangent = jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def both(f):
        out, gradient = jax.vjp(lambda x, weights: f(x, weights, heads=heads), x, weights)
        return out, gradient(cotangent)

    ours, theirs = (jax.tree.leaves(both(f)) for f in (fused, plain))
    assert max(relative_l2(a, b) for a, b in zip(ours, theirs, strict=True)) < 3e-6


def test_pixels_are_by_themselves():
    """What stands in the others, or beyond the last, does not matter."""
    x, weights = example(SMALL)
    out = fused(x, weights, 8)
    assert np.isfinite(out).all()
    spoilt = fused(x.at[:, :, 33].set(jnp.nan), weights, 8)
    others = np.arange(40) != 33
    assert relative_l2(spoilt[:, :, others], out[:, :, others]) < 1e-6


def test_bfloat16_is_as_near_to_float32_as_plain():
    x, weights = example((1, 24, 24, 160), jnp.bfloat16)
    exact = plain(*jax.tree.map(lambda a: a.astype(jnp.float32), (x, weights)), heads=4)
    mine, its = (relative_l2(f(x, weights, heads=4), exact) for f in (fused, plain))
    assert mine < 1.1 * its < 1e-2


def test_gradient_in_bfloat16_is_as_near_to_float32_as_plain():
    x, weights = example((1, 24, 24, 160), jnp.bfloat16)
    cotangent = jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def gradient(f, x, weights):
        pull = jax.vjp(lambda x, weights: f(x, weights, heads=4), x, weights)[1]
        return jax.tree.leaves(pull(cotangent.astype(x.dtype)))

    exact = gradient(plain, *jax.tree.map(lambda a: a.astype(jnp.float32), (x, weights)))
    for mine, its, true in zip(
        gradient(fused, x, weights), gradient(plain, x, weights), exact, strict=True
    ):
        assert relative_l2(mine, true) < 1.2 * relative_l2(its, true) + 1e-3


def kernels_in(shape, heads=4, **mesh):
    """Names of kernels in the program for tokens of this shape, on a mesh of these axes."""
    x, weights = example(shape)
    mesh = AbstractMesh(tuple(mesh.values()), tuple(mesh), axis_types=(AxisType.Auto,) * len(mesh))
    with jax.sharding.use_abstract_mesh(mesh):
        program = str(jax.make_jaxpr(lambda x, w: temporal_block(x, w, heads))(x, weights))
    return {name for name in ("temporal_block", "temporal_attention") if f"={name}" in program}


def test_which_kernel_runs_where():
    small = 4, 3, 16, 32
    assert "temporal_block" in kernels_in(small, data=1)
    assert "temporal_block" in kernels_in(small, data=2, fsdp=2, tensor=1)
    assert kernels_in(small, data=2, tensor=2) == {"temporal_attention"}
    assert kernels_in((4, 33, 16, 32), data=1) == {"temporal_attention"}
    assert kernels_in((4, 3, 9, 32), data=1) == set()


def test_paths_of_the_weights():
    """They are those of files that exist, though a kernel computes the layers."""
    block = TemporalTransformerBlock(MotionConfig(heads=2, attentions=1, max_frames=7), jnp.float32)
    x = jax.ShapeDtypeStruct((1, 5, 4, 8), jnp.float32)
    tree = jax.eval_shape(block.init, jax.random.key(0), x)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    shapes = {jax.tree_util.keystr(path, simple=True, separator="/"): a.shape for path, a in leaves}
    assert shapes == {
        "attention_blocks_0/pos_encoder/pe": (1, 7, 8),
        "attention_blocks_0/to_q/kernel": (8, 8),
        "attention_blocks_0/to_k/kernel": (8, 8),
        "attention_blocks_0/to_v/kernel": (8, 8),
        "attention_blocks_0/to_out_0/kernel": (8, 8),
        "attention_blocks_0/to_out_0/bias": (8,),
        "norms_0/scale": (8,),
        "norms_0/bias": (8,),
        "ff/net_0/proj/kernel": (8, 64),
        "ff/net_0/proj/bias": (64,),
        "ff/net_2/kernel": (32, 8),
        "ff/net_2/bias": (8,),
        "ff_norm/scale": (8,),
        "ff_norm/bias": (8,),
    }
    with pytest.raises(ValueError, match="8 frames"):
        jax.eval_shape(block.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 4, 8), "f4"))
