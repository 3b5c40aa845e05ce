"""Keypoints without jitter: the One-Euro filter (Casiez, Roussel and Vogel, CHI 2012).

A low-pass filter of first order whose cutoff rises with the speed of the point: a still point is
held still, a fast one is let through. A filter that only knows the past lags behind; here the clip
is known, so it runs forward and backward and the mean is taken, in which the two lags cancel.
"""

import numpy as np

from animate_jax.pose.tracking import MIN_TRACK_SCORE, box_of

# Chosen on drawn people whose exact keypoints got the noise that BlazePose shows on real clips.
MIN_CUTOFF = 1.5  # Hz, of a point at rest
SPEED_COEFFICIENT = 10.0  # Hz more for every body height per second
SPEED_CUTOFF = 1.0  # Hz, of the measured speed; the authors' value


def smooth_keypoints(
    points: np.ndarray,
    fps: float,
    *,
    min_cutoff: float = MIN_CUTOFF,
    speed_coefficient: float = SPEED_COEFFICIENT,
    speed_cutoff: float = SPEED_CUTOFF,
) -> np.ndarray:
    """One person's points (frames, 134, 3) x, y, score -> the same, positions smoothed over time.

    Scores stay as they are. A point that is not drawn, as its score is too low, stays what it was
    and has no say in its neighbours: the filter begins anew where the point comes back. Speeds
    count in heights of the body per second, so that the result does not depend on the size of the
    picture. Cutoffs are in Hz; a lower `min_cutoff` smooths more, a higher `speed_coefficient`
    follows fast points sooner.
    """
    seen = points[..., 2] > MIN_TRACK_SCORE
    heights = [box[3] - box[1] for frame in points if (box := box_of(frame)).any()]
    height = float(np.median(heights)) if heights else 0.0
    if height <= 0:
        return points.copy()
    settings = fps, min_cutoff, speed_coefficient / height, speed_cutoff
    positions = points[..., :2].astype(np.float64)
    forward = _one_euro(positions, seen, *settings)
    backward = _one_euro(positions[::-1], seen[::-1], *settings)[::-1]
    result = points.copy()
    result[..., :2] = (forward + backward) / 2
    return result


def _one_euro(positions, seen, fps, min_cutoff, speed_coefficient, speed_cutoff):
    """Positions (frames, points, 2) -> the same; a point begins anew after a frame without it."""
    result = positions.copy()
    speed_share = _share(speed_cutoff, fps)
    velocity = np.zeros_like(positions[0])
    for frame in range(1, len(positions)):
        follows = (seen[frame] & seen[frame - 1])[:, None]
        measured = (positions[frame] - result[frame - 1]) * fps
        velocity = np.where(follows, velocity + speed_share * (measured - velocity), 0.0)
        speed = np.linalg.norm(velocity, axis=-1, keepdims=True)
        share = _share(min_cutoff + speed_coefficient * speed, fps)
        filtered = result[frame - 1] + share * (positions[frame] - result[frame - 1])
        result[frame] = np.where(follows, filtered, positions[frame])
    return result


def _share(cutoff, fps):
    """How much of a new value a low-pass filter with this cutoff in Hz takes."""
    return 1 / (1 + fps / (2 * np.pi * cutoff))
