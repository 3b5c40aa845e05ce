"""What needs no training: the reference held still, and its limbs moved by the skeleton.

A model that is worth its training beats both.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from animate_jax.pose import skeleton as sk

SEEN = 0.3
# Limbs from the farthest to the nearest: two points each, and how far the limb reaches to the sides
# and beyond its ends, in lengths of the torso.
_HIPS, _SHOULDERS = "hips", "shoulders"  # midway between two points
LIMBS = (
    (sk.RIGHT_HIP, sk.RIGHT_KNEE, 0.22),
    (sk.LEFT_HIP, sk.LEFT_KNEE, 0.22),
    (sk.RIGHT_KNEE, sk.RIGHT_ANKLE, 0.24),
    (sk.LEFT_KNEE, sk.LEFT_ANKLE, 0.24),
    (_SHOULDERS, _HIPS, 0.42),
    (_SHOULDERS, sk.NOSE, 0.45),
    (sk.RIGHT_SHOULDER, sk.RIGHT_ELBOW, 0.16),
    (sk.LEFT_SHOULDER, sk.LEFT_ELBOW, 0.16),
    (sk.RIGHT_ELBOW, sk.RIGHT_WRIST, 0.2),
    (sk.LEFT_ELBOW, sk.LEFT_WRIST, 0.2),
)
_MIDDLES = {
    _HIPS: (sk.RIGHT_HIP, sk.LEFT_HIP),
    _SHOULDERS: (sk.RIGHT_SHOULDER, sk.LEFT_SHOULDER),
}
_SHORTEST = 1.0  # pixels of a limb that has a direction


def copy_reference(reference: np.ndarray, count: int) -> np.ndarray:
    """The picture (height, width, 3) as every one of `count` frames."""
    return np.repeat(reference[None], count, axis=0)


def warp_reference(
    reference: np.ndarray, reference_points: np.ndarray, points: np.ndarray
) -> np.ndarray:
    """Moves the limbs of the reference to where the skeletons have them.

    reference uint8 (height, width, 3), reference_points (134, 3) and points (frames, 134, 3) in its
    pixels -> uint8 (frames, height, width, 3). Each limb is cut out with a soft edge, turned,
    stretched along its length, and laid over a background from which the person is wiped. Limbs
    that either skeleton lacks are left out.
    """
    torso = _torso_length(reference_points)
    if torso is None:
        return copy_reference(reference, len(points))
    limbs = [
        (ends, _limb(reference_points, *ends), reach * torso)
        for *ends, reach in LIMBS
        if _limb(reference_points, *ends) is not None
    ]
    picture = reference.astype(np.float32)
    background = _without_person(reference, limbs)
    frames = []
    for frame in points:
        canvas, scale = background.copy(), (_torso_length(frame) or torso) / torso
        for ends, source, reach in limbs:
            target = _limb(frame, *ends)
            if target is not None:
                _lay(canvas, picture, source, target, reach, scale)
        frames.append(canvas.round().astype(np.uint8))
    return np.stack(frames)


def _point(points, which):
    """(x, y), or None where it is not seen."""
    taken = points[list(_MIDDLES.get(which, (which,)))]
    return taken[:, :2].mean(0) if (taken[:, 2] > SEEN).all() else None


def _limb(points, first, second):
    start, end = _point(points, first), _point(points, second)
    if start is None or end is None or np.linalg.norm(end - start) < _SHORTEST:
        return None
    return start, end


def _torso_length(points):
    limb = _limb(points, _SHOULDERS, _HIPS)
    return None if limb is None else float(np.linalg.norm(limb[1] - limb[0]))


def _lay(canvas, picture, source, target, reach, scale):
    """Draws the limb at `source` of the picture onto the canvas at `target`.

    scale: of the person; sideways and beyond its ends the limb grows by it.
    """
    (a, b), (c, d) = source, target
    margin = reach * scale + 1
    low = np.floor(np.minimum(c, d) - margin).astype(int).clip(0)
    high = np.minimum(np.ceil(np.maximum(c, d) + margin).astype(int), canvas.shape[1::-1])
    if (high <= low).any():
        return
    x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
    length, target_length = np.linalg.norm(b - a), np.linalg.norm(d - c)
    along = (d - c) / target_length
    offset = np.stack([x, y], -1) - c
    forward, side = offset @ along, offset @ np.array([-along[1], along[0]])
    inside = np.clip(forward, 0, target_length)
    # In the reference: along the limb stretched to its length, and by the scale elsewhere.
    beyond = (forward - inside) / scale
    forward, side = inside * length / target_length + beyond, side / scale
    along = (b - a) / length
    places = a + forward[..., None] * along + side[..., None] * np.array([-along[1], along[0]])
    edge = max(1.0, 0.15 * reach)
    alpha = np.clip((reach - np.hypot(beyond, side)) / edge, 0, 1)[..., None]
    part = canvas[low[1] : high[1], low[0] : high[0]]
    part[:] = part * (1 - alpha) + sample_bilinear(picture, places) * alpha


def sample_bilinear(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values (..., channels) at (x, y); pixel i covers i to i + 1, outside is as at the edge."""
    limit = np.array(picture.shape[1::-1]) - 1
    places = np.clip(places - 0.5, 0, limit)
    corner = np.minimum(places.astype(int), np.maximum(limit - 1, 0))
    right, down = np.moveaxis(places - corner, -1, 0)[..., None]
    x, y = np.moveaxis(corner, -1, 0)
    x1, y1 = np.minimum(x + 1, limit[0]), np.minimum(y + 1, limit[1])
    upper = picture[y, x] * (1 - right) + picture[y, x1] * right
    lower = picture[y1, x] * (1 - right) + picture[y1, x1] * right
    return upper * (1 - down) + lower * down


def _without_person(reference, limbs):
    """The reference with everything near a limb filled from what surrounds it, softly."""
    height, width = reference.shape[:2]
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    places, known = np.stack([x, y], -1), np.ones((height, width), bool)
    for _, (a, b), reach in limbs:
        share = np.clip((places - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        known &= np.linalg.norm(places - a - share[..., None] * (b - a), axis=-1) > 1.2 * reach
    filled = np.zeros(reference.shape, np.float32)
    picture = reference * known[..., None].astype(np.float32)
    # From the largest blur, which reaches everywhere, to the smallest, which is near the edges.
    radius = max(height, width) / 2
    while radius >= 2:
        blurred = _blur(picture, radius)
        weights = _blur(known[..., None].repeat(3, -1) * 255.0, radius) / 255
        filled = np.where(weights > 0.1, blurred / np.maximum(weights, 1e-3), filled)
        radius /= 2
    return np.where(known[..., None], reference, filled).clip(0, 255).astype(np.float32)


def _blur(picture, radius):
    blur = ImageFilter.GaussianBlur(radius)
    return np.asarray(Image.fromarray(picture.round().astype(np.uint8)).filter(blur), np.float32)
