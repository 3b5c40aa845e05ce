"""Motions: the directions of 17 bones over time, without any body.

Directions are in the camera's frame: x to the right of the picture, y DOWN, z towards the camera.
A direction is kept as two angles in radians: its angle in the picture (0 to the right, pi/2 down)
and its tilt out of the picture (positive towards the camera), which shows as foreshortening.
Paths are in leg lengths of whoever performs them, so that any body can perform any motion.
"""

from dataclasses import dataclass

import numpy as np

BONES = (
    "spine",  # hip line to shoulder line
    "hips",  # right hip to left hip
    "shoulders",  # right shoulder to left shoulder
    "head_up",
    "head_forward",
    "right_upper_arm",
    "right_forearm",
    "right_hand",
    "left_upper_arm",
    "left_forearm",
    "left_hand",
    "right_thigh",
    "right_shin",
    "right_foot",  # heel to toes
    "left_thigh",
    "left_shin",
    "left_foot",
)
BONE = {name: index for index, name in enumerate(BONES)}


@dataclass(frozen=True)
class Motion:
    """angles (frames, 17, 2): in the picture, and tilt, per bone of BONES, in radians.

    root (frames, 2): path to the right and height of the lowest foot above the ground, in leg
    lengths. face (frames, 2): how far eyes are closed and the mouth is open, 0 to 1.
    """

    kind: str
    fps: float
    angles: np.ndarray
    root: np.ndarray
    face: np.ndarray

    def __len__(self) -> int:
        return len(self.angles)

    @property
    def directions(self) -> np.ndarray:
        """Unit vectors (frames, 17, 3)."""
        angle, tilt = self.angles[..., 0], self.angles[..., 1]
        flat = np.cos(tilt)
        return np.stack([flat * np.cos(angle), flat * np.sin(angle), np.sin(tilt)], -1)


def angles_of(directions: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) of any length -> angles (..., 2) as Motion keeps them."""
    unit = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    tilt = np.arcsin(np.clip(unit[..., 2], -1, 1))
    return np.stack([np.arctan2(unit[..., 1], unit[..., 0]), tilt], -1)
