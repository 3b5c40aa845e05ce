"""The kernels at a transformer's ends equal their plain versions, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.kernels import picture_tokens as kernels
from animate_jax.kernels.picture_tokens import Layer, Norm
from tests.parity import relative_l2

GROUPS, EPS = 8, 1e-6
# Channels that fill the lanes or not; blocks of one picture and of several; two rows of clips.
SHAPES = [(1, 8, 4, 4, 32), (2, 12, 8, 6, 160), (1, 16, 16, 32, 128), (4, 1, 4, 8, 48)]


def example(shape, dtype=jnp.float32):
    """Pictures (B, F, h, w, C) far from zero mean, norm and layer."""
    channels = shape[-1]
    draw = np.random.default_rng(0).standard_normal
    x, scale, bias, shift = (draw(s, np.float32) for s in (shape, *[(channels,)] * 3))
    kernel = draw((channels, channels), np.float32) * channels**-0.5
    layer = Layer(*(jnp.asarray(w, dtype) for w in (kernel, shift)))
    return jnp.asarray(3 + 2 * x, dtype), Norm(*map(jnp.asarray, (scale, bias))), layer


def ends(x, norm, layer, tokens_of, pictures_of):
    """Through both ends, with something between that keeps them apart."""
    tokens = tokens_of(x, (norm, layer))
    return tokens, pictures_of((jnp.sin(tokens), x), layer)


fused = functools.partial(
    ends,
    tokens_of=lambda x, w: kernels._to_tokens(x, w, GROUPS, EPS, True),
    pictures_of=lambda rows, layer: kernels._to_pictures(rows, layer, True),
)
plain = functools.partial(
    ends,
    tokens_of=functools.partial(kernels._to_tokens_plain, groups=GROUPS, eps=EPS),
    pictures_of=kernels._to_pictures_plain,
)


def largest_error(ours, theirs):
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(relative_l2(a, b) for a, b in pairs)


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_plain_forward_and_backward(shape):
    inputs = example(shape)
    assert kernels.supports(inputs[0])
    (ours, pull), (theirs, plain_pull) = (jax.vjp(f, *inputs) for f in (fused, plain))
    assert largest_error(ours, theirs) < 1e-6
    assert ours[0].shape == (*shape[:2], shape[2] * shape[3], shape[4])
    assert largest_error(pull(ours), plain_pull(ours)) < 1e-6


def test_bfloat16_is_as_near_to_float32_as_plain():
    inputs = example((1, 8, 16, 16, 64), jnp.bfloat16)
    exact = plain(*jax.tree.map(lambda a: a.astype(jnp.float32), inputs))
    for mine, its, true in zip(fused(*inputs), plain(*inputs), exact, strict=True):
        assert relative_l2(mine, true) < 1.1 * relative_l2(its, true) < 2e-2


def test_shapes_that_are_left_to_xla():
    assert not kernels.supports(example((1, 7, 4, 4, 32))[0])
    assert not kernels.supports(example((1, 12, 4, 4, 32))[0])
    assert not kernels.supports(example((1, 8, 3, 5, 32))[0])
    assert not kernels.supports(example((1, 8, 4, 4, 36))[0])


def test_a_program_for_a_tpu_has_the_kernels():
    x, norm, layer = example((1, 8, 4, 4, 32))

    def both(x, norm, layer):
        tokens = kernels.to_tokens(x, norm, layer, GROUPS, EPS)
        return kernels.to_pictures(tokens, x, layer)

    program = str(jax.make_jaxpr(both)(x, norm, layer))
    assert "picture_to_tokens" in program and "picture_to_pictures" in program
    assert (
        largest_error(
            both(x, norm, layer),
            kernels._to_pictures_plain(
                (kernels._to_tokens_plain(x, (norm, layer), GROUPS, EPS), x), layer
            ),
        )
        < 1e-6
    )
