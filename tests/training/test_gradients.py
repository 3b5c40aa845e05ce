"""The whole stage-1 loss and its gradients against PyTorch's autograd."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from parity import convert, relative_l2
from small_model import small_model
from torch_animate_anyone import TorchAnimateAnyone

from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.training.objective import DenoisingLoss, Draws, Example, denoising_loss
from animate_jax.training.parameters import learned_paths, merge, split, without_motion

LEARNED = ("denoising_unet", "reference_unet", "pose_guider")
GAMMA = 5.0


@pytest.fixture(scope="module")
def sample():
    """A batch of three: nothing of the first row's reference and image is shown."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    skeletons = rng.random((3, 1, 32, 48, 3), np.float32)
    example = Example(normal(3, 1, 4, 6, 4), normal(3, 4, 6, 4), normal(3, 1, 16), skeletons)
    timesteps = np.array([20, 600, 999], np.int32)
    kept = np.array([False, True, True])
    return example, Draws(timesteps, normal(3, 1, 4, 6, 4), kept, kept)


@pytest.fixture(scope="module")
def theirs():
    torch_model = TorchAnimateAnyone(small_model(), seed=3)
    torch_model.use_motion = False
    for name in LEARNED:
        getattr(torch_model, name).double()
    return torch_model


def without_output(name, tensors):
    """A ReferenceNet has no output layers."""
    if name != "reference_unet":
        return tensors
    return {k: v for k, v in tensors.items() if not k.startswith(("conv_norm_out", "conv_out"))}


def channels_first(x):
    return torch.from_numpy(np.moveaxis(x, -1, -3).astype(np.float64))


def torch_loss(model, example, draws):
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    latents, noise = channels_first(example.latents), channels_first(draws.noise)
    timesteps = torch.from_numpy(draws.timesteps.astype(np.int64))
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.get_velocity(latents, noise, timesteps)
    tokens = torch.from_numpy(example.image_tokens).double()
    tokens = tokens * torch.from_numpy(draws.has_image)[:, None, None]
    # Without the decorators that turn gradients off.
    write, denoise = (
        getattr(type(model), name).__wrapped__ for name in ("write_reference", "denoise")
    )
    bank = write(model, channels_first(example.reference_latents), tokens)
    for path in bank:  # rows without a reference come first
        bank[path] = bank[path][torch.from_numpy(draws.has_reference)]
    pose = model.pose_guider(channels_first(example.skeletons)[:, 0])[:, None]
    prediction = denoise(model, noisy, timesteps, tokens, pose)
    alphas = scheduler.alphas_cumprod.double()[timesteps]
    ratio = alphas / (1 - alphas)
    weights = torch.minimum(ratio + 1, torch.tensor(GAMMA)) / (ratio + 1)
    return (((prediction - target) ** 2).mean((1, 2, 3, 4)) * weights).mean()


def test_loss_and_gradients_of_stage_1(sample, theirs):
    example, draws = sample
    config = without_motion(small_model())
    model = AnimateAnyone(config)
    params = {
        name: convert(model, name, without_output(name, getattr(theirs, name).state_dict()))
        for name in LEARNED
    }
    params = jax.tree.map(np.float32, params)
    paths = learned_paths(params, config, [f"^{name}/" for name in LEARNED])
    learned, frozen = split(params, paths)

    @jax.jit
    def ours(learned):
        loss = denoising_loss(
            model, merge(learned, frozen), example, draws, DenoisingLoss(min_snr_gamma=GAMMA)
        )
        return jnp.mean(loss)

    value, gradients = jax.value_and_grad(ours)(learned)
    loss = torch_loss(theirs, example, draws)
    loss.backward()
    assert value == pytest.approx(loss.item(), rel=1e-5)

    expected = {}
    for name in LEARNED:
        parameters = getattr(theirs, name).named_parameters()
        gradient = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters}
        gradient = convert(model, name, without_output(name, gradient))
        expected |= flatten_dict({name: gradient})
    gradients = flatten_dict(gradients)
    assert set(gradients) == paths
    for path, gradient in expected.items():
        if path in paths:
            assert np.linalg.norm(gradient) > 0, path
            assert relative_l2(gradients[path], gradient) <= 1e-4, path
        else:  # what is never learnt is what no loss depends on
            assert np.linalg.norm(gradient) < 1e-12, path
