"""Parts of a drawn person, and the view in which their outlines are given."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_prep.puppets.body import GROUPS, Camera
from data_prep.puppets.character import Colour

BEHIND = len(GROUPS)  # a group that is painted before all others


@dataclass(frozen=True)
class Part:
    """One filled polygon or stroked line over a clip.

    group: index into GROUPS, or BEHIND. outline (frames, n, 2) in the view's pixels. line: width
    of a stroke through the outline instead of a filling. border: whether the group's contour runs
    around it; joint: a capsule whose contour stays open at its start. cloth with affine
    (frames, 6): a picture sampled at x' = a x + b y + c, y' = d x + e y + f for the view's pixel
    (x, y). shown (frames,): whether it is drawn at all.
    """

    name: str
    group: int
    outline: np.ndarray
    colour: Colour
    line: float = 0.0
    border: bool = False
    joint: bool = False
    cloth: Image.Image | None = None
    affine: np.ndarray | None = None
    shown: np.ndarray | None = None


@dataclass(frozen=True)
class View:
    """The camera's picture, enlarged `factor` times for smooth edges."""

    camera: Camera
    factor: int

    @property
    def unit(self) -> float:
        """Pixels of the view per body unit."""
        return self.camera.scale * self.factor

    @property
    def cloth_density(self) -> float:
        """Pixels per body unit of the pictures of cloth."""
        return min(self.unit, 1400.0)

    @property
    def size(self) -> tuple[int, int]:
        return self.camera.width * self.factor, self.camera.height * self.factor

    def project(self, points: np.ndarray) -> np.ndarray:
        """Space (..., 3) -> pixels (..., 2), such that pixel centres survive the reduction."""
        return (self.camera.project(points) + 0.5) * self.factor - 0.5


def shade(colour: Colour, amount: float) -> Colour:
    """Darker for amounts below 1, mixed with white above."""
    if amount <= 1:
        return tuple(round(c * amount) for c in colour)
    return tuple(round(c + (255 - c) * (amount - 1)) for c in colour)


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """a at t = 0, b at t = 1."""
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b))
