"""Frames into .mp4, .webm, .gif, .npy files or a directory of PNG pictures.

H.264 and VP9 are written as 4:2:0 BT.709 video with matching tags, so that players and
animate_jax.video.reading show the colours that were put in. A target appears whole or not at all.
"""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, ColorTrc
from PIL import Image

from animate_jax.errors import UserError
from animate_jax.files import check_file, check_place, replacing, replacing_directory

# Without cpu-independent, x264 writes slightly different files from the same frames.
ENCODERS = {
    ".mp4": (
        "mp4",
        "libx264",
        {"crf": "17", "preset": "medium", "x264-params": "cpu-independent=1"},
        {"movflags": "+faststart"},
    ),
    ".webm": (
        "webm",
        "libvpx-vp9",
        {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
        {},
    ),
}
# Options for clips that are read at random: a frame needs at most the nine before it, and the bytes
# do not depend on the machine.
SHORT_GROUPS = {
    "crf": "20",
    "g": "10",
    "bf": "0",
    "threads": "1",
    "x264-params": "cpu-independent=1:open-gop=0:scenecut=0",
}
SUFFIXES = (*ENCODERS, ".gif", ".npy")


def check_output(path: str | os.PathLike, overwrite: bool = False) -> None:
    """Raises UserError when write_video could not write to `path`; call it before long work."""
    target, kind = _target(path)
    check_place(target)
    if kind == "pictures":
        if not target.exists():
            return
        if not target.is_dir():
            raise UserError(f"{target}: is a file; choose another name or a suffix such as .mp4")
        names = [entry.name for entry in target.iterdir()]
        # Only a directory that holds nothing but earlier frames is ever replaced.
        if any(not re.fullmatch(r"\d{6}\.png", name) for name in names):
            raise UserError(f"{target}: holds other files than frames; choose a new directory")
        if names and not overwrite:
            raise UserError(
                f"{target}: already holds frames; choose another name or add --overwrite"
            )
        return
    check_file(target, overwrite)


def write_video(
    path: str | os.PathLike,
    frames: Iterable[np.ndarray],
    fps: float,
    *,
    overwrite: bool = False,
    options: Mapping[str, str] | None = None,
) -> None:
    """Writes `frames`, each (height, width, 3) RGB as uint8 or as float in [0, 1].

    The suffix decides the format: .mp4 (H.264, odd sizes padded to even by repeating the edge),
    .webm (VP9, likewise), .gif (at most 50 frames a second: viewers slow down faster ones, so
    frames are left out), .npy (float32 (frames, height, width, 3), without the rate); a path with
    no suffix or with a trailing slash becomes a directory of 000000.png, 000001.png, ...
    `options` of FFmpeg's encoder take the place of those in ENCODERS (.mp4 and .webm only).
    Missing parent directories are created. Raises UserError for a target that exists (unless
    `overwrite`), an unknown suffix, no frames, frames of several sizes or that are no pictures,
    among them floats outside [0, 1].
    """
    check_output(path, overwrite)
    rate = exact_rate(fps)
    target, kind = _target(path)
    frames = _checked(frames)
    try:
        if kind == "pictures":
            return _write_pictures(target, frames)
        with replacing(target) as temporary:
            if kind == ".npy":
                clip = np.stack([_to_float(frame) for frame in frames])
                with open(temporary, "wb") as file:
                    np.save(file, clip)
            elif kind == ".gif":
                _write_gif(temporary, [_to_bytes(frame) for frame in frames], rate)
            else:
                container, codec, usual, container_options = ENCODERS[kind]
                encoder = container, codec, usual | dict(options or {}), container_options
                _encode(temporary, (_to_bytes(frame) for frame in frames), rate, *encoder)
    except (OSError, av.FFmpegError) as error:
        raise UserError(f"{target}: cannot be written ({error})") from error


def side_by_side(*clips: np.ndarray) -> np.ndarray:
    """Clips (frames, height, width, 3) joined along the width -> float32 in [0, 1].

    A single picture (height, width, 3) is repeated for every frame. Inputs are floats in [0, 1] or
    uint8. Raises UserError for other numbers, and when heights or frame counts differ.
    """
    if not clips:
        raise UserError("nothing to put side by side; give at least one clip")
    parts = [
        _to_float(unit_range(np.asarray(clip), f"clip {number}"))
        for number, clip in enumerate(clips)
    ]
    parts = [part[None] if part.ndim == 3 else part for part in parts]
    counts = {len(part) for part in parts if len(part) != 1} or {1}
    heights = {part.shape[1] for part in parts}
    if len(counts) > 1 or len(heights) > 1:
        shapes = ", ".join(str(part.shape) for part in parts)
        raise UserError(f"clips side by side need equal frame counts and heights, not {shapes}")
    count = counts.pop()
    parts = [np.broadcast_to(part, (count, *part.shape[1:])) for part in parts]
    return np.concatenate(parts, axis=2)


def unit_range(pictures: np.ndarray, what: str) -> np.ndarray:
    """uint8 as it is, or any kind of float as float32 in [0, 1]; rounding may have left it by 1e-3.

    Raises UserError, speaking of `what`, for other types and for floats outside.
    """
    if pictures.dtype == np.uint8:
        return pictures
    if pictures.dtype.kind != "f" and pictures.dtype.name != "bfloat16":
        raise UserError(f"{what} cannot be {pictures.dtype}; give uint8, or floats in [0, 1]")
    pictures = pictures.astype(np.float32)
    if not np.isfinite(pictures).all():
        raise UserError(f"{what} contains values that are not finite (NaN or infinity)")
    if pictures.min(initial=0) < -1e-3 or pictures.max(initial=1) > 1 + 1e-3:
        raise UserError(f"{what} has floats outside [0, 1]; scale them, or give uint8")
    return np.clip(pictures, 0, 1)


def exact_rate(fps: float) -> Fraction:
    """A rate in frames per second as the fraction that is meant: 29.97 -> 30000/1001."""
    if not np.isfinite(fps) or not 0.01 <= fps <= 1000:
        raise UserError(f"{fps} frames per second is not possible; use a rate such as 8 or 29.97")
    simple = Fraction(float(fps)).limit_denominator(100)
    broadcast = Fraction(round(fps * 1.001) * 1000, 1001)
    if simple.denominator != 1 and abs(broadcast - Fraction(float(fps))) < Fraction(1, 200):
        return broadcast
    return simple if abs(simple - fps) < 1e-4 else Fraction(float(fps)).limit_denominator(10000)


def _target(path):
    text = os.fspath(path)
    target = Path(text)
    if not text.endswith(("/", os.sep)) and target.name.lower() in SUFFIXES:
        raise UserError(f"{target}: has a suffix and no name; use one such as out{target.name}")
    if text.endswith(("/", os.sep)) or not target.suffix:
        return target, "pictures"
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"{target}: cannot write {suffix} files; use {', '.join(SUFFIXES)}, or a name without"
            " a suffix for a directory of PNG pictures"
        )
    return target, suffix


def _checked(frames) -> Iterator[np.ndarray]:
    """Frames as arrays, each checked; raises before the first one when there is none."""
    frames = (_checked_frame(np.asarray(frame), number) for number, frame in enumerate(frames))
    first = next(frames, None)
    if first is None:
        raise UserError("there are no frames to write; check the frame range")

    def rest():
        for number, frame in enumerate(frames, 1):
            if frame.shape != first.shape:
                raise UserError(
                    f"frame {number} is {frame.shape[1]}x{frame.shape[0]} pixels, frame 0"
                    f" {first.shape[1]}x{first.shape[0]}; all frames need one size"
                )
            yield frame

    return itertools.chain([first], rest())


def _checked_frame(frame, number):
    if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise UserError(f"frame {number} has shape {frame.shape}; frames are (height, width, 3)")
    return unit_range(frame, f"frame {number}")


def _to_float(frame):
    if frame.dtype == np.uint8:
        return frame.astype(np.float32) / np.float32(255)
    return frame


def _to_bytes(frame):
    return frame if frame.dtype == np.uint8 else np.round(frame * 255).astype(np.uint8)


def _encode(path, frames, rate, container_format, codec, options, container_options):
    first = next(frames)
    height, width = first.shape[:2]
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    # An absolute path: FFmpeg takes 20:15.mp4 for an address.
    path = os.path.abspath(path)
    with av.open(path, "w", format=container_format, options=container_options) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = (
            width + width % 2,
            height + height % 2,
            "yuv420p",
        )
        context = stream.codec_context
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries = context.color_trc = ColorTrc.BT709
        for index, frame in enumerate(itertools.chain([first], frames)):
            frame = av.VideoFrame.from_ndarray(np.pad(frame, pad, mode="edge"), "rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_gif(path, frames, rate):
    """One palette for the whole clip, so that colours do not flicker, and Floyd-Steinberg dither.

    GIF counts hundredths of a second: durations vary by one so that the average rate is right.
    """
    starts, shown = [], []
    for index, frame in enumerate(frames):
        start = round(100 * index / rate)
        if not starts or start - starts[-1] >= 2:
            starts.append(start)
            shown.append(frame)
    end = max(round(100 * len(frames) / rate), starts[-1] + 2)
    durations = [10 * int(d) for d in np.diff([*starts, end])]
    step = -(-len(shown) // 16)
    sample = np.concatenate([frame for frame in shown[::step]], axis=1)
    palette = Image.fromarray(sample).quantize(256, method=Image.Quantize.FASTOCTREE)
    pictures = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        for frame in shown
    ]
    pictures[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        disposal=1,
        optimize=False,
    )


def _write_pictures(target, frames):
    with replacing_directory(target) as temporary:  # check_output saw only frames in the target
        for index, frame in enumerate(frames):
            Image.fromarray(_to_bytes(frame)).save(temporary / f"{index:06d}.png")
