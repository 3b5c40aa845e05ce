"""What the paper compares reference attention with: features that are added, or none at all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import relative_l2
from small_model import small_model

from animate_jax.models.animate_anyone import COMPONENTS, AnimateAnyone
from animate_jax.training.parameters import learned_paths, shapes_of

UNETS = "denoising_unet", "reference_unet"


def made(mode):
    config = small_model()
    unet = dataclasses.replace(config.denoising_unet, motion=None, reference=mode)
    model = AnimateAnyone(dataclasses.replace(config, denoising_unet=unet))
    return model, model.init(0, UNETS)


def learnt(params):
    """With random numbers in place of the zeros that a projection of features begins with."""
    random = np.random.default_rng(1)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: (
            random.standard_normal(x.shape, np.float32) / 8
            if "reference_out" in jax.tree_util.keystr(path)
            else x
        ),
        params,
    )


@pytest.fixture(scope="module")
def inputs():
    random = np.random.default_rng(0)
    draw = lambda *shape: random.standard_normal(shape, np.float32)  # noqa: E731
    return draw(2, 2, 8, 8, 4), draw(2, 8, 8, 4), draw(2, 1, 16)


@jax.jit(static_argnums=0)
def predictions(model, params, inputs):
    """With all references, with the second row's by a mask, the same by a missing row, without."""
    latents, picture, tokens = inputs
    features = model.encode_reference(params, picture, tokens)
    second = jax.tree.map(lambda x: x[1:], features)
    bounds = (
        model.bind(params, tokens, features),
        model.bind(params, tokens, features, jnp.array([False, True])),
        model.bind(params, tokens, second),
        model.bind(params, tokens),
    )
    return [model.denoise(params, latents, np.array([5, 9]), bound) for bound in bounds]


def test_added_features(inputs):
    model, params = made("added")
    at_first = predictions(model, params, inputs)
    assert max(relative_l2(x, at_first[-1]) for x in at_first) <= 1e-6  # as ControlNet begins
    every, masked, missing, none = predictions(model, learnt(params), inputs)
    assert relative_l2(masked, missing) <= 1e-6
    assert relative_l2(masked[0], none[0]) <= 1e-6
    assert relative_l2(masked[1], every[1]) <= 1e-6
    assert relative_l2(every[0], none[0]) > 1e-2


def test_added_features_meet_their_own_place(inputs):
    """Unlike attention, which does not care where in the reference something is."""
    model, params = made("added")
    params, (latents, picture, tokens) = learnt(params), inputs

    @jax.jit
    def run(features):
        bound = model.bind(params, tokens, features)
        return model.denoise(params, latents, np.array([5, 9]), bound)

    features = model.encode_reference(params, picture, tokens)
    shuffled = jax.tree.map(lambda x: x[:, ::-1], features)
    assert relative_l2(run(shuffled), run(features)) > 1e-2


def test_without_reference_net(inputs):
    model, params = made("none")
    assert model.encode_reference(params, *inputs[1:]) is None
    one, *others = predictions(model, params, inputs)
    assert all(np.array_equal(one, other) for other in others)
    usual, usual_params = made("attended")
    expected = predictions(usual, usual_params, inputs)[-1]  # the same seed draws the same weights
    assert relative_l2(one, expected) <= 1e-6


@pytest.mark.parametrize("mode, learns", [("attended", True), ("added", True), ("none", False)])
def test_a_reference_net_learns_only_where_it_is_used(mode, learns):
    config = made(mode)[0].config
    shapes = shapes_of(config, COMPONENTS)
    paths = learned_paths(shapes, config, (r"^reference_unet/", r"^denoising_unet/"))
    assert any(path[0] == "reference_unet" for path in paths) is learns
    assert any("reference_out" in path for path in paths) is (mode == "added")
