"""Near duplicates: clips that show the same moments, encoded, resized or trimmed differently.

A hash of single pictures cannot tell two takes of a person before the same background from one
take encoded twice, because the background decides it. So clips are compared as what they are, a
background and a movement: thumbnails are aligned in time, and then both the mean pictures and what
moves before them must agree. Measured on two scenes filmed by four cameras and on eight puppets:
where a clip is encoded again at half the size and CRF 36, or is trimmed by 5 % at either end, or
both, the mean pictures differ by at most 5 levels of 255 in any place, and the movement by at most
6 % of its power or 0.65 levels; other moments of the same person (halves of a clip, its reverse)
differ by at least 44 % of it and 1.2 levels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tqdm import tqdm

SIDE = 16  # pixels of a thumbnail
RATE = 30  # thumbnails a second
STEP = 4  # every so many of them decide on the alignment
MIN_OVERLAP = 0.85  # of the longer clip
MAX_BACKGROUND = 6.0  # root mean square of the mean pictures' difference, in levels of 255
MAX_PLACE = 8.0  # the largest difference of the aligned mean pictures: a person who stands still
MAX_MOVEMENT = 0.2  # power of the movements' difference by power of the movement
MIN_MOVEMENT = 0.7  # levels; differences below it are the encoder's


@dataclass(frozen=True)
class Thumbnails:
    """A clip in short: grey uint8 (n, 16 * 16) at `rate` a second, and the mean picture.

    mean: float32 (16 * 16 * 3) in levels of 255. frames: how many the clip has.
    """

    grey: np.ndarray
    mean: np.ndarray
    rate: float
    frames: int

    @property
    def seconds(self) -> float:
        return len(self.grey) / self.rate

    def steady(self) -> np.ndarray:
        """float32 (m, 16 * 16): the grey thumbnails at RATE a second, each the nearest in time."""
        count = max(1, round(self.seconds * RATE))
        nearest = ((np.arange(count) + 0.5) / RATE * self.rate).astype(int)
        return self.grey[np.minimum(nearest, len(self.grey) - 1)].astype(np.float32)


def thumbnails(frames: Iterable[np.ndarray], fps: float) -> Thumbnails:
    """Of uint8 (height, width, 3) RGB frames, of which there must be one at least."""
    stride = max(1, round(fps / RATE))
    grey, total, count = [], np.zeros(SIDE * SIDE * 3), 0
    for count, frame in enumerate(frames, 1):
        if (count - 1) % stride == 0:
            small = Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BOX)
            grey.append(np.asarray(small.convert("L")).reshape(-1))
            total += np.asarray(small).reshape(-1)
    mean = (total / len(grey)).astype(np.float32)
    return Thumbnails(np.stack(grey), mean, fps / stride, count)


def near_duplicates(clips: Sequence[Thumbnails], *, progress: bool = False) -> dict[int, int]:
    """{index of a clip: index of the one before it that it repeats}.

    The first of several is kept, and repeats are not compared with.
    """
    if not clips:
        return {}
    seconds = np.array([clip.seconds for clip in clips])
    means = np.stack([clip.mean for clip in clips])
    sizes = np.square(means).sum(axis=1)
    kept, repeats = np.ones(len(clips), bool), {}
    bar = tqdm(clips, desc="comparing", unit="clip", disable=not progress)
    for index, clip in enumerate(bar):
        before = slice(0, index)
        overlap = np.minimum(seconds[before], clip.seconds)
        long_enough = overlap >= MIN_OVERLAP * np.maximum(seconds[before], clip.seconds)
        apart = sizes[before] + sizes[index] - 2 * means[before] @ clip.mean
        similar = apart < MAX_BACKGROUND**2 * clip.mean.size
        candidates = np.flatnonzero(kept[before] & long_enough & similar)
        first = next((j for j in candidates if is_near_duplicate(clips[j], clip)), None)
        if first is not None:
            kept[index] = False
            repeats[index] = int(first)
    return repeats


def is_near_duplicate(one: Thumbnails, other: Thumbnails) -> bool:
    """Whether background and movement agree at the best alignment in time."""
    if np.sqrt(np.square(one.mean - other.mean).mean()) >= MAX_BACKGROUND:
        return False
    first, second = one.steady(), other.steady()
    shift = _best_shift(first, second)
    if shift is None:
        return False
    length = min(len(first) - max(-shift, 0), len(second) - max(shift, 0))
    first = first[max(-shift, 0) :][:length]
    second = second[max(shift, 0) :][:length]
    backgrounds = first.mean(axis=0), second.mean(axis=0)
    if np.abs(backgrounds[0] - backgrounds[1]).max() >= MAX_PLACE:
        return False
    movements = first - backgrounds[0], second - backgrounds[1]
    difference = np.square(movements[0] - movements[1]).mean()
    power = min(np.square(movement).mean() for movement in movements)
    return bool(difference < max(MAX_MOVEMENT * power, MIN_MOVEMENT**2))


def _best_shift(first, second):
    """The s for which first[i] is most like second[i + s]; None where lengths differ too much."""
    longer = max(len(first), len(second))
    furthest = int((1 - MIN_OVERLAP) * longer) + 1
    shifts = np.arange(-furthest, furthest + 1)
    overlaps = np.minimum(len(first), len(second) - shifts) - np.maximum(0, -shifts)
    shifts = shifts[overlaps >= MIN_OVERLAP * longer]
    if len(shifts) == 0:
        return None
    chosen = first[::STEP]
    products = chosen @ second.T
    distances = np.square(chosen).sum(1)[:, None] + np.square(second).sum(1) - 2 * products
    rows = np.arange(len(chosen))
    columns = rows * STEP + shifts[:, None]
    inside = (columns >= 0) & (columns < len(second))
    met = np.where(inside, distances[rows, np.clip(columns, 0, len(second) - 1)], 0)
    return int(shifts[np.argmin(met.sum(axis=1) / inside.sum(axis=1))])
