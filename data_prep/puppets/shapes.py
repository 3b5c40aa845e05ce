"""Outlines for all frames of a clip at once: polygons (frames, n, 2) from points (frames, 2)."""

import numpy as np

_CAP = np.linspace(-np.pi / 2, np.pi / 2, 9)
_CIRCLE = np.linspace(0, 2 * np.pi, 25)[:-1]


def directions(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along and to the right of start -> end, and lengths (frames, 1)."""
    along = end - start
    length = np.linalg.norm(along, axis=-1, keepdims=True)
    along = np.where(length > 1e-6, along / np.maximum(length, 1e-6), [0.0, 1.0])
    return along, length


def across(along: np.ndarray) -> np.ndarray:
    """Vectors turned by a quarter, (x, y) -> (-y, x)."""
    return np.stack([-along[..., 1], along[..., 0]], -1)


def capsule(start, end, start_radius, end_radius, *, flat_end=False) -> np.ndarray:
    """A limb with round ends, or cut off straight at its end."""
    along, _ = directions(start, end)
    side = across(along)
    radii = (np.reshape(r, (-1, 1, 1)) for r in (start_radius, end_radius))
    start_radius, end_radius = radii
    sine, cosine = np.sin(_CAP)[:, None], np.cos(_CAP)[:, None]
    lead = cosine * along[:, None] + sine * side[:, None]
    last = sine[[0, -1]] * side[:, None] if flat_end else lead
    back = -cosine * along[:, None] - sine * side[:, None]
    return np.concatenate(
        [end[:, None] + end_radius * last, start[:, None] + start_radius * back], 1
    )


def ellipse(center, x_axis, y_axis) -> np.ndarray:
    """Axes are vectors (frames, 2)."""
    sine, cosine = np.sin(_CIRCLE)[:, None], np.cos(_CIRCLE)[:, None]
    return center[:, None] + cosine * x_axis[:, None] + sine * y_axis[:, None]


def smooth(controls: np.ndarray, pieces: int = 5) -> np.ndarray:
    """The closed Catmull-Rom curve through (frames, n, 2) -> (frames, n * pieces, 2)."""
    t = (np.arange(pieces) / pieces)[:, None]
    weights = np.concatenate(
        [
            (-t + 2 * t**2 - t**3) / 2,
            (2 - 5 * t**2 + 3 * t**3) / 2,
            (t + 4 * t**2 - 3 * t**3) / 2,
            (-(t**2) + t**3) / 2,
        ],
        axis=1,
    )
    around = np.stack([np.roll(controls, shift, axis=1) for shift in (1, 0, -1, -2)], 2)
    curve = np.einsum("pk,fnkd->fnpd", weights, around)
    return curve.reshape(len(controls), -1, 2)


def hull(points: np.ndarray) -> np.ndarray:
    """Convex hulls (frames, n, 2), the last corner repeated where there are fewer."""
    result = np.empty_like(points)
    for frame, cloud in enumerate(points.tolist()):
        corners = _hull(sorted(map(tuple, cloud)))
        result[frame] = corners + [corners[-1]] * (len(cloud) - len(corners))
    return result


def _hull(cloud):
    halves = []
    for ordered in (cloud, cloud[::-1]):
        half = []
        for point in ordered:
            while len(half) > 1 and _turn(half[-2], half[-1], point) <= 0:
                half.pop()
            half.append(point)
        halves += half[:-1]
    return halves


def _turn(a, b, c):
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
