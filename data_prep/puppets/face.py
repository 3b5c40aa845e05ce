"""The head as a solid: an ellipsoid with a narrower chin, and the 68 face points on it.

Head coordinates are (left, up, forward) in units of the head's half width, half height and half
width; places are given by longitude (0 forward, positive to the person's left) and latitude in
degrees.
"""

import numpy as np

from data_prep.puppets.character import Face

EAR_LATITUDE = -4.0


def on_head(longitude, latitude, radius=1.0) -> np.ndarray:
    """Degrees (n,) each -> head coordinates (n, 3)."""
    longitude, latitude = np.broadcast_arrays(np.deg2rad(longitude), np.deg2rad(latitude))
    up = np.sin(latitude)
    ring = np.cos(latitude) * chin_taper(up)
    solid = np.stack([ring * np.sin(longitude), up, ring * np.cos(longitude)], -1)
    return solid * np.expand_dims(radius, -1)


def chin_taper(up: np.ndarray) -> np.ndarray:
    """How much narrower than an ellipsoid the head is at heights -1 (chin) .. 1 (crown)."""
    return 1 - 0.16 * np.clip(-up, 0, 1) ** 2


def face_points(face: Face, closed: np.ndarray, opened: np.ndarray) -> np.ndarray:
    """The 68 points in head coordinates (frames, 68, 3); closed eyes and open mouth are 0 to 1."""
    points = np.broadcast_to(_still(face), (len(closed), 68, 3)).copy()
    return np.concatenate(
        [points[:, :36], _eyes(face, closed), _mouth(face, opened)],
        axis=1,
    )


def _still(face):
    """Jaw, brows and nose of a still face; the rest is replaced."""
    along = np.linspace(-1, 1, 17)
    jaw = on_head(along * 80, -78 + 72 * np.abs(along) ** 1.4)
    inwards = np.linspace(0, 1, 5)
    distance = face.eye_distance
    height = 24 + 6 * np.sin(np.pi * inwards) - 60 * face.brow_slant * (inwards - 0.5)
    right = on_head(distance * (-42 + 32 * inwards), height)
    left = right[::-1] * [-1, 1, 1]
    bridge = on_head(np.zeros(4), np.linspace(8, -14, 4), 1 + 0.14 * face.nose * np.arange(4) / 3)
    base = on_head(np.linspace(-8, 8, 5) * face.nose, -18 - np.array([0, 1, 2, 1, 0]), 1.03)
    return np.concatenate([jaw, right, left, bridge, base, np.zeros((32, 3))])


def _eyes(face, closed):
    """Points 36..47 (frames, 12, 3): each eye's corner, upper lid, corner, lower lid."""
    side = np.array([-1, -0.4, 0.4, 1, 0.4, -0.4])
    lid = np.array([0, 1, 1, 0, -1, -1])
    width, height = 8.5 * face.eye_size, 7.5 * face.eye_size * (1 - 0.9 * closed[:, None])
    latitude = 7 + height * lid
    eyes = [
        on_head(center * face.eye_distance + width * side, latitude, 1.0) for center in (-25, 25)
    ]
    return np.concatenate(eyes, 1)


def _mouth(face, opened):
    """Points 48..67 (frames, 20, 3): the outer ring of 12 and the inner ring of 8."""
    width = 17 * face.mouth_width
    top = np.linspace(-1, 1, 7)
    outer = np.concatenate([top, top[-2:0:-1]])
    inner = 0.8 * np.concatenate([np.linspace(-1, 1, 5), np.linspace(0.5, -0.5, 3)])
    upper = np.concatenate([3.2 * (1 - top**2), np.zeros(5)])
    lower = np.concatenate([np.zeros(7), -4.2 * (1 - top[-2:0:-1] ** 2)])
    opening = 13 * opened[:, None]
    smile = 120 * face.smile
    outer_height = upper + lower * (1 + opening / 5)
    bend = np.concatenate([np.zeros(5), -(1 - np.linspace(0.5, -0.5, 3) ** 2)])
    inner_height = opening * bend * 0.8
    heights = np.concatenate([outer_height, inner_height], 1)
    across = np.concatenate([outer, inner])
    return on_head(across * width, -37 + heights + smile * across**2)
