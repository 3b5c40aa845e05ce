"""Schedules, timesteps and samplers equal diffusers'; weights equal their formulas."""

import dataclasses
import itertools

import diffusers
import jax
import numpy as np
import pytest
import torch
from parity import relative_l2

from animate_jax.diffusion import schedule as schedules
from animate_jax.diffusion.samplers import sampling_steps, step
from animate_jax.diffusion.schedule import NoiseSchedule
from animate_jax.errors import UserError

BOUND = 1e-5
BETAS = ("linear", "scaled_linear", "cosine")
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
SPACINGS = ("leading", "trailing", "linspace")


def torch_options(schedule):
    betas = {"cosine": "squaredcos_cap_v2"}.get(schedule.beta_schedule, schedule.beta_schedule)
    return dict(
        num_train_timesteps=schedule.num_train_timesteps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=betas,
        prediction_type=PREDICTIONS[schedule.prediction],
        rescale_betas_zero_snr=schedule.zero_terminal_snr,
        timestep_spacing=schedule.timestep_spacing,
        steps_offset=schedule.steps_offset,
    )


def torch_ddim(schedule):
    return diffusers.DDIMScheduler(
        **torch_options(schedule), clip_sample=False, set_alpha_to_one=schedule.final_alpha_one
    )


def torch_dpm(schedule):
    return diffusers.DPMSolverMultistepScheduler(**torch_options(schedule))


def denoiser(x, t):
    """Any smooth function of both."""
    return np.sin(1.7 * x + t / 300) + 0.1 * x


@pytest.mark.parametrize("betas, zero", itertools.product(BETAS, (False, True)))
def test_alphas(betas, zero):
    schedule = NoiseSchedule(beta_schedule=betas, zero_terminal_snr=zero)
    expected = torch_ddim(schedule).alphas_cumprod.numpy()
    ours = schedules.alphas_cumprod(schedule)
    assert np.max(np.abs(ours - expected)) <= 1e-6
    assert relative_l2(ours, expected) <= BOUND
    assert (ours[-1] == 0) == zero


def all_schedules():
    for betas, prediction, spacing in itertools.product(BETAS, PREDICTIONS, SPACINGS):
        # A cosine schedule ends at nearly nothing; epsilon divides by it in both implementations.
        for zero in (False, True):
            if (zero or betas == "cosine") and prediction == "epsilon":
                continue
            yield NoiseSchedule(
                beta_schedule=betas,
                prediction=prediction,
                timestep_spacing=spacing,
                zero_terminal_snr=zero,
                final_alpha_one=not zero,
            )


def run_ours(schedule, steps, sampler, x):
    previous, xs = np.zeros_like(x), []
    table = sampling_steps(schedule, steps, sampler)
    for i in range(steps):
        row = type(table)(*(c[i] for c in table))
        x, previous = step(row, x, denoiser(x, int(row.timesteps)).astype("f4"), previous)
        xs.append(x)
    return table.timesteps, np.stack(xs)


def run_theirs(scheduler, steps, x):
    scheduler.set_timesteps(steps)
    x, xs = torch.tensor(x), []
    for t in scheduler.timesteps:
        output = torch.tensor(denoiser(x.numpy(), int(t)).astype("f4"))
        x = scheduler.step(output, t, x).prev_sample
        xs.append(x.numpy())
    return scheduler.timesteps.numpy(), np.stack(xs)


@pytest.mark.parametrize("sampler, steps", [("ddim", 20), ("dpm++", 10), ("dpm++", 25)])
def test_samplers(sampler, steps):
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype("f4")
    make = torch_ddim if sampler == "ddim" else torch_dpm
    for schedule in all_schedules():
        timesteps, ours = run_ours(schedule, steps, sampler, x)
        expected_timesteps, theirs = run_theirs(make(schedule), steps, x)
        np.testing.assert_array_equal(timesteps, expected_timesteps, str(schedule))
        assert relative_l2(ours, theirs) <= BOUND, schedule


@pytest.mark.parametrize("steps", [1, 3, 7, 30, 50, 999, 1000])
def test_timesteps(steps):
    for spacing in SPACINGS:
        if spacing == "leading" and steps == 1000:
            continue  # 1000 steps from an offset of 1 would ask for timestep 1000
        schedule = NoiseSchedule(timestep_spacing=spacing)
        scheduler = torch_ddim(schedule)
        scheduler.set_timesteps(steps)
        ours = sampling_steps(schedule, steps).timesteps
        np.testing.assert_array_equal(ours, scheduler.timesteps.numpy())


def test_stochastic_ddim():
    schedule = schedules.NoiseSchedule(zero_terminal_snr=False)
    scheduler = torch_ddim(schedule)
    scheduler.set_timesteps(5)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6)).astype("f4")
    theirs = torch.tensor(x)
    table = sampling_steps(schedule, 5, "ddim", eta=0.7)
    for i, t in enumerate(scheduler.timesteps):
        gaussian = rng.normal(size=x.shape).astype("f4")
        row = type(table)(*(c[i] for c in table))
        x, _ = step(row, x, denoiser(x, int(t)).astype("f4"), 0.0, gaussian)
        output = torch.tensor(denoiser(theirs.numpy(), int(t)).astype("f4"))
        theirs = scheduler.step(
            output, t, theirs, eta=0.7, variance_noise=torch.tensor(gaussian)
        ).prev_sample
        assert relative_l2(x, theirs.numpy()) <= BOUND
    assert table.noise[0] > 0.1


@pytest.mark.parametrize("prediction", ["v", "epsilon", "sample"])
def test_training_targets(prediction):
    schedule = NoiseSchedule(prediction=prediction, zero_terminal_snr=False)
    scheduler = torch_ddim(schedule)
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 3, 4, 5, 6)).astype("f4")
    t = np.array([0, 500, 999])
    noisy = scheduler.add_noise(torch.tensor(x), torch.tensor(noise), torch.tensor(t))
    assert relative_l2(schedules.add_noise(schedule, x, noise, t), noisy.numpy()) <= BOUND
    expected = {"epsilon": noise, "sample": x}.get(prediction)
    if expected is None:
        expected = scheduler.get_velocity(
            torch.tensor(x), torch.tensor(noise), torch.tensor(t)
        ).numpy()
    assert relative_l2(schedules.prediction_target(schedule, x, noise, t), expected) <= BOUND


def test_min_snr_weights():
    t = np.arange(1000)
    for prediction in PREDICTIONS:
        schedule = NoiseSchedule(prediction=prediction, zero_terminal_snr=prediction != "epsilon")
        alphas = schedules.alphas_cumprod(schedule)
        snr = alphas / (1 - alphas)
        expected = {
            "v": np.minimum(1, 5 / (snr + 1)),
            "epsilon": np.minimum(1, 5 / np.maximum(snr, 1e-30)),
            "sample": np.minimum(snr, 5),
        }[prediction]
        np.testing.assert_allclose(
            schedules.min_snr_weights(schedule, t), expected, rtol=1e-6, atol=1e-9
        )
    weights = schedules.min_snr_weights(NoiseSchedule(), t)
    assert (weights[250:] == 1).all()  # where sampling begins nothing is played down
    assert weights[0] < 0.01


def test_offset_noise():
    noise = schedules.offset_noise(jax.random.key(0), (64, 3, 16, 16, 4), 0.5)
    means = noise.mean((1, 2, 3))  # one per sample and channel
    assert abs(means.std() - 0.5) < 0.05
    assert abs((noise - means[:, None, None, None]).std() - 1) < 0.01
    within = noise.mean((2, 3)) - means[:, None]
    assert abs(within).max() < 0.3  # frames share the offset: only sampling error is left


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_noise(share):
    own, common = np.random.default_rng(0).standard_normal((2, 2, 100_000), np.float32)
    noise = schedules.mixed_noise(NoiseSchedule(shared_noise=share), own, common[:1])
    assert noise.dtype == np.float32
    np.testing.assert_allclose(np.cov(noise), [[1, share], [share, 1]], atol=0.02)
    assert share or noise is own


def test_bad_schedules():
    with pytest.raises(UserError, match="epsilon"):
        NoiseSchedule(prediction="epsilon")
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="shared_noise"):
            NoiseSchedule(shared_noise=share)
    for options in (
        dict(steps=0),
        dict(steps=1001),
        dict(steps=5, sampler="euler"),
        dict(steps=5, sampler="dpm++", eta=1.0),
        dict(steps=5, eta=2.0),
    ):
        with pytest.raises(UserError):
            sampling_steps(NoiseSchedule(), **options)
    presets = schedules.stable_diffusion(), schedules.moore_sampling()
    assert dataclasses.asdict(presets[1]) | {"beta_schedule": "scaled_linear"} == (
        dataclasses.asdict(NoiseSchedule())
    )
