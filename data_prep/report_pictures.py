"""Strips of frames from clips, plain or with the skeleton over them, as JPEG data URIs."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from animate_jax.errors import UserError
from animate_jax.pose.keypoints import load_keypoints
from animate_jax.pose.render import draw_skeletons
from animate_jax.pose.tracking import box_of
from animate_jax.video.reading import read_frames
from data_prep.clip_directory import Clip

PLAIN_COUNT, PLAIN_SIDE = 4, 160  # frames of a strip, evenly over the clip, and their longer side
OVERLAY_COUNT, OVERLAY_WIDTH, OVERLAY_HEIGHT = 3, 195, 260
MARGIN = 0.12  # around the person, in sizes of the person
GAP, BETWEEN = 1, (16, 18, 22)  # pixels between frames, and their colour
QUALITY = 76
DIMMED = 0.75  # brightness of a frame under its skeleton


@dataclass(frozen=True)
class Strip:
    """An <img> source with its size in pixels."""

    uri: str
    width: int
    height: int


def strips(clip: Clip, *, plain: bool, overlay: bool) -> tuple[Strip | None, Strip | None]:
    """The strips of a clip that are asked for; it is decoded once. Raises UserError.

    A plain strip shows whole frames, one with skeletons what is around the person.
    """
    for_plain = _chosen(clip, PLAIN_COUNT) if plain else []
    for_overlay = _chosen(clip, OVERLAY_COUNT) if overlay else []
    wanted = {*for_plain, *for_overlay}
    frames = {i: frame for i, frame in enumerate(read_frames(clip.path)) if i in wanted}
    if missing := wanted - set(frames):
        raise UserError(f"{clip.path}: frame {min(missing)} cannot be read; write the clip again")
    pictures = {i: Image.fromarray(frame) for i, frame in frames.items()}
    first = second = None
    if plain:
        first = _strip([_fit(pictures[i], PLAIN_SIDE) for i in for_plain])
    if overlay:
        points = load_keypoints(clip.keypoints_path).points[for_overlay]
        second = _strip(_with_skeletons([pictures[i] for i in for_overlay], points))
    return first, second


def _chosen(clip, count):
    return [int((i + 0.5) / count * clip.frames) for i in range(count)]


def _with_skeletons(pictures, points):
    box = _person_box(points, pictures[0].size)
    scale = OVERLAY_HEIGHT / (box[3] - box[1])
    points = np.where(points[..., 2:] > 0, (points - [*box[:2], 0]) * [scale, scale, 1], 0)
    drawn = np.asarray(draw_skeletons(points, OVERLAY_HEIGHT, OVERLAY_WIDTH))
    result = []
    for picture, skeleton in zip(pictures, drawn, strict=True):
        size = OVERLAY_WIDTH, OVERLAY_HEIGHT
        small = picture.crop(box).resize(size, Image.Resampling.LANCZOS)  # black outside
        lines = skeleton.max(-1, keepdims=True) > 0
        frame = np.where(lines, skeleton * 255, np.asarray(small) * DIMMED)
        result.append(Image.fromarray(frame.round().astype(np.uint8)))
    return result


def _person_box(points, size):
    """Whole pixels x0, y0, x1, y1 around the person in all frames, with an overlay's aspect.

    It stays within the picture as far as it can.
    """
    boxes = np.stack([box_of(frame) for frame in points])
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    if len(boxes):
        low, high = np.maximum(boxes[:, :2].min(0), 0), np.minimum(boxes[:, 2:].max(0), size)
    else:
        low, high = np.zeros(2), np.array(size, float)
    sides = (high - low) + 2 * MARGIN * (high - low).max()
    shape = np.array([OVERLAY_WIDTH, OVERLAY_HEIGHT])
    sides = np.ceil((sides / shape).max() * shape)
    centre = (low + high) / 2
    inside = np.clip(centre, sides / 2, np.maximum(size - sides / 2, sides / 2))
    start = np.where(sides <= size, inside, np.array(size) / 2) - sides / 2
    start = np.floor(start).astype(int)
    return (*start.tolist(), *(start + sides.astype(int)).tolist())


def _fit(picture, side):
    scale = side / max(picture.size)
    size = [max(1, round(scale * length)) for length in picture.size]
    return picture.resize(size, Image.Resampling.LANCZOS)


def _strip(pictures):
    width, height = pictures[0].size
    whole = Image.new("RGB", ((width + GAP) * len(pictures) - GAP, height), BETWEEN)
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i * (width + GAP), 0))
    buffer = io.BytesIO()
    whole.save(buffer, "JPEG", quality=QUALITY, subsampling=0)  # thin lines keep their colours
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return Strip(f"data:image/jpeg;base64,{encoded}", *whole.size)
