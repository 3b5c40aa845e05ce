"""Where in the picture something is, for networks that start from random weights."""

import dataclasses
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from small_model import small_model

from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.attention import TransformerBlock, grid_positions


def test_every_place_has_its_own():
    grid = grid_positions(16, 24, 80)
    assert grid.shape == (16 * 24, 80) and grid.dtype == np.float32
    places = grid.astype(np.float64)
    distance = ((places[:, None] - places) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 1.0  # of vectors of squared length 40
    # A place is the same in pictures of any size; rows and columns do not mix.
    larger = grid_positions(20, 30, 80).reshape(20, 30, 80)
    grid = grid.reshape(16, 24, 20, 4)
    np.testing.assert_array_equal(larger[:16, :24], grid.reshape(16, 24, 80))
    assert (grid[..., :2] == grid[:, :1, :, :2]).all() and (
        grid[..., 2:] == grid[:1, ..., 2:]
    ).all()


def test_attention_begins_where_its_query_is():
    """Of the kernels' beginning, three times the grid, alone; uniform would be 1 / 144."""
    places = 3 * jnp.asarray(grid_positions(12, 12, 64))
    weights = jax.nn.softmax(places @ places.T / np.sqrt(64))
    assert np.diagonal(weights).min() > 0.5


@pytest.fixture(scope="module")
def block():
    """A block with positions, its parameters by path, and what it is called with."""
    block = TransformerBlock(32, 4, jnp.float32, positions=True)
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (2, 3, 24, 32))
    reference = jax.random.normal(keys[1], (2, 24, 32))
    tokens = jax.random.normal(keys[2], (2, 1, 16))
    grid = grid_positions(4, 6, 32)

    def run(block, tokens, reference, x, grid):
        return block(x, block.bind(tokens, reference), grid)[0]

    init = block.init(keys[3], tokens, reference, x, grid, method=run)["params"]
    params = flatten_dict(init, sep="/")
    names = [name for name in params if "/position_" in name]
    assert names == ["attn1/position_q/kernel", "attn1/position_k/kernel"]

    def out(changed=MappingProxyType({}), grid=grid, x=x, block=block):
        tree = {"params": unflatten_dict(params | dict(changed), sep="/")}
        return np.asarray(block.apply(tree, tokens, reference, x, grid, method=run))

    return out, params, x, reference, grid


def test_queries_and_all_keys_gain_their_places(block):
    """Against attention over joined keys, written out."""
    out, params, x, reference, grid = block
    silent = {name: 0 * value for name, value in params.items() if name.startswith(("attn2", "ff"))}
    kernel = {n: params[f"attn1/{n}/kernel"] for n in ("to_q", "to_k", "to_v", "to_out_0")}
    where = {n: grid @ params[f"attn1/position_{n}/kernel"] for n in "qk"}
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    both = jnp.concatenate([normed, jnp.broadcast_to(reference[:, None], x.shape)], 2)
    query = normed @ kernel["to_q"] + where["q"]
    key = both @ kernel["to_k"] + jnp.concatenate([where["k"]] * 2)
    query, key, value = (y.reshape(*y.shape[:3], 4, 8) for y in (query, key, both @ kernel["to_v"]))
    scores = jnp.einsum("bfnhd,bfmhd->bfhnm", query, key) / np.sqrt(8)
    expected = jnp.einsum("bfhnm,bfmhd->bfnhd", jax.nn.softmax(scores), value)
    expected = x + expected.reshape(x.shape) @ kernel["to_out_0"]
    np.testing.assert_allclose(out(silent), expected, rtol=0, atol=2e-5)


def test_without_them_order_does_not_matter(block):
    """Tokens in another order come out in that order; with positions they do not."""
    out, params, x, _, grid = block
    silent = {name: 0 * params[name] for name in params if "/position_" in name}
    plain = TransformerBlock(32, 4, jnp.float32)
    np.testing.assert_allclose(out(silent), out(grid=None, block=plain), rtol=0, atol=1e-5)
    turned = out(silent, x=x[:, :, ::-1])[:, :, ::-1]
    np.testing.assert_allclose(turned, out(silent), rtol=0, atol=1e-5)
    assert np.abs(out(x=x[:, :, ::-1])[:, :, ::-1] - out()).max() > 0.1


def test_both_networks_start_near(block):
    config = small_model()
    unets = {
        name: dataclasses.replace(getattr(config, name), positions=True)
        for name in ("reference_unet", "denoising_unet")
    }
    params = AnimateAnyone(dataclasses.replace(config, **unets)).init(0, tuple(unets))
    kernels = {n: x for n, x in flatten_dict(params, sep="/").items() if "/position_" in n}
    plain = flatten_dict(AnimateAnyone(config).init(0, tuple(unets)), sep="/")
    blocks = [name for name in plain if name.endswith("attn1/to_q/kernel")]
    assert len(kernels) == 2 * len(blocks) > 12
    for name, kernel in kernels.items():
        np.testing.assert_array_equal(kernel, 3 * np.eye(len(kernel)), err_msg=name)
