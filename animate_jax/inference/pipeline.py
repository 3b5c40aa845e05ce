"""From a picture and a motion to a video (arXiv 2311.17117, sections 3.2 and 4.1)."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from animate_jax.config import ModelConfig
from animate_jax.diffusion.samplers import sampling_steps
from animate_jax.errors import UserError, UserNote
from animate_jax.inference.preprocessing import (
    autoencoder_pixels,
    image_encoder_pixels,
    skeleton_pixels,
)
from animate_jax.inference.sampling import Video, sample, video_noise
from animate_jax.inference.windows import make_windows
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.pose.keypoints import (
    POINTS,
    Keypoints,
    first_pose,
    load_keypoints,
    load_pose,
    resized_points,
)
from animate_jax.pose.render import draw_skeletons, place_points
from animate_jax.video.reading import BLACK, WHITE, image_to_rgb, read_image
from animate_jax.video.writing import unit_range
from animate_jax.weights.model_directory import BUNDLED, load_model

WINDOW = 24  # frames, of the paper's clips
# Pixels that pass the autoencoder or pose guider at once; it bounds their memory, not the result.
CHUNK_PIXELS = 2**20


@dataclass(frozen=True)
class SampledVideo:
    """A video that is decoded while it is walked through, each time anew: a long one takes much
    less memory as latents. Its frames are float32 (height, width, 3) in [0, 1]."""

    latents: np.ndarray  # (frames, h, w, channels)
    decode: Callable[[np.ndarray], jax.Array]  # of `chunk` frames
    chunk: int
    progress: bool

    def __len__(self):
        return len(self.latents)

    def __iter__(self) -> Iterator[np.ndarray]:
        for part in self.parts():
            yield from part

    def parts(self) -> Iterator[np.ndarray]:
        """The frames, up to `chunk` at a time."""
        return _in_chunks(self.decode, self.latents, self.chunk, "decoding", self.progress)


class AnimateAnyonePipeline:
    """A loaded model; every call is independent of the others."""

    def __init__(self, config: ModelConfig, params: dict, dtype=None):
        self.model = AnimateAnyone(config, default_dtype(dtype))
        self.params = jax.tree.map(lambda x: jnp.asarray(x, self.model.dtype), params)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike = BUNDLED, dtype=None
    ) -> AnimateAnyonePipeline:
        """Loads a model directory, local or `gs://`; by default the small one that comes along.

        dtype: of parameters and computation, "float32" or "bfloat16"; None takes float32 on a CPU
        and bfloat16 on accelerators. Raises UserError where there is no model.
        """
        dtype = default_dtype(dtype)
        config, params = load_model(path, dtype=dtype)
        return cls(config, params, dtype)

    def __call__(
        self,
        reference,
        motion,
        *,
        width: int,
        height: int,
        reference_keypoints=None,
        steps: int = 20,
        guidance: float | None = None,
        seed: int = 0,
        initial_noise=None,
        window: int | None = None,
        overlap: int | None = None,
        windows: str = "tapered",
        sampler: str = "ddim",
        eta: float = 0.0,
        progress: bool = True,
        lazy: bool = False,
    ) -> np.ndarray | SampledVideo:
        """Animates `reference` -> float32 (frames, height, width, 3) in [0, 1].

        reference: a picture, as a path, a PIL image, or an array (H, W, 3), uint8 or float in
            [0, 1]; it is stretched to the video's size, as in training.
        motion: keypoints, as a `Keypoints` (whose frame is fitted into the video's), the path of
            its file, or an array (frames, 134, 3) in pixels of the video; or drawn skeletons, as
            PIL images or (frames, H, W, 3), uint8 or float in [0, 1].
        width, height: of the video in pixels; rounded down to multiples of 8, with a warning.
        reference_keypoints: (134, 3) or (1, 134, 3) in pixels of the reference; or a `Keypoints` or
            the path of its file, of which the first frame is taken. Models that are told where on
            the body things are (`UNetConfig.body_places`, as the small one that comes along) do
            better with them, and with a motion of keypoints; others have no use for them.
        guidance: classifier-free guidance, by default what suits the model; 1 or less computes no
            unconditional prediction.
        initial_noise: (frames, h, w, channels) of latents, in place of noise from `seed`.
        window, overlap, windows: videos longer than `window` frames are sampled in overlapping
            windows, see `inference.windows.make_windows`; by default windows of 24 frames, or of
            as many as the motion modules know, that share 4.
        sampler, eta: see `diffusion.samplers.sampling_steps`.
        lazy: returns a `SampledVideo`, which `write_video` takes and decodes as it writes.

        Raises UserError for input that does not fit.
        """
        multiple = self.model.config.autoencoder.downscale
        width, height = _whole(width, "width"), _whole(height, "height")
        steps, seed, eta = _whole(steps, "steps"), _whole(seed, "seed"), _number(eta, "eta")
        width, height = rounded_size(width, height, multiple)
        picture = picture_array(reference)
        reference_keypoints = self._reference_keypoints(reference_keypoints, picture, width, height)
        motion, draw = self._drawing(motion, width, height)
        on_body = reference_keypoints is not None and motion.ndim == 3
        frames = len(motion)
        window = _whole(window or default_window(self.model.config), "window")
        overlap = None if overlap is None else _whole(overlap, "overlap")
        check_window(self.model.config, min(window, frames))
        windows = make_windows(frames, window, overlap, windows)
        table = sampling_steps(self.model.config.schedule, steps, sampler, eta)
        guidance = self.model.config.guidance if guidance is None else guidance
        # One type, so that no other value compiles anew.
        guidance = np.float32(_number(guidance, "guidance"))
        if not np.isfinite(guidance) or not 0 <= seed < 2**32:
            raise UserError(f"guidance {guidance} has to be finite, seed {seed} 0 to {2**32 - 1}")
        key = jax.random.key(seed)
        noise = self._noise(key, frames, width, height, initial_noise)
        chunk = max(1, min(CHUNK_PIXELS // (width * height), frames, window))

        def encode(part):
            keypoints = part if on_body else None
            return _encode_pose(self.model, self.params["pose_guider"], draw(part), keypoints)

        def decode(part):
            with jax.default_matmul_precision(self._precision):
                return _decode(self.model, self.params["autoencoder"], part)

        with jax.default_matmul_precision(self._precision):
            known = reference_keypoints if on_body else None
            bound = self._bind(picture, width, height, guidance > 1, known)
            encoded = _in_chunks(encode, motion, chunk, "poses", progress)
            pose_features = _joined(encoded, frames)
            denoiser = {"denoising_unet": self.params["denoising_unet"]}
            video = Video(
                noise, bound, pose_features, table, guidance, key, windows, stochastic=eta > 0
            )
            latents = sample(self.model, denoiser, video, progress=progress)
        del video, pose_features  # the larger part of what a long video takes of the host
        sampled = SampledVideo(latents, decode, chunk, progress)
        return sampled if lazy else _joined(sampled.parts(), frames)

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """Pictures (frames, height, width, 3), uint8 or float in [0, 1], encoded and decoded again
        -> float32 in [0, 1]: what the autoencoder keeps of them.

        Raises UserError for what is no pictures, and for sizes that do not fit the autoencoder.
        """
        frames = _array(frames, "frames")
        if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
            shape = frames.shape
            raise UserError(f"frames have shape {shape}; they can be (frames, height, width, 3)")
        frames = unit_range(frames, "frames")
        height, width = frames.shape[1:3]
        multiple = self.model.config.autoencoder.downscale
        if height % multiple or width % multiple:
            raise UserError(f"{width}x{height} pixels: both have to be divisible by {multiple}")

        def reconstruct(part):
            part = part / np.float32(255) if part.dtype == np.uint8 else part
            return _reconstruct(self.model, self.params["autoencoder"], part)

        chunk = max(1, min(CHUNK_PIXELS // (width * height), len(frames)))
        with jax.default_matmul_precision(self._precision):
            parts = _in_chunks(reconstruct, frames, chunk, "autoencoder", progress=False)
            return _joined(parts, len(frames))

    @property
    def _precision(self):
        # Accelerators multiply float32 in lower precision unless told not to.
        return "float32" if self.model.dtype == jnp.float32 else None

    def _drawing(self, motion, width, height):
        """The motion as an array by frames, and what draws a part of it (n, height, width, 3)."""
        if isinstance(motion, str | os.PathLike):
            motion = load_keypoints(motion)
        if isinstance(motion, Keypoints):
            motion = place_points(motion.points, (motion.width, motion.height), (width, height))
        motion = _array(motion, "motion", BLACK)
        if motion.ndim == 3 and motion.shape[1:] == (POINTS, 3) and len(motion):
            return motion.astype(np.float32), lambda part: draw_skeletons(part, height, width)
        if motion.ndim != 4 or motion.shape[-1] != 3 or 0 in motion.shape:
            raise UserError(
                f"motion has shape {motion.shape}; it can be keypoints (frames, {POINTS}, 3) or "
                "drawn skeletons (frames, height, width, 3)"
            )
        motion = unit_range(motion, "drawn skeletons")
        resample = self.model.config.preprocessing.pose
        return motion, lambda part: np.stack(
            [skeleton_pixels(frame, width, height, resample) for frame in part]
        )

    def _reference_keypoints(self, points, picture, width, height):
        """(134, 3) in pixels of the video, to which the reference is stretched; or None."""
        if points is None:
            return None
        size = picture.shape[1], picture.shape[0]
        if isinstance(points, str | os.PathLike):
            points = load_pose(points, *size)
        if isinstance(points, Keypoints):
            points = first_pose(points, *size)
        points = _array(points, "reference_keypoints").astype(np.float32)
        if points.shape not in ((POINTS, 3), (1, POINTS, 3)):
            raise UserError(
                f"the reference's keypoints have shape {points.shape}; they can be ({POINTS}, 3)"
            )
        scale = np.array([width / size[0], height / size[1]])
        return resized_points(points.reshape(POINTS, 3), scale)

    def _noise(self, key, frames, width, height, initial_noise):
        autoencoder = self.model.config.autoencoder
        scale = autoencoder.downscale
        shape = height // scale, width // scale, autoencoder.latent_channels
        if initial_noise is None:
            return video_noise(self.model.config.schedule, key, frames, shape)
        noise = _array(initial_noise, "initial noise").astype(np.float32)
        if noise.shape != (frames, *shape):
            raise UserError(
                f"initial noise has shape {noise.shape}; this video needs {(frames, *shape)}"
            )
        return noise

    def _bind(self, picture, width, height, guided, keypoints=None):
        config = self.model.config
        resample = config.preprocessing
        pixels = image_encoder_pixels(picture, config.image_encoder, resample.image_encoder)
        reference = autoencoder_pixels(picture, width, height, resample.reference)
        keypoints = None if keypoints is None else keypoints[None].astype(np.float32)
        return _bind(self.model, self.params, pixels, reference, keypoints, guided=guided)


def check_window(config: ModelConfig, frames: int) -> None:
    """Raises UserError where so many frames are more than the motion modules know."""
    motion = config.denoising_unet.motion
    if motion is not None and frames > motion.max_frames:
        raise UserError(
            f"a window of {frames} frames is too long: this model's motion modules know "
            f"{motion.max_frames}; choose a smaller window"
        )


def default_window(config: ModelConfig) -> int:
    """Frames that are denoised together where nothing else is asked for."""
    motion = config.denoising_unet.motion
    return WINDOW if motion is None else min(WINDOW, motion.max_frames)


def default_dtype(dtype=None):
    """The jnp dtype meant by "float32", "bfloat16", a dtype, or None (by backend)."""
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:
        pass
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise UserError(f"dtype is {dtype}; it can be float32 or bfloat16")
    return dtype


def fitted_size(
    width: int | None, height: int | None, own: tuple[int, int], shorter: float, multiple: int
) -> tuple[int, int]:
    """(width, height) of a video as asked for, in multiples of `multiple`; what is not asked for is
    by the proportions of `own` (width, height), whose shorter side becomes `shorter` where neither
    is."""
    scale = shorter / min(own)
    for asked, side in zip((height, width), reversed(own)):
        if asked:  # what it will be, or the other side would not fit it
            scale = max(asked // multiple, 1) * multiple / side
    fitting = (max(1, round(side * scale / multiple)) * multiple for side in own)
    return rounded_size(*(a or f for a, f in zip((width, height), fitting)), multiple)


def rounded_size(width: int, height: int, multiple: int) -> tuple[int, int]:
    """The next smaller sizes above 0 that are divisible by `multiple`, as PyTorch's pipelines
    take them; warns where they change."""
    if min(width, height) < 1:
        raise UserError(f"a video of {width}x{height} pixels is not possible")
    sizes = tuple(max(1, size // multiple) * multiple for size in (width, height))
    if sizes != (width, height):
        warnings.warn(
            f"{width}x{height} is not divisible by {multiple}; using {sizes[0]}x{sizes[1]}",
            UserNote,
            stacklevel=3,
        )
    return sizes


@functools.partial(jax.jit, static_argnames=("model", "guided"))
def _bind(model, params, pixels, reference, keypoints, *, guided):
    tokens = model.encode_image(params, pixels)
    latents = model.encode_latents(params, reference)
    features = model.encode_reference(params, latents, tokens, keypoints)
    if guided:
        tokens = jnp.concatenate([jnp.zeros_like(tokens), tokens])
    return model.bind(params, tokens, features)


@functools.partial(jax.jit, static_argnames="model")
def _encode_pose(model, params, skeletons, keypoints):
    keypoints = None if keypoints is None else keypoints[None]
    return model.encode_pose({"pose_guider": params}, skeletons[None], keypoints)[0]


@functools.partial(jax.jit, static_argnames="model")
def _decode(model, params, latents):
    return model.decode_latents({"autoencoder": params}, latents)


@functools.partial(jax.jit, static_argnames="model")
def _reconstruct(model, params, pictures):
    params = {"autoencoder": params}
    return model.decode_latents(params, model.encode_latents(params, 2 * pictures - 1))


def _in_chunks(function, frames, size, description, progress) -> Iterator[np.ndarray]:
    """`function` of slices of `size` frames; the last is filled up, so that it compiles once."""
    with tqdm(total=len(frames), desc=description, unit="frame", disable=not progress) as bar:
        for start in range(0, len(frames), size):
            part = np.asarray(frames[start : start + size])
            count = len(part)
            part = np.concatenate([part, np.repeat(part[-1:], size - count, 0)])
            yield np.asarray(function(part))[:count]
            bar.update(count)


def _joined(parts: Iterable[np.ndarray], frames: int) -> np.ndarray:
    """Parts of so many frames in all as one array, with never more than one of them beside it."""
    out, start = None, 0
    for part in parts:
        if out is None:
            out = np.empty((frames, *part.shape[1:]), part.dtype)
        out[start : start + len(part)] = part
        start += len(part)
    return out


def _whole(value, name) -> int:
    """An int, also of a float such as 64.0."""
    try:
        if int(value) == value:
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{name} is {value!r}; give a whole number")


def _number(value, name) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is {value!r}; give a number") from error


def _array(value, what, background=WHITE) -> np.ndarray:
    """An array of numbers, also of a list of PIL images; raises UserError for anything else."""
    if isinstance(value, list | tuple):
        value = [
            image_to_rgb(part, background) if hasattr(part, "convert") else part for part in value
        ]
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: no array; are all parts of one size? ({error})") from error
    if array.dtype.kind in "OSU":
        raise UserError(f"{what}: {type(value).__name__} without numbers; give an array")
    return array


def picture_array(reference) -> np.ndarray:
    """uint8 (H, W, 3) of a path, a PIL image, or an array, uint8 or float in [0, 1]."""
    if isinstance(reference, str | os.PathLike):
        return read_image(reference)
    if hasattr(reference, "convert"):
        return image_to_rgb(reference)
    picture = _array(reference, "the reference")
    if picture.ndim != 3 or picture.shape[-1] != 3 or 0 in picture.shape:
        raise UserError(f"the reference has shape {picture.shape}; a picture is (height, width, 3)")
    picture = unit_range(picture, "the reference")
    return picture if picture.dtype == np.uint8 else np.round(picture * 255).astype(np.uint8)
