"""Where a video is cut: at changes of scene, found by PySceneDetect, and evenly where too long.

PySceneDetect's adaptive detector compares each change of the picture (hue, saturation, lightness)
with the changes around it, so that fast dancing or a moving camera is no cut. Dissolves are not
found.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from animate_jax.errors import UserError

SURVEY_SIDE = 192  # pixels; the longer side of the pictures that are compared
MOVEMENT_SECONDS = 0.5  # between two pictures compared for movement
MOVED_LEVELS = 8  # of 255; a pixel that changes more has moved
STILL_PIXELS = 0.003  # a pair in which fewer pixels moved is still; drawn people move 0.015
MOVING_PAIRS = 0.1  # a scene in which fewer pairs move is static


@dataclass(frozen=True)
class Scene:
    """Frames begin..end-1 of a video, and whether anything moves in them."""

    begin: int
    end: int
    static: bool

    def __len__(self) -> int:
        return self.end - self.begin


def cut_detector():
    """PySceneDetect's detector of cuts, and its class of times. Raises UserError without it."""
    try:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector
    except ImportError as error:
        raise UserError(
            "cutting videos needs PySceneDetect; run: pip install 'animate-jax[data]'"
        ) from error
    # Cuts close to each other all count: what lies between is dropped as too short.
    return AdaptiveDetector(min_scene_len=1), FrameTimecode


def find_scenes(frames: Iterable[np.ndarray], fps: float, max_seconds: float) -> list[Scene]:
    """Cuts uint8 (height, width, 3) RGB frames into scenes of at most `max_seconds`.

    Every frame belongs to one scene. A longer scene becomes parts of equal length. Static is a
    scene in which, of all pairs of frames half a second apart, less than a tenth show movement:
    more than 0.3 % of the pixels of a grey picture 96 pixels long differ by more than 8 of 255,
    after the change of the whole picture (its median) is taken out. So noise and flicker are no
    movement, and neither is a single odd frame.
    """
    detector, time_of = cut_detector()
    lag = max(1, round(fps * MOVEMENT_SECONDS))
    earlier: deque[np.ndarray] = deque(maxlen=lag + 1)
    cuts, moving = [], []
    for index, frame in enumerate(frames):
        small = _small(frame)
        bgr = np.ascontiguousarray(np.asarray(small)[..., ::-1])
        cuts += [cut.frame_num for cut in detector.process_frame(time_of(index, fps), bgr)]
        earlier.append(np.asarray(small.convert("L").reduce(2), np.int16))
        moving.append(len(earlier) > lag and _moved(earlier[0], earlier[-1]) > STILL_PIXELS)
    bounds = sorted({0, *cuts, len(moving)})
    longest = max(1, round(max_seconds * fps))
    scenes = []
    for begin, end in zip(bounds, bounds[1:], strict=False):
        parts = max(1, math.ceil((end - begin) / longest))
        edges = [begin + round(i * (end - begin) / parts) for i in range(parts + 1)]
        for first, last in zip(edges, edges[1:], strict=False):
            pairs = moving[first + lag : last]  # moving[i] compares frames i - lag and i
            static = bool(pairs) and sum(pairs) < MOVING_PAIRS * len(pairs)
            scenes.append(Scene(first, last, static))
    return scenes


def _small(frame):
    height, width = frame.shape[:2]
    scale = min(1.0, SURVEY_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(frame).resize(size, Image.Resampling.BOX)


def _moved(before, after):
    """The share of pixels that changed."""
    change = after - before
    return float(np.mean(np.abs(change - np.median(change)) > MOVED_LEVELS))
