"""What a report says of a clip's keypoints, in numbers that do not depend on size or rate."""

from dataclasses import dataclass

import numpy as np

from animate_jax.pose.keypoints import BODY, FEET, Keypoints
from animate_jax.pose.tracking import box_of

CONFIDENT = 0.3  # scores above this count, as where skeletons are drawn


@dataclass(frozen=True)
class Measures:
    """confident: share of the 18 body points, over all frames, with a score above 0.3. height: of
    the person by that of the picture, median over frames; 0 where nobody is seen. movement: mean
    speed of confident points in heights of the person per second."""

    confident: float
    height: float
    movement: float


def measure(keypoints: Keypoints) -> Measures:
    points = keypoints.points[:, BODY.start : FEET.stop]
    sure = points[..., 2] > CONFIDENT
    boxes = np.stack([box_of(frame) for frame in points])
    heights = (boxes[:, 3] - boxes[:, 1])[sure.any(axis=1)]
    height = float(np.median(heights)) if len(heights) else 0.0
    steps = np.linalg.norm(np.diff(points[..., :2], axis=0), axis=-1)
    steps = steps[sure[1:] & sure[:-1]]
    speed = float(steps.mean()) * keypoints.fps if len(steps) else 0.0
    return Measures(
        confident=float(sure[:, BODY].mean()),
        height=height / keypoints.height,
        movement=speed / height if height > 0 else 0.0,
    )
