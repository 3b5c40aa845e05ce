"""The denoising loop: on the device for a clip of one window, from the host for longer videos.

Both take the same steps with the same noise. A clip that fits one window is sampled by a single
`lax.scan`. A longer video keeps its latents on the host; each step sends one window after another
through one compiled function, so neither compilation nor device memory depends on its length.
"""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from animate_jax.diffusion.samplers import Steps, step
from animate_jax.models.animate_anyone import AnimateAnyone


@functools.partial(jax.jit, static_argnames="shape")
def frame_noise(key: jax.Array, frame: jax.Array, *, shape: tuple[int, ...]) -> jax.Array:
    """Gaussian noise of one frame, which does not depend on how many frames there are."""
    return jax.random.normal(jax.random.fold_in(key, frame), shape)


def step_key(key: jax.Array, index) -> jax.Array:
    """The key of the noise that the sampler adds in one step; never that of the initial noise."""
    return jax.random.split(jax.random.fold_in(key, index))[1]


def video_noise(key: jax.Array, frames: int, shape: tuple[int, ...]) -> np.ndarray:
    """(frames, *shape) float32 on the host."""
    return np.stack([frame_noise(key, np.int32(i), shape=shape) for i in range(frames)])


@functools.partial(jax.jit, static_argnames=("model", "stochastic", "on_step"))
def sample_clip(
    model: AnimateAnyone,
    params,
    noise: jax.Array,
    bound,
    pose_features: jax.Array,
    steps: Steps,
    guidance,
    key: jax.Array,
    *,
    stochastic: bool = False,
    on_step=None,
) -> jax.Array:
    """Latents (1, F, h, w, C) of one clip from noise of that shape.

    bound has 2 rows for guidance, the unconditional first, or 1 row without. `steps` is a table of
    n rows. `stochastic` adds the sampler's noise (DDIM's eta), keyed like `frame_noise`.
    on_step: called on the host with the index of every finished step.
    """

    def body(carry, row):
        x, previous = carry
        index, coefficients = row
        out = model.guided_denoise(
            params, x, coefficients.timesteps, bound, pose_features, guidance
        )
        gaussian = None
        if stochastic:
            draw = functools.partial(frame_noise, step_key(key, index), shape=x.shape[2:])
            gaussian = jax.vmap(draw)(jnp.arange(x.shape[1]))[None]
        if on_step is not None:
            jax.debug.callback(on_step, index)
        return step(coefficients, x, out, previous, gaussian), None

    rows = jnp.arange(len(steps.timesteps)), steps
    (x, _), _ = jax.lax.scan(body, (noise, jnp.zeros_like(noise)), rows)
    return x


class StepProgress:
    """A progress bar for `sample_clip`, which is compiled with the object that it calls."""

    def __init__(self):
        self.bar = None

    def __call__(self, index):
        self.bar.update()

    @contextlib.contextmanager
    def counting(self, steps: int):
        with tqdm(total=steps, desc="sampling", unit="step") as self.bar:
            yield self
            jax.effects_barrier()


# One for all clips, so that none is compiled anew to show its progress.
STEP_PROGRESS = StepProgress()


@functools.partial(jax.jit, static_argnames="model")
def denoise_window(model: AnimateAnyone, params, latents, timestep, bound, pose_features, guidance):
    """The guided prediction for one window, (1, F, h, w, C); arguments as in `guided_denoise`."""
    return model.guided_denoise(params, latents, timestep, bound, pose_features, guidance)


def sample_video(
    model: AnimateAnyone,
    params,
    noise: np.ndarray,
    bound,
    pose_features: np.ndarray,
    steps: Steps,
    guidance: float,
    key: jax.Array,
    windows: tuple[np.ndarray, np.ndarray],
    *,
    stochastic: bool = False,
    progress: bool = True,
) -> np.ndarray:
    """What `sample` does for a video of any length, with latents and pose features on the host."""
    x, previous = noise, np.zeros_like(noise)
    bar = tqdm(
        total=len(steps.timesteps) * len(windows[0]),
        desc="sampling",
        unit="window",
        disable=not progress,
    )
    with bar:
        for index, row in enumerate(zip(*steps, strict=True)):
            row = Steps(*row)
            out = np.zeros_like(x)
            for frames, weights in zip(*windows, strict=True):
                prediction = denoise_window(
                    model,
                    params,
                    x[None, frames],
                    row.timesteps,
                    bound,
                    pose_features[None, frames],
                    guidance,
                )
                out[frames] += weights[:, None, None, None] * np.asarray(prediction[0])
                bar.update()
            gaussian = None
            if stochastic:
                gaussian = video_noise(step_key(key, index), len(x), x.shape[1:])
            x, previous = step(row, x, out, previous, gaussian)
    return x


def sample(
    model: AnimateAnyone,
    params,
    noise: np.ndarray,
    bound,
    pose_features: np.ndarray,
    steps: Steps,
    guidance: float,
    key: jax.Array,
    windows: tuple[np.ndarray, np.ndarray],
    *,
    stochastic: bool = False,
    progress: bool = True,
) -> np.ndarray:
    """Latents (F, h, w, C) from noise of that shape, in the way that fits the video's length.

    pose_features (F, h, w, channels); windows as from `make_windows`; the rest as `sample_clip`.
    """
    known = model, params, noise, bound, pose_features, steps, guidance, key
    if len(windows[0]) > 1:
        return sample_video(*known, windows, stochastic=stochastic, progress=progress)
    counting = STEP_PROGRESS.counting(len(steps.timesteps))
    with counting if progress else contextlib.nullcontext() as on_step:
        clip = model, params, noise[None], bound, pose_features[None], steps, guidance, key
        return np.asarray(sample_clip(*clip, stochastic=stochastic, on_step=on_step)[0])
