"""Where in the picture something is, for networks that start from random weights."""

import dataclasses

import jax
import numpy as np
from small_model import small_model

from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.unet import UNet, grid_positions


def test_every_place_has_its_own():
    grid = grid_positions(16, 24, 80)
    assert grid.shape == (16, 24, 80) and grid.dtype == np.float32
    places = grid.reshape(-1, 80).astype(np.float64)
    distance = ((places[:, None] - places) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 1.0  # of vectors of squared length 40
    # A place is the same in pictures of any size; rows and columns do not mix.
    np.testing.assert_array_equal(grid_positions(20, 30, 80)[:16, :24], grid)
    np.testing.assert_array_equal(grid[3, :, :40], np.broadcast_to(grid[3, 0, :40], (24, 40)))
    np.testing.assert_array_equal(grid[:, 5, 40:], np.broadcast_to(grid[0, 5, 40:], (16, 40)))


def test_they_are_added_to_the_first_features():
    config = small_model().reference_unet
    plain = UNet(config)
    placed = UNet(dataclasses.replace(config, positions=True))
    random = np.random.default_rng(0)
    latents = random.standard_normal((1, 1, 4, 6, 4)).astype(np.float32)
    tokens = random.standard_normal((1, 2, config.cross_attention_dim)).astype(np.float32)
    timesteps = np.zeros(1, np.int32)

    def features(unet, params, pose):
        run = jax.jit(
            lambda p: unet.apply(p, latents, timesteps, tokens, pose, method="bind_and_call")
        )
        return run(params)[1]

    params = {"params": AnimateAnyone(small_model()).init(0, ("reference_unet",))["reference_unet"]}
    positions = grid_positions(4, 6, config.block_out_channels[0])[None, None]
    expected, found = features(plain, params, positions), features(placed, params, None)
    without = features(plain, params, None)
    for path, tokens_ in found.items():
        np.testing.assert_allclose(tokens_, expected[path], rtol=0, atol=1e-6, err_msg=path)
        assert np.abs(tokens_ - without[path]).max() > 0.1
