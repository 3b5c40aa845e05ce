"""The noise schedule, one object for training and sampling (samplers.py steps through it).

x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise with a_t = prod(1 - beta_s) (DDPM, arXiv 2006.11239,
equation 4); v-prediction (arXiv 2202.00512, section 4); zero terminal signal-to-noise ratio and
timestep spacings (arXiv 2305.08891, sections 3.1 and 3.4); min-SNR weights (arXiv 2303.09556,
section 3.4); noise that frames have in common (arXiv 2305.10474, section 4.1).
"""

from __future__ import annotations

import dataclasses
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from animate_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """Data of a schedule; the defaults are those Animate Anyone is trained with."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: typing.Literal["linear", "scaled_linear", "cosine"] = "scaled_linear"
    prediction: typing.Literal["epsilon", "v", "sample"] = "v"
    zero_terminal_snr: bool = True
    timestep_spacing: typing.Literal["leading", "trailing", "linspace"] = "trailing"
    steps_offset: int = 1
    final_alpha_one: bool = True  # the last step lands on a_t = 1, otherwise on a_0
    shared_noise: float = 0.0  # the part of noise's variance that a clip's frames have in common

    def __post_init__(self):
        if not 0 <= self.shared_noise <= 1:
            raise UserError(f"a schedule's shared_noise is {self.shared_noise}; it can be 0 to 1")
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise UserError(
                "a schedule with zero_terminal_snr cannot predict epsilon, which says nothing "
                "about the picture at the last timestep; set prediction to 'v' or 'sample'"
            )


def stable_diffusion() -> NoiseSchedule:
    """The schedule that Stable Diffusion 1.5 was trained with."""
    return NoiseSchedule(
        prediction="epsilon",
        zero_terminal_snr=False,
        timestep_spacing="leading",
        final_alpha_one=False,
    )


def moore_sampling() -> NoiseSchedule:
    """The schedule that the released PyTorch weights are sampled with: linear betas, although they
    were trained with scaled-linear ones."""
    return NoiseSchedule(beta_schedule="linear")


def alphas_cumprod(schedule: NoiseSchedule) -> np.ndarray:
    """a_t for t = 0 .. num_train_timesteps - 1, float64, falling from nearly 1."""
    n = schedule.num_train_timesteps
    if schedule.beta_schedule == "linear":
        betas = np.linspace(schedule.beta_start, schedule.beta_end, n)
    elif schedule.beta_schedule == "scaled_linear":
        betas = np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, n) ** 2
    else:
        bar = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    alphas = np.cumprod(1 - betas)
    if schedule.zero_terminal_snr:
        root = np.sqrt(alphas)
        alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return alphas


def signal_and_noise(schedule: NoiseSchedule, timesteps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sqrt(a_t) and sqrt(1 - a_t), float32, of integer timesteps of any shape."""
    alphas = alphas_cumprod(schedule)
    signal = jnp.asarray(np.sqrt(alphas), jnp.float32)[timesteps]
    noise = jnp.asarray(np.sqrt(1 - alphas), jnp.float32)[timesteps]
    return signal, noise


def _like(coefficient, x):
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def add_noise(schedule: NoiseSchedule, x: jax.Array, noise: jax.Array, timesteps: jax.Array):
    """x_t of clean x (B, ...), noise of the same shape and timesteps (B,)."""
    signal, sigma = signal_and_noise(schedule, timesteps)
    return _like(signal, x) * x + _like(sigma, x) * noise


def prediction_target(schedule: NoiseSchedule, x: jax.Array, noise: jax.Array, timesteps):
    """What the denoiser is to predict at x_t: the noise, v, or the clean sample; shaped like x."""
    if schedule.prediction == "epsilon":
        return noise
    if schedule.prediction == "sample":
        return x
    signal, sigma = signal_and_noise(schedule, timesteps)
    return _like(signal, x) * noise - _like(sigma, x) * x


def min_snr_weights(schedule: NoiseSchedule, timesteps: jax.Array, gamma: float = 5.0) -> jax.Array:
    """Loss weights min(SNR, gamma) / SNR, of SNR + 1 for v; float32 like `timesteps`.

    For a predicted sample the weight is min(SNR, gamma) itself. For v it is
    min(SNR + 1, gamma) / (SNR + 1), as the public reproduction trains: 1 wherever noise prevails.
    The paper's min(SNR, gamma) / (SNR + 1) would be 0 where no signal is left, which is where
    sampling begins and everything has to come from reference and motion.
    """
    alphas = alphas_cumprod(schedule)
    with np.errstate(divide="ignore"):
        snr = alphas / (1 - alphas)
    if schedule.prediction == "sample":
        weights = np.minimum(snr, gamma)
    else:
        ratio = snr + 1 if schedule.prediction == "v" else snr
        weights = np.minimum(ratio, gamma) / ratio
    return jnp.asarray(weights, jnp.float32)[timesteps]


def mixed_noise(schedule: NoiseSchedule, own, common):
    """Noise of frames from a draw for each and one that all have in common, which broadcasts."""
    if not schedule.shared_noise:
        return own
    return math.sqrt(1 - schedule.shared_noise) * own + math.sqrt(schedule.shared_noise) * common


def offset_noise(key: jax.Array, shape: tuple[int, ...], strength: float = 0.05) -> jax.Array:
    """Gaussian noise (B, ..., h, w, C) plus `strength` times a draw per sample and channel.

    The offset lets training move the mean of a picture (noise offset); it is shared by all frames
    and pixels of a sample.
    """
    key_noise, key_offset = jax.random.split(key)
    offset_shape = (shape[0],) + (1,) * (len(shape) - 2) + (shape[-1],)
    noise = jax.random.normal(key_noise, shape, jnp.float32)
    return noise + strength * jax.random.normal(key_offset, offset_shape, jnp.float32)
