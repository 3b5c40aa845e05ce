"""One training sample out of one record: which frames, which crop, then decoding."""

from __future__ import annotations

import numpy as np

from animate_jax.data.clip import decode_frames
from animate_jax.data.config import DataConfig
from animate_jax.data.crop import Cutter, body_box, choose_crop
from animate_jax.errors import UserError
from animate_jax.pose.keypoints import FACE, LEFT_HAND, RIGHT_HAND

SEEN_SCORE = 0.3  # points above it are drawn


def make_sample(record: dict, config: DataConfig, rng: np.random.Generator) -> dict:
    """A record (see `data/records.py`) -> reference uint8 (height, width, 3), its keypoints as
    reference_keypoints float32 (134, 3), frames uint8 (frames, height, width, 3), keypoints float32
    (frames, 134, 3) in pixels of the pictures, and first, the number of the first frame in the
    clip.

    What is random depends on `rng` only. Raises UserError, naming the record, for a clip that
    cannot be decoded or does not fit its keypoints.
    """
    points = record["keypoints"]
    seen = (points[..., 2] > SEEN_SCORE).any(1)
    reference, numbers = choose_frames(seen, config, rng)
    picture, size = (int(record["width"]), int(record["height"])), (config.width, config.height)
    flip = bool(rng.random() < config.flip)
    taken = points[[reference, *numbers]]
    body = {"person": body_box(taken, picture), "pad": (0, 0, *picture), "fill": None}[config.crop]
    crop = choose_crop(body, picture, size, config.zoom, flip, rng)
    pictures = np.zeros((1 + len(numbers), config.height, config.width, 3), np.uint8)  # black bars
    try:
        _draw(record, crop, np.array([reference, *numbers]), pictures)
    except UserError as error:
        raise UserError(f"record {record['name']}: {error}; write the records again") from error
    shown = crop.points(taken)
    if rng.random() < config.body_only:
        for group in (FACE, LEFT_HAND, RIGHT_HAND):
            shown[:, group, 2] = 0
    return {
        "reference": pictures[0],
        "reference_keypoints": shown[0],
        "frames": pictures[1:],
        "keypoints": shown[1:],
        "first": int(numbers[0]),
    }


def choose_frames(
    seen: np.ndarray, config: DataConfig, rng: np.random.Generator
) -> tuple[int, np.ndarray]:
    """The number of the reference frame and those of the frames, in a clip that shows the person
    where `seen`, bool (frames,): the reference does, and so does a single frame."""
    count, there = len(seen), np.flatnonzero(seen)
    if not len(there):
        there = np.arange(count)
    if config.frames == 1:
        target = int(rng.choice(there))
        away = np.abs(there - target)
        far = there[away >= min(config.margin, away.max())]
        return int(rng.choice(far)), np.array([target])
    reference = int(rng.choice(there))
    steps = np.arange(config.frames)
    stride = min(config.stride, (count - 1) // (config.frames - 1))
    if stride:
        return reference, int(rng.integers(count - stride * steps[-1])) + stride * steps
    # Too short at any stride: forwards and backwards, which people do too, rather than standing
    # still or repeating with a jump.
    turn = max(count - 1, 1)
    phase = (int(rng.integers(2 * turn)) + steps) % (2 * turn)
    return reference, np.minimum(phase, 2 * turn - phase) % count


def _draw(record, crop, numbers, pictures):
    """The clip's frames of these numbers into `pictures`; a number may occur more than once."""
    cutter, size = Cutter(crop), (int(record["width"]), int(record["height"]))
    for number, frame in decode_frames(record["clip"], np.unique(numbers).tolist()):
        if (frame.width, frame.height) != size:
            raise UserError(
                f"its pictures have {frame.width}x{frame.height} pixels, its keypoints are for"
                f" {size[0]}x{size[1]}"
            )
        first, *others = np.flatnonzero(numbers == number)
        cutter.draw(frame, pictures[first])
        for other in others:
            pictures[other] = pictures[first]
