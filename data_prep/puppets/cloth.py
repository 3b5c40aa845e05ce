"""Cloth: pictures of patterns and logos, in the coordinates of a limb or the torso."""

import numpy as np
from PIL import Image, ImageDraw

from data_prep.puppets.character import Colour, Garment

# Strokes of letters in a square from (-1, -1) at the top left to (1, 1).
_LETTERS = {
    "A": [[(-0.8, 1), (0, -1), (0.8, 1)], [(-0.45, 0.3), (0.45, 0.3)]],
    "K": [[(-0.6, -1), (-0.6, 1)], [(0.7, -1), (-0.6, 0.1), (0.7, 1)]],
    "M": [[(-0.9, 1), (-0.8, -1), (0, 0.4), (0.8, -1), (0.9, 1)]],
    "X": [[(-0.8, -1), (0.8, 1)], [(0.8, -1), (-0.8, 1)]],
    "Z": [[(-0.8, -1), (0.8, -1), (-0.8, 1), (0.8, 1)]],
}


def cloth(garment: Garment, width: float, height: float, density: float) -> Image.Image:
    """A cut of cloth, width x height body units at `density` pixels per unit."""
    size = max(1, round(width * density)), max(1, round(height * density))
    image = Image.new("RGB", size, garment.colour)
    draw = ImageDraw.Draw(image)
    step = max(2.0, garment.period * density)
    columns, rows = int(size[0] / step) + 2, int(size[1] / step) + 2
    second, pattern = garment.second, garment.pattern
    if pattern == "stripes":
        for row in range(rows):
            draw.rectangle((0, row * step, size[0], (row + 0.45) * step), second)
    elif pattern == "pinstripes":
        for column in range(columns):
            left = (column - 0.25) * step * 0.7
            draw.rectangle((left, 0, left + 0.25 * step, size[1]), second)
    elif pattern == "diagonals":
        for column in range(columns + rows):
            left = column * step * 1.2
            corners = [(left, 0), (left + 0.5 * step, 0)]
            corners += [(x - size[1], size[1]) for x, _ in reversed(corners)]
            draw.polygon(corners, second)
    elif pattern == "checks":
        between = _mixed(garment.colour, second)
        for row in range(rows):
            draw.rectangle((0, row * step, size[0], (row + 0.5) * step), between)
        for column in range(columns):
            for row in range(rows):
                left, top = column * step, row * step
                draw.rectangle((left, top, left + step / 2, top + step / 2), second)
                draw.rectangle((left, top + step / 2, left + step / 2, top + step), between)
    elif pattern == "dots":
        for row in range(rows):
            for column in range(columns):
                x, y = (column + 0.5 * (row % 2)) * step * 0.85, row * step * 0.85
                draw.circle((x, y), 0.24 * step, second)
    elif pattern == "zigzag":
        for row in range(rows):
            across = np.arange(2 * columns + 1) * step / 2
            down = row * step * 1.2 + step * 0.45 * (np.arange(2 * columns + 1) % 2)
            line = np.stack([across, down], -1)
            draw.line(line.ravel().tolist(), second, max(1, round(0.3 * step)))
    return image


def add_logo(image: Image.Image, logo: str, colour: Colour, center: tuple, size: float) -> None:
    """Draws the logo, `size` pixels in radius, into the picture of a cloth."""
    draw = ImageDraw.Draw(image)
    x, y = center
    if logo == "disc":
        draw.circle(center, size * 0.9, colour)
    elif logo == "star":
        angle = np.pi * np.arange(10) / 5 - np.pi / 2
        radius = size * np.where(np.arange(10) % 2, 0.45, 1.1)
        draw.polygon(_around(center, np.cos(angle) * radius, np.sin(angle) * radius), colour)
    elif logo == "heart":
        t = np.linspace(0, 2 * np.pi, 40)
        across = 16 * np.sin(t) ** 3
        down = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        draw.polygon(_around(center, across * size / 16, down * size / 16), colour)
    elif logo == "bolt":
        shape = np.array(
            [(0.2, -1.1), (-0.6, 0.2), (-0.1, 0.2), (-0.3, 1.1), (0.6, -0.3), (0.1, -0.3)]
        )
        draw.polygon(_around(center, *(shape * size).T), colour)
    elif logo in _LETTERS:
        for stroke in _LETTERS[logo]:
            points = [(x + a * size, y + b * size) for a, b in stroke]
            draw.line(points, colour, max(1, round(0.4 * size)), joint="curve")


def placed(origin, u, v, u0: float, v0: float) -> np.ndarray:
    """Affine maps (frames, 6) from a view to a cut of cloth, as Part keeps them.

    origin (frames, 2): the view's pixel that shows the cut's (u0, v0). u, v (frames, 2): by how
    much the cut's coordinates grow per pixel to the right and down.
    """
    rows = []
    for vector, constant in ((u, u0), (v, v0)):
        rows += [vector[:, 0], vector[:, 1], constant - (vector * origin).sum(-1)]
    return np.stack(rows, -1)


def _around(center, across, down):
    return np.stack([center[0] + across, center[1] + down], -1).ravel().tolist()


def _mixed(a, b):
    return tuple((x + y) // 2 for x, y in zip(a, b))
