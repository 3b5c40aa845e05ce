"""What surrounds a puppet: the camera that frames a clip, and backgrounds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from animate_jax.pose import skeleton as sk
from data_prep.puppets.body import Body, Camera
from data_prep.puppets.character import generator

BACKGROUNDS = ("flat", "gradient", "room", "stripes", "blobs", "hills")


@dataclass(frozen=True)
class Backdrop:
    """A background drawn at `factor` times the picture's size, and how dark shadows fall on it."""

    image: Image.Image
    factor: int
    shadow: float


def random_camera(seed: int, bodies: Sequence[Body], width: int, height: int) -> Camera:
    """A camera that sees all the bodies in all frames; one time in six only above the knees."""
    rng = generator(seed, "camera")
    near, portrait = rng.uniform(0.78, 1.0), rng.random() < 1 / 6
    shift = rng.uniform(0, 1, 2)
    lows, highs = zip(*(_extent(body, portrait) for body in bodies))
    low, high = np.min(lows, 0), np.max(highs, 0)
    size = np.array([width, height], float)
    scale = 0.96 * near * float((size / (high - low)).min())
    free = size - scale * (high - low)
    corner = free * shift  # where the extent's top left corner goes
    if portrait:
        corner[1] = free[1]
    x, y = corner - scale * low
    return Camera(scale, float(x), float(y), width, height)


def _extent(body, portrait):
    flat = body.joints[..., :2]
    crown = body.head[:, :2] + 1.4 * body.head_axes[:, 1, :2]
    low = np.minimum(flat.min((0, 1)), crown.min(0)) - 0.05
    high = flat.max((0, 1)) + 0.04
    if portrait:
        high[1] = flat[:, [sk.RIGHT_KNEE, sk.LEFT_KNEE], 1].min() + 0.02
        return low, np.maximum(high, low + 0.3)
    return low, high


def random_backdrop(seed: int, camera: Camera, factor: int) -> Backdrop:
    """A background of one of BACKGROUNDS for the camera, `factor` times as large."""
    rng = generator(seed, "background")
    size = camera.width * factor, camera.height * factor
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    colours = _palette(rng)
    horizon = (camera.y - rng.uniform(0.02, 0.16) * camera.scale) * factor
    ground = float(np.clip(horizon, 0, size[1]))  # below the picture in portraits
    image = Image.new("RGB", size, colours[0])
    draw = ImageDraw.Draw(image)
    if kind == "gradient":
        image = _gradient(size, colours[0], colours[1])
    elif kind == "room":
        image = _gradient(size, colours[0], _toward(colours[0], (255, 255, 255), 0.25))
        draw = ImageDraw.Draw(image)
        _furnish(rng, draw, size, ground, colours)
        draw.rectangle((0, ground, *size), colours[2])
        draw.rectangle((0, ground - 0.012 * size[1], size[0], ground), colours[3])
    elif kind == "stripes":
        _stripes(rng, draw, size, _toward(colours[0], colours[1], 0.5))
    elif kind == "blobs":
        image = _blobs(rng, size, colours)
    elif kind == "hills":
        image = _gradient(size, colours[0], _toward(colours[0], (255, 255, 255), 0.5))
        _hills(rng, ImageDraw.Draw(image), size, ground, colours)
    return Backdrop(image, factor, 0.18)


def _palette(rng):
    light = rng.random() < 0.7
    base = rng.uniform(150, 240, 3) if light else rng.uniform(30, 120, 3)
    colours = [base, *(np.clip(base + rng.normal(0, 40, 3), 10, 250) for _ in range(4))]
    return [tuple(int(c) for c in colour) for colour in colours]


def _toward(a, b, t):
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b))


def _gradient(size, top, bottom):
    t = np.linspace(0, 1, size[1])[:, None]
    column = np.array(top) * (1 - t) + np.array(bottom) * t
    rows = np.broadcast_to(np.round(column)[:, None], (size[1], size[0], 3))
    return Image.fromarray(rows.astype(np.uint8))


def _furnish(rng, draw, size, ground, colours):
    """A window or picture, and a cupboard or plant, behind the person."""
    width, height = size
    left, top = rng.uniform(0.05, 0.7) * width, rng.uniform(0.05, 0.2) * height
    right, bottom = left + rng.uniform(0.15, 0.3) * width, top + rng.uniform(0.15, 0.35) * height
    edge = 0.012 * height
    draw.rectangle((left - edge, top - edge, right + edge, bottom + edge), colours[3])
    draw.rectangle((left, top, right, bottom), colours[1])
    if rng.random() < 0.6:
        middle = (left + right) / 2
        draw.rectangle((middle - edge / 3, top, middle + edge / 3, bottom), colours[3])
    left = rng.uniform(-0.05, 0.85) * width
    top = ground - rng.uniform(0.1, 0.4) * height
    draw.rectangle((left, top, left + rng.uniform(0.12, 0.3) * width, ground), colours[4])


def _stripes(rng, draw, size, colour):
    period = rng.uniform(0.08, 0.25) * size[1]
    slope = rng.choice([0.0, 1.0, -0.5])
    for index in range(-20, 40):
        left = index * period
        corners = [(left, 0), (left + period / 2, 0)]
        corners += [(x + slope * size[1], size[1]) for x, _ in reversed(corners)]
        draw.polygon(corners, colour)


def _blobs(rng, size, colours):
    """Discs of colour, out of focus; blurred small and enlarged, which is as soft and faster."""
    small = Image.new("RGB", (96, max(8, round(96 * size[1] / size[0]))), colours[0])
    draw = ImageDraw.Draw(small)
    for index in range(rng.integers(5, 14)):
        center = rng.uniform(0, 1, 2) * small.size
        draw.circle(tuple(center), rng.uniform(5, 22), colours[1 + index % 4])
    blurred = small.filter(ImageFilter.GaussianBlur(rng.uniform(2, 6)))
    return blurred.resize(size, Image.Resampling.BICUBIC)


def _hills(rng, draw, size, ground, colours):
    across = np.linspace(0, size[0], 40)
    for index in range(3):
        rise = (0.25 - 0.08 * index) * size[1]
        wave = np.sin(across / size[0] * rng.uniform(3, 9) + rng.uniform(0, 6))
        ridge = ground - rise * (0.6 + 0.4 * wave)
        line = np.stack([across, ridge], -1).ravel().tolist()
        draw.polygon([*line, size[0], size[1], 0, size[1]], colours[1 + index])
    draw.rectangle((0, ground, *size), colours[4])
