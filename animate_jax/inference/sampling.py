"""The denoising loop: on the device for a clip of one window, from the host for longer videos.

Both take the same steps with the same noise. A clip that fits one window is sampled by a single
`lax.scan`. A longer video keeps its latents on the host; each step sends one window after another
through one compiled function, so neither compilation nor device memory depends on its length.
"""

from __future__ import annotations

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from animate_jax.diffusion.samplers import Steps, step
from animate_jax.diffusion.schedule import NoiseSchedule, mixed_noise
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.attention import BoundLayer

COMMON = np.int32(-1)  # in place of a frame's number, for the noise that all frames share


@functools.partial(jax.jit, static_argnames=("schedule", "shape"))
def frame_noise(
    schedule: NoiseSchedule, key: jax.Array, frame: jax.Array, *, shape: tuple[int, ...]
) -> jax.Array:
    """Gaussian noise of one frame, which does not depend on how many frames there are."""

    def draw(number):
        return jax.random.normal(jax.random.fold_in(key, number), shape, jnp.float32)

    return mixed_noise(schedule, draw(frame), draw(COMMON) if schedule.shared_noise else 0.0)


def clip_noise(schedule: NoiseSchedule, key, frames: int, shape: tuple[int, ...]) -> jax.Array:
    """(frames, *shape), on the device."""
    draw = functools.partial(frame_noise, schedule, key, shape=shape)
    return jax.vmap(draw)(jnp.arange(frames))


def step_key(key: jax.Array, index) -> jax.Array:
    """The key of the noise that the sampler adds in one step; never that of the initial noise."""
    return jax.random.split(jax.random.fold_in(key, index))[1]


def video_noise(schedule: NoiseSchedule, key, frames: int, shape: tuple[int, ...]) -> np.ndarray:
    """(frames, *shape) float32 on the host: the same as `clip_noise`, for any number of frames."""
    return np.stack([frame_noise(schedule, key, np.int32(i), shape=shape) for i in range(frames)])


@functools.partial(jax.jit, static_argnames=("model", "stochastic"))
def sample_clip(
    model: AnimateAnyone,
    params,
    state: tuple[jax.Array, jax.Array],
    bound,
    pose_features: jax.Array,
    steps: Steps,
    first_step,
    guidance,
    key: jax.Array,
    *,
    stochastic: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Takes the given steps with one clip, as one scan.

    state: latents and the last predicted sample, (1, F, h, w, C) each; noise and zeros at first.
    bound has 2 rows for guidance, the unconditional first, or 1 row without. `steps` is a table of
    n rows, of which the first is step number `first_step`. `stochastic` adds the sampler's noise
    (DDIM's eta), keyed like `frame_noise`. Returns the state after the steps.
    """

    def body(state, row):
        x, previous = state
        index, coefficients = row
        out = model.guided_denoise(
            params, x, coefficients.timesteps, bound, pose_features, guidance
        )
        gaussian = None
        if stochastic:
            drawn = step_key(key, index), x.shape[1], x.shape[2:]
            gaussian = clip_noise(model.config.schedule, *drawn)[None]
        return step(coefficients, x, out, previous, gaussian), None

    rows = first_step + jnp.arange(len(steps.timesteps)), steps
    return jax.lax.scan(body, state, rows)[0]


@functools.partial(jax.jit, static_argnames="model")
def denoise_window(model: AnimateAnyone, params, latents, timestep, bound, pose_features, guidance):
    """The guided prediction for one window, (1, F, h, w, C); arguments as in `guided_denoise`."""
    return model.guided_denoise(params, latents, timestep, bound, pose_features, guidance)


class Video(typing.NamedTuple):
    """What one video is sampled from; `windows` as from `make_windows`, else as `sample_clip`."""

    noise: np.ndarray  # (F, h, w, C)
    bound: dict[str, BoundLayer]
    pose_features: np.ndarray  # (F, h, w, channels)
    steps: Steps
    guidance: np.float32
    key: jax.Array
    windows: tuple[np.ndarray, np.ndarray]
    stochastic: bool = False


def sample_in_windows(
    model: AnimateAnyone, params, video: Video, *, progress: bool = True
) -> np.ndarray:
    """What `sample` does for a video of any length, with latents and pose features on the host."""
    x, previous = video.noise, np.zeros_like(video.noise)
    bar = tqdm(
        total=len(video.steps.timesteps) * len(video.windows[0]),
        desc="sampling",
        unit="window",
        disable=not progress,
    )
    with bar:
        for index, row in enumerate(zip(*video.steps, strict=True)):
            row = Steps(*row)
            out = np.zeros_like(x)
            for frames, weights in zip(*video.windows, strict=True):
                prediction = denoise_window(
                    model,
                    params,
                    x[None, frames],
                    row.timesteps,
                    video.bound,
                    video.pose_features[None, frames],
                    video.guidance,
                )
                out[frames] += weights[:, None, None, None] * np.asarray(prediction[0])
                bar.update()
            gaussian = None
            if video.stochastic:
                drawn = step_key(video.key, index), len(x), x.shape[1:]
                gaussian = video_noise(model.config.schedule, *drawn)
            x, previous = step(row, x, out, previous, gaussian)
    return x


def steps_at_once(count: int) -> int:
    """Of `count` steps, those that one scan takes when progress is shown: equal parts of at least
    ten, so that one program serves all."""
    return max(n for n in range(1, count + 1) if count % n == 0 and n <= max(1, count // 10))


def sample(model: AnimateAnyone, params, video: Video, *, progress: bool = True) -> np.ndarray:
    """Latents (F, h, w, C) from noise of that shape, in the way that fits the video's length."""
    if len(video.windows[0]) > 1:
        return sample_in_windows(model, params, video, progress=progress)
    noise, count = video.noise[None], len(video.steps.timesteps)
    # Placed as the state after the first steps will be, or they would be compiled twice.
    place = jax.tree.leaves(params)[0].sharding
    state, pose = jax.device_put(((noise, np.zeros_like(noise)), video.pose_features[None]), place)
    part = steps_at_once(count) if progress else count
    with tqdm(total=count, desc="sampling", unit="step", disable=not progress) as bar:
        for first in range(0, count, part):
            rows = Steps(*(column[first : first + part] for column in video.steps))
            known = video.bound, pose, rows, np.int32(first), video.guidance, video.key
            state = sample_clip(model, params, state, *known, stochastic=video.stochastic)
            jax.block_until_ready(state)
            bar.update(part)
    return np.asarray(state[0][0])
