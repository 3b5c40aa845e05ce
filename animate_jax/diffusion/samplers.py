"""Samplers as tables of coefficients: every step is one linear rule.

DDIM (arXiv 2010.02502, equation 12) and DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2) differ
only in numbers, which are computed once on the host in float64. With the denoiser's output m at x:

    sample = sample_from_x * x + sample_from_output * m                     (predicted x_0)
    x     <- carry * x + to_sample * sample + to_previous * previous sample + noise * gaussian

so the step works alike on a device inside `lax.scan` and on the host, frame by frame.
"""

from __future__ import annotations

import typing

import numpy as np

from animate_jax.diffusion.schedule import NoiseSchedule, alphas_cumprod
from animate_jax.errors import UserError

SAMPLERS = ("ddim", "dpm++")


class Steps(typing.NamedTuple):
    """One entry per step, in sampling order; float32 but for the int32 timesteps."""

    timesteps: np.ndarray
    sample_from_x: np.ndarray
    sample_from_output: np.ndarray
    carry: np.ndarray
    to_sample: np.ndarray
    to_previous: np.ndarray
    noise: np.ndarray


def sampling_steps(
    schedule: NoiseSchedule, steps: int, sampler: str = "ddim", eta: float = 0.0
) -> Steps:
    """The coefficients of `steps` sampling steps.

    sampler: "ddim" (eta 0 is deterministic, 1 is ancestral) or "dpm++" (second order, multistep).
    Raises UserError for an unknown sampler, eta outside [0, 1] or eta with dpm++, or a number of
    steps outside 1 .. num_train_timesteps.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"sampler is {sampler!r}; it can be one of {list(SAMPLERS)}")
    if not 0 <= eta <= 1 or (eta and sampler != "ddim"):
        raise UserError(f"eta is {eta}; it can be 0 to 1, and only ddim takes it")
    timesteps = sampling_timesteps(schedule, steps, sampler)
    if timesteps[0] >= schedule.num_train_timesteps or (np.diff(timesteps) >= 0).any():
        raise UserError(f"{steps} steps are too many for {sampler} here; take fewer")
    if sampler == "ddim":
        coefficients = _ddim(schedule, timesteps, steps, eta)
    else:
        coefficients = _dpm(schedule, timesteps)
    return Steps(timesteps.astype(np.int32), *(c.astype(np.float32) for c in coefficients))


def step(coefficients: Steps, x, output, previous, gaussian=None):
    """One step with scalar coefficients: (next x, predicted sample)."""
    c = coefficients
    sample = c.sample_from_x * x + c.sample_from_output * output
    x = c.carry * x + c.to_sample * sample + c.to_previous * previous
    if gaussian is not None:
        x = x + c.noise * gaussian
    return x, sample


def sampling_timesteps(schedule: NoiseSchedule, steps: int, sampler: str = "ddim") -> np.ndarray:
    """The timesteps of sampling, int64, falling; spacings as in diffusers (arXiv 2305.08891)."""
    n = schedule.num_train_timesteps
    most = n - schedule.steps_offset if schedule.timestep_spacing == "leading" else n
    if not 1 <= steps <= most:
        raise UserError(f"steps is {steps}; it can be 1 to {most}")
    if schedule.timestep_spacing == "trailing":
        return np.round(np.arange(n, 0, -n / steps)).astype(np.int64)[:steps] - 1
    # DPM-Solver places one point more and leaves out the last.
    extra = 0 if sampler == "ddim" else 1
    if schedule.timestep_spacing == "linspace":
        points = np.linspace(0, n - 1, steps + extra).round()[::-1]
        return points[:steps].astype(np.int64)
    points = (np.arange(steps + extra) * (n // (steps + extra)))[::-1]
    return points[:steps].astype(np.int64) + schedule.steps_offset


def predicted_sample(schedule, alpha):
    """Factors of x and of the network's output whose sum is the predicted sample, at each a_t."""
    signal, sigma = np.sqrt(alpha), np.sqrt(1 - alpha)
    if schedule.prediction == "v":
        return signal, -sigma
    if schedule.prediction == "sample":
        return np.zeros_like(signal), np.ones_like(signal)
    return 1 / signal, -sigma / signal


def _ddim(schedule, timesteps, steps, eta):
    alphas = alphas_cumprod(schedule)
    final = 1.0 if schedule.final_alpha_one else alphas[0]
    before = timesteps - schedule.num_train_timesteps // steps
    alpha = alphas[timesteps]
    alpha_next = np.where(before >= 0, alphas[np.maximum(before, 0)], final)
    variance = (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
    noise = eta * np.sqrt(np.maximum(variance, 0))
    carry = np.sqrt(np.maximum(1 - alpha_next - noise**2, 0)) / np.sqrt(1 - alpha)
    to_sample = np.sqrt(alpha_next) - carry * np.sqrt(alpha)
    return (
        *predicted_sample(schedule, alpha), carry, to_sample, np.zeros_like(carry), noise
    )  # fmt: skip


def _dpm(schedule, timesteps):
    alphas = alphas_cumprod(schedule)
    if schedule.zero_terminal_snr:
        alphas[-1] = 2.0**-24  # the log of the signal must stay finite
    alpha = alphas[timesteps]
    signal, sigma = np.sqrt(alpha), np.sqrt(1 - alpha)
    log_snr = np.log(signal / sigma)
    signal_next, sigma_next = np.append(signal[1:], 1.0), np.append(sigma[1:], 0.0)
    width = np.append(np.diff(log_snr), np.inf)
    shrink = signal_next * -np.expm1(-width)
    # The second-order correction uses the previous step; the first has none, and the last, which
    # lands on the clean sample, needs none.
    correction = np.zeros_like(shrink)
    correction[1:-1] = 0.5 * width[1:-1] / width[:-2]
    return (
        *predicted_sample(schedule, alpha),
        sigma_next / sigma,
        shrink * (1 + correction),
        -shrink * correction,
        np.zeros_like(sigma),
    )
