"""Which part of a clip's pictures a sample shows, for pictures and keypoints alike.

The crop is one for all frames of a sample and its reference, and so is the mirroring: the field
trains that way, because the model then finds the background and the person's proportions in the
reference as they are in the targets, and that is how it is used: the reference is the picture to
be animated.

Coordinates are continuous: pixel i covers i to i + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from animate_jax.pose.keypoints import NECK, resized_points
from animate_jax.pose.skeleton import LEFT_EAR, LEFT_EYE, MIRROR, NOSE, RIGHT_EAR, RIGHT_EYE

MIN_SCORE = 0.3  # what is drawn counts as seen
HEAD = [NOSE, RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR]
# How far a person reaches beyond the points, in distances from neck to nose: hair above the eyes;
# toes and fingers, which not every estimator finds.
HEAD_REACH, BODY_REACH = 1.5, 0.75


@dataclass(frozen=True)
class Crop:
    """A rectangle of the clip's picture and the one it fills in the sample's, the rest is black.

    source, target: (x0, y0, x1, y1), whole and even; size: (width, height) of the sample.
    """

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]
    size: tuple[int, int]
    flip: bool

    def points(self, points: np.ndarray) -> np.ndarray:
        """Keypoints (..., 134, 3) in pixels of the clip -> float32 in pixels of the sample."""
        source, target = np.reshape(self.source, (2, 2)), np.reshape(self.target, (2, 2))
        scale = (target[1] - target[0]) / (source[1] - source[0])
        moved = resized_points(points, scale, target[0] - source[0] * scale).astype(np.float32)
        if self.flip:
            moved[..., 0] = self.size[0] - 1 - moved[..., 0]
        return moved[..., MIRROR, :] if self.flip else moved


def choose_crop(
    body: tuple[float, float, float, float] | None,
    picture: tuple[int, int],
    size: tuple[int, int],
    zoom: tuple[float, float],
    flip: bool,
    rng: np.random.Generator,
) -> Crop:
    """A crop with the proportions of `size`, at random.

    body: (x0, y0, x1, y1) inside the picture that must be seen, or None; picture and size:
    (width, height) of the clip and the sample. The side of the crop is `zoom` times that of the
    largest one inside the picture, and larger where the body asks for it: then it has bars on both
    sides alike where it is larger than the picture.
    """
    x0, y0, x1, y1 = body or (0, 0, 0, 0)
    shape = np.array(size, np.float64)
    largest = np.min(np.array(picture) / shape)
    needed = np.max(np.array([x1 - x0, y1 - y0]) / shape)
    width, height = max(needed, largest * rng.uniform(*zoom)) * shape
    across = _start(width, picture[0], (x0, x1) if body else None, rng)
    down = _start(height, picture[1], (y0, y1) if body else None, rng)
    left, right, first, last = _fit(across, width, picture[0], size[0])
    top, bottom, upper, lower = _fit(down, height, picture[1], size[1])
    return Crop((left, top, right, bottom), (first, upper, last, lower), tuple(size), flip)


def body_box(points: np.ndarray, picture: tuple[int, int]) -> tuple | None:
    """What a person covers in all of the frames: points (frames, 134, 3) -> (x0, y0, x1, y1).

    Includes hair, fingers and toes by a margin; cut to the picture (width, height). None where no
    point is seen.
    """
    seen = points[..., 2] > MIN_SCORE
    if not seen.any():
        return None
    places = np.clip(points[..., :2], 0, picture)
    both = seen[:, NOSE] & seen[:, NECK]
    if both.any():
        unit = np.linalg.norm(places[both, NOSE] - places[both, NECK], axis=-1).max()
    else:  # from behind: a seventh of what is seen
        unit = np.ptp(places[seen], axis=0).max() / 7
    reach = np.full(points.shape[1], BODY_REACH * unit)
    reach[HEAD] = HEAD_REACH * unit
    low = (places - reach[:, None])[seen].min(axis=0)
    high = (places + reach[:, None])[seen].max(axis=0)
    return (*np.clip(low, 0, picture), *np.clip(high, 0, picture))


class Cutter:
    """Draws what a crop shows of decoded frames. Keeps FFmpeg's scaler from frame to frame."""

    def __init__(self, crop: Crop):
        self._crop, self._scaler, self._converter = crop, VideoReformatter(), VideoReformatter()

    def draw(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        """A frame of the clip into `out`, uint8 (height, width, 3) RGB; bars are left as they are.

        4:2:0 video is scaled before it becomes RGB: FFmpeg has fast code for either step, and
        doing both at once takes five times as long.
        """
        x0, y0, x1, y1 = self._crop.target
        part = _cut(frame, self._crop.source, self._crop.flip)
        part = self._scaler.reformat(
            part, width=x1 - x0, height=y1 - y0, interpolation="LANCZOS", threads=1
        )
        part = self._converter.reformat(part, format="rgb24", threads=1)
        if self._crop.flip:
            x0, x1 = self._crop.size[0] - x1, self._crop.size[0] - x0
        out[y0:y1, x0:x1] = part.to_ndarray()


def _cut(frame, rectangle, flip):
    """The rectangle of a frame as a yuv420p frame."""
    if frame.format.name != "yuv420p":
        frame = frame.reformat(format="yuv420p", threads=1)
    x0, y0, x1, y1 = rectangle
    part = av.VideoFrame(x1 - x0, y1 - y0, "yuv420p")
    for plane, target in zip(frame.planes, part.planes):
        shrink = frame.width // plane.width
        pixels = _pixels(plane)[y0 // shrink : y1 // shrink, x0 // shrink : x1 // shrink]
        _pixels(target)[:] = pixels[:, ::-1] if flip else pixels
    part.colorspace, part.color_range = frame.colorspace, frame.color_range
    return part


def _pixels(plane):
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : plane.width]


def _start(length, limit, body, rng):
    """Where a crop of some length begins in a picture of `limit` pixels, along one axis."""
    if length >= limit:
        return (limit - length) / 2
    first, last = 0.0, limit - length
    if body is not None:
        first, last = max(first, body[1] - length), min(last, body[0])
    return rng.uniform(first, max(first, last))


def _fit(start, length, limit, target):
    """Even pixels of the picture from and to, and of the sample from and to, along one axis."""
    limit -= limit % 2
    first, last = _even(max(start, 0)), min(_even(start + length), limit)
    first = min(first, limit - 2)
    last = max(last, first + 2)
    scale = target / length
    if start >= 0:
        return first, last, 0, target
    before, after = _even((first - start) * scale), _even((last - start) * scale)
    after = min(max(after, before + 2), target)
    return first, last, before, after


def _even(value):
    return 2 * round(value / 2)
