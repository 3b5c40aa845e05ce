"""The autoencoder's loss term by term, quiet latents, and what is random about the denoiser's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_model

from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.parallel.mesh import make_mesh
from animate_jax.training import objective
from animate_jax.training.objective import (
    DenoisingLoss,
    ReconstructionLoss,
    draw_randomness,
    encode_batch,
    reconstruction_loss,
)

PICTURES = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return AnimateAnyone(small_model())


@pytest.fixture(scope="module")
def params(model):
    return model.init(0, ("autoencoder",))


@pytest.fixture(scope="module")
def outputs(model, params):
    keys = jax.random.split(jax.random.key(1), 2)
    mean, log_variance, latents = jax.jit(model.encode)(params, PICTURES, keys)
    return jax.device_get((mean, log_variance, latents, jax.jit(model.decode)(params, latents)))


def losses(model, params, **weights):
    options = ReconstructionLoss(**{"gradient_weight": 0.0, "kl_weight": 0.0, **weights})
    keys = jax.random.split(jax.random.key(1), 2)
    compute = jax.jit(lambda p: reconstruction_loss(model, p, PICTURES, keys, options))
    return np.asarray(compute(params))


def test_every_term_counts_with_its_weight(model, params, outputs):
    mean, log_variance, latents, decoded = outputs
    error = decoded - PICTURES
    axes = (1, 2, 3)
    expected = {
        "squared_weight": (error**2).mean(axes),
        "gradient_weight": sum(np.abs(np.diff(error, axis=a)).mean(axes) for a in (1, 2)),
        "kl_weight": 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).mean(axes),
    }
    absolute = np.abs(error).mean(axes)
    np.testing.assert_allclose(losses(model, params), absolute, rtol=1e-5)
    for name, term in expected.items():
        got = losses(model, params, **{name: 3.0}) - absolute
        np.testing.assert_allclose(got, 3 * term, rtol=1e-4, err_msg=name)

    def halved(x):
        return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4

    error = jax.jit(model.decode)(params, halved(latents)) - halved(PICTURES)
    term = np.abs(error).mean(axes) + 2 * (error**2).mean(axes)
    got = losses(model, params, squared_weight=2.0, scale_weight=3.0)
    np.testing.assert_allclose(got - losses(model, params, squared_weight=2.0), 3 * term, rtol=1e-4)


def test_noise_of_latents_is_in_proportion(model, params, outputs):
    """What is decoded varies by the noise; its strength differs between pictures and has the mean
    square asked for, in standard deviations of the picture's latents."""
    mean, _, latents, _ = outputs
    noise = jax.jit(objective._noise_like)
    many = [noise(mean, jax.random.split(jax.random.key(n), 2)) for n in range(400)]
    ratio = np.std(many, axis=(2, 3, 4)) / mean.std((1, 2, 3))
    assert abs(np.mean(ratio**2) - 1) < 0.2 and ratio.min() < 0.05 and ratio.max() > 2
    keys = jax.random.split(jax.random.key(1), 2)
    decoded = jax.jit(model.decode)(params, latents + 2 * noise(mean, keys))
    expected = np.abs(decoded - PICTURES).mean((1, 2, 3))
    np.testing.assert_allclose(losses(model, params, latent_noise=2.0), expected, rtol=1e-5)


def test_latents_begin_quiet(model, params, outputs):
    """Half of the bias is of means and stays zero, half of log-variances: a noise of exp(-3)."""
    bias = params["autoencoder"]["quant_conv"]["bias"]
    channels = model.config.autoencoder.latent_channels
    np.testing.assert_array_equal(bias, [0] * channels + [-6] * channels)
    mean, log_variance, _, _ = outputs
    assert np.exp(log_variance.mean() / 2) < 0.25 * mean.std()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_shifted_timesteps_have_the_quantiles_of_the_formula(model, shift):
    options = DenoisingLoss(timestep_shift=shift, noise_offset=0.0)
    draws = jax.jit(lambda keys: draw_randomness(model, keys, (1, 1, 1, 4), options).timesteps)
    timesteps = np.asarray(draws(jax.random.split(jax.random.key(0), 20_000)))
    assert timesteps.min() < 20 and timesteps.max() == 999
    share = np.linspace(0.1, 0.9, 9)
    expected = 1000 * shift * share / (1 + (shift - 1) * share)
    np.testing.assert_allclose(np.quantile(timesteps, share), expected, atol=12)


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_noise_that_frames_share_is_trained_with(model, share):
    schedule = dataclasses.replace(model.config.schedule, shared_noise=share)
    shared = dataclasses.replace(model, config=dataclasses.replace(model.config, schedule=schedule))
    options, keys = DenoisingLoss(noise_offset=0.5), jax.random.split(jax.random.key(0), 500)
    drawn = draw_randomness(shared, keys, (3, 8, 8, 4), options)
    apart = draw_randomness(model, keys, (3, 8, 8, 4), options)
    assert (drawn.timesteps == apart.timesteps).all()
    assert share or (drawn.noise == apart.noise).all()
    means = drawn.noise.mean((2, 3))  # (500, 3, 4), of what samples and channels are offset by
    np.testing.assert_allclose(means.var((0, 2)), 0.25 + 1 / 64, atol=0.03)
    frames = np.moveaxis(drawn.noise - means[:, :, None, None], 1, 0).reshape(3, -1)
    expected = np.eye(3) + share * (1 - np.eye(3))
    np.testing.assert_allclose(np.cov(frames) * 64 / 63, expected, atol=0.02)


def test_references_are_encoded_as_their_mean_and_frames_sampled(model):
    """As sampling encodes references; frames as Stable Diffusion was trained. In slices too."""
    rng = np.random.default_rng(0)
    batch = {
        "reference": rng.integers(0, 256, (2, 16, 16, 3), np.uint8),
        "frames": rng.integers(0, 256, (2, 3, 16, 16, 3), np.uint8),
        "keypoints": np.zeros((2, 3, 134, 3), np.float32),
    }
    params = model.init(0, ("autoencoder", "image_encoder"))
    keys = jax.random.split(jax.random.key(5), 2)
    encode = jax.jit(model.encode_latents)
    references = encode(params, batch["reference"] / np.float32(127.5) - 1)
    frame_keys = [jax.random.split(jax.random.fold_in(key, 0), 3) for key in keys]
    pictures = batch["frames"].reshape(6, 16, 16, 3) / np.float32(127.5) - 1
    frames = encode(params, pictures, jnp.concatenate(frame_keys)).reshape(2, 3, 2, 2, 4)
    mean = encode(params, pictures).reshape(frames.shape)
    assert np.abs(frames - mean).mean() > 0.005
    for size in (8, 2):
        with jax.set_mesh(make_mesh({"data": 1}, jax.devices()[:1])):
            example = jax.jit(encode_batch, static_argnums=(0, 4, 5))(
                model, params, batch, keys, 1, size
            )
        np.testing.assert_allclose(example.reference_latents, references, atol=1e-5)
        np.testing.assert_allclose(example.latents, frames, atol=1e-5)


def test_validation_in_slices_has_the_same_losses(model, params):
    """Whatever part a row is in, its noise is that of its place in the batch."""
    with jax.set_mesh(make_mesh({"data": 1}, jax.devices()[:1])):
        pictures = np.random.default_rng(0).integers(0, 256, (6, 1, 16, 16, 3), np.uint8)
        options = ReconstructionLoss(latent_noise=0.5)

        def losses(slices):
            compute = lambda p: objective.fixed_loss(  # noqa: E731
                model, p, {"frames": pictures}, 2, options, 1, 8, slices
            )
            return np.asarray(jax.jit(compute)(params))

        whole = losses(1)
        assert whole.std() > 1e-3 * whole.mean()
        np.testing.assert_allclose(losses(3), whole, rtol=1e-5)


def test_validation_in_slices_has_the_same_timesteps_and_noise(model, monkeypatch):
    def encoded(model, params, batch, keys, *sizes):
        return objective.Example(batch["frames"], None, None, None)

    def told(model, params, example, draws, options):
        return draws.timesteps + example.latents.mean((1, 2, 3, 4)) + draws.noise[:, 0, 0, 0, 0]

    monkeypatch.setattr(objective, "encode_batch", encoded)
    monkeypatch.setattr(objective, "denoising_loss", told)
    batch = {"frames": jax.random.normal(jax.random.key(0), (6, 2, 4, 4, 3))}
    whole, sliced = (
        objective.fixed_loss(model, None, batch, 1, DenoisingLoss(), 2, 8, slices)
        for slices in (1, 3)
    )
    assert len(np.unique(whole)) == 6
    np.testing.assert_allclose(sliced, whole, rtol=1e-6)
