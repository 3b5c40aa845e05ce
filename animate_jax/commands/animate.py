"""The `animate` command: files in, a video file out."""

from __future__ import annotations

import os
import warnings

import numpy as np

from animate_jax.commands.motion import driving_motion
from animate_jax.compiled import keep_compiled
from animate_jax.diffusion.samplers import sampling_steps
from animate_jax.errors import UserError, UserNote
from animate_jax.files import check_kept
from animate_jax.inference.pipeline import (
    AnimateAnyonePipeline,
    check_window,
    default_window,
    fitted_size,
)
from animate_jax.inference.preprocessing import resize, skeleton_pixels
from animate_jax.inference.windows import make_windows
from animate_jax.pose.keypoints import load_keypoints
from animate_jax.pose.render import draw_skeletons
from animate_jax.video.reading import probe_video, read_image
from animate_jax.video.writing import check_output, exact_rate, side_by_side, write_video
from animate_jax.weights.model_directory import BUNDLED, read_config

# Of a decoded video that is held for all outputs; what is larger is decoded anew for every one.
HELD_BYTES = 2**30


def animate(options) -> None:
    """Runs `animate-jax animate`; options as its parser gives them.

    What can be refused is refused before the long work begins.
    """
    beside = options.side_by_side if isinstance(options.side_by_side, str) else None
    outputs = (*options.out, *([beside] if beside else ()))
    for path in outputs:
        check_output(path, options.overwrite)
    _check_apart(outputs)
    read = "reference", "reference_keypoints", "driving", "keypoints", "pose_video", "initial_noise"
    check_kept(outputs, [getattr(options, name) for name in read])
    keep_compiled(options.compiled)
    if options.fps is not None:
        exact_rate(options.fps)
    model = options.model or BUNDLED
    config = read_config(model)
    picture = read_image(options.reference)
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed is {options.seed}; give one from 0 to {2**32 - 1}")
    if options.guidance is not None and not np.isfinite(options.guidance):
        raise UserError(
            f"--guidance is {options.guidance}; give a number such as {config.guidance}"
        )
    noise = _initial_noise(options.initial_noise)
    size = _video_size(options, picture, config)
    sampling_steps(config.schedule, options.steps, options.sampler, options.eta)
    window = options.window or default_window(config)
    make_windows(1, window, options.overlap, options.windows)
    check_window(config, min(window, _frames_hint(options) or window))

    motion, fps, pose = driving_motion(options, picture, size, config.preprocessing.pose)
    fps = options.fps or fps
    exact_rate(fps)
    print(f"loading {model}")
    pipeline = AnimateAnyonePipeline.from_pretrained(model, options.dtype)
    print(f"{len(motion)} frames of {size[0]}x{size[1]}, {options.steps} {options.sampler} steps")
    video = pipeline(
        picture,
        motion,
        width=size[0],
        height=size[1],
        reference_keypoints=pose,
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
        initial_noise=noise,
        window=window,
        overlap=options.overlap,
        windows=options.windows,
        sampler=options.sampler,
        eta=options.eta,
        lazy=12 * len(motion) * size[0] * size[1] > HELD_BYTES,
    )

    def joined():  # one frame at a time: a long clip three times over takes much memory
        reference = resize(picture, *size, config.preprocessing.reference)
        for skeleton, frame in zip(_drawn(motion, size, config.preprocessing.pose), video):
            yield side_by_side(reference, skeleton, frame)[0]

    if fps > 50 and any(str(path).lower().endswith(".gif") for path in outputs):
        note = f"a GIF shows at most 50 frames a second; of {fps:g} some are left out"
        warnings.warn(note, UserNote, stacklevel=2)
    shown = dict.fromkeys(options.out, joined if options.side_by_side is True else lambda: video)
    if beside:
        shown[beside] = joined
    for path, pictures in shown.items():
        write_video(path, pictures(), fps, overwrite=options.overwrite)
        print(f"wrote {path}: {len(video)} frames at {fps:g} per second")


def _drawn(motion, size, resample):
    if motion.ndim == 3:
        return (draw_skeletons(points, size[1], size[0]) for points in motion)
    return (skeleton_pixels(frame, *size, resample) for frame in motion)


def _check_apart(outputs):
    places = [os.path.realpath(path) for path in outputs]
    for number, place in enumerate(places):
        for other in places[:number]:
            if os.path.commonpath([place, other]) in (place, other):
                raise UserError(f"{outputs[number]}: the place of two outputs; choose another")


def _video_size(options, picture, config):
    """As asked for; else the picture's proportions, the shorter side as the model was trained."""
    (height, width), multiple = picture.shape[:2], config.autoencoder.downscale
    asked = options.width, options.height
    size = fitted_size(*asked, (width, height), config.resolution, multiple)
    if abs(np.log(size[0] / size[1] / (width / height))) > 0.05:
        warnings.warn(
            f"the reference, {width}x{height}, is stretched to {size[0]}x{size[1]};"
            " crop it, or choose a size of its proportions",
            UserNote,
            stacklevel=2,
        )
    return size


def _initial_noise(path):
    if path is None:
        return None
    try:
        noise = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a .npy file of noise ({error})") from error
    if not isinstance(noise, np.ndarray) or noise.ndim != 4 or noise.dtype.kind not in "fiu":
        raise UserError(f"{path}: not a .npy file of noise (frames, height, width, channels)")
    return noise


def _frames_hint(options) -> int:
    """How many frames there will be, as far as that is known beforehand; else 0."""
    if options.keypoints:
        hint = len(load_keypoints(options.keypoints).points)
    else:
        hint = probe_video(options.driving or options.pose_video).frames_hint
    hint = -(-hint // options.stride)
    return min(hint, options.frames or hint)
