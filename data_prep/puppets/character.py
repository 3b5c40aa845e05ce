"""Characters: everything about a drawn person but the motion, drawn at random from a seed.

Lengths are in body units: 1 is roughly the height of an average character. Colours are (red,
green, blue) from 0 to 255. "Left" is the person's left.
"""

import colorsys
import zlib
from dataclasses import dataclass

import numpy as np

from animate_jax.errors import UserError

Colour = tuple[int, int, int]

PATTERNS = ("plain", "stripes", "pinstripes", "diagonals", "checks", "dots", "zigzag")
LOGOS = ("none", "star", "heart", "disc", "bolt", "A", "K", "M", "X", "Z")
HAIR_STYLES = ("bald", "short", "fringe", "bob", "long", "ponytail", "bun", "afro", "mohawk")
HATS = ("none", "cap", "beanie")
BOTTOMS = ("trousers", "shorts", "skirt", "dress")
BEARDS = ("none", "full", "moustache")

_SKINS = (
    (255, 224, 196),
    (246, 202, 164),
    (229, 176, 132),
    (203, 143, 98),
    (165, 108, 70),
    (124, 78, 50),
    (88, 55, 38),
)
_HAIRS = (
    (32, 26, 28),
    (62, 40, 30),
    (104, 64, 38),
    (150, 96, 50),
    (214, 172, 92),
    (182, 78, 38),
    (150, 150, 156),
    (232, 228, 220),
)


@dataclass(frozen=True)
class Build:
    """Proportions, all lengths in body units."""

    head: float  # half the head's height
    head_width: float  # half its width
    neck: float  # between shoulder line and chin
    torso: float  # hip line to shoulder line
    shoulders: float  # half the distance of the shoulder joints
    hips: float  # half the distance of the hip joints
    waist: float  # half the width of the waist
    upper_arm: float
    forearm: float
    hand: float
    thigh: float
    shin: float
    foot: float
    arm_width: float  # radius of the upper arm
    leg_width: float  # radius of the thigh

    @property
    def leg(self) -> float:
        """Hip to ankle: the unit in which motions measure paths and jumps."""
        return self.thigh + self.shin


@dataclass(frozen=True)
class Garment:
    """A cloth: its colours and pattern; `period` is the pattern's size in body units."""

    colour: Colour
    second: Colour
    pattern: str = "plain"
    period: float = 0.06


@dataclass(frozen=True)
class Face:
    """Features, sizes relative to an average face."""

    eye_size: float
    eye_distance: float
    iris: Colour
    brow_weight: float
    brow_slant: float
    nose: float
    mouth_width: float
    smile: float
    lips: Colour
    blush: bool
    glasses: str  # none, round, square, shades
    glasses_colour: Colour
    beard: str


@dataclass(frozen=True)
class Character:
    """A person. sleeves and hems count in limb segments: 0 none, 1 to the elbow or knee, 2 whole.

    sleeves: (right, left). skirt_length: of skirts and dresses, 1 is knee-long. bag: none,
    shoulder (a strap across the chest) or belt; bag_side: +1 left, -1 right.
    odd_sleeve: whether the left sleeve is of the second garment's cloth.
    """

    seed: int
    build: Build
    skin: Colour
    hair_style: str
    hair: Colour
    hat: str
    hat_colour: Colour
    face: Face
    top: Garment
    bottom: Garment
    bottom_kind: str
    skirt_length: float
    skirt_flare: float
    hem: float
    sleeves: tuple[float, float]
    odd_sleeve: bool
    logo: str
    logo_colour: Colour
    open_jacket: Colour | None
    belt: Colour | None
    scarf: Colour | None
    bag: str
    bag_side: int
    bag_colour: Colour
    patch: Colour | None  # on the right knee
    wristband: Colour | None  # on the left wrist
    socks: Colour | None
    shoes: Colour
    soles: Colour
    boots: bool


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Random numbers for one purpose. Raises UserError unless seed is in 0 .. 2**63 - 1."""
    if not 0 <= int(seed) < 2**63:
        raise UserError(f"seed {seed} is not possible; use a number from 0 to 2**63 - 1")
    return np.random.default_rng([int(seed), zlib.crc32(purpose.encode())])


def random_character(seed: int) -> Character:
    """The character of a seed. Raises UserError for a seed that generator refuses."""
    rng = generator(seed, "character")
    build = _build(rng)
    skin = _vary(rng, _SKINS[rng.integers(len(_SKINS))], 8)
    hair = _vary(rng, _HAIRS[rng.integers(len(_HAIRS))], 10)
    if rng.random() < 0.12:
        hair = _vivid(rng)
    top, bottom = _garment(rng), _garment(rng, calm=True)
    while _distance(top.colour, bottom.colour) < 60:
        bottom = _garment(rng, calm=True)
    sleeve = float(rng.choice([0.0, 0.45, 0.6, 1.0, 1.35, 2.0], p=[0.15, 0.2, 0.2, 0.1, 0.1, 0.25]))
    one_sleeve = rng.random() < 0.12
    bottom_kind = _pick(rng, BOTTOMS, [0.45, 0.2, 0.17, 0.18])
    hair_style = _pick(rng, HAIR_STYLES, [0.07, 0.18, 0.15, 0.14, 0.15, 0.1, 0.09, 0.08, 0.04])
    hat = _pick(rng, HATS, [0.78, 0.12, 0.1])
    if hair_style in ("afro", "mohawk", "bun"):
        hat = "none"
    return Character(
        seed=int(seed),
        build=build,
        skin=skin,
        hair_style=hair_style,
        hair=hair,
        hat=hat,
        hat_colour=_vivid(rng),
        face=_face(rng, skin, hair),
        top=top,
        bottom=bottom,
        bottom_kind=bottom_kind,
        skirt_length=float(rng.uniform(0.55, 1.5)),
        skirt_flare=float(rng.uniform(0.02, 0.1)),
        hem=2.0 if bottom_kind == "trousers" else float(rng.uniform(0.35, 0.9)),
        sleeves=(sleeve, 2.0 - sleeve if one_sleeve else sleeve),
        odd_sleeve=bool(rng.random() < 0.15),
        logo=_pick(rng, LOGOS, [0.5, *[0.5 / 9] * 9]) if top.pattern == "plain" else "none",
        logo_colour=top.second,
        open_jacket=_maybe(rng, 0.18, _vivid),
        belt=_maybe(rng, 0.3, _dark),
        scarf=_maybe(rng, 0.12, _vivid),
        bag=_pick(rng, ("none", "shoulder", "belt"), [0.7, 0.2, 0.1]),
        bag_side=int(rng.choice([-1, 1])),
        bag_colour=_vivid(rng),
        patch=_maybe(rng, 0.15, _vivid),
        wristband=_maybe(rng, 0.2, _vivid),
        socks=_maybe(rng, 0.4, _vivid),
        shoes=_vivid(rng) if rng.random() < 0.6 else _dark(rng),
        soles=(245, 245, 240) if rng.random() < 0.6 else _dark(rng),
        boots=bool(rng.random() < 0.2),
    )


def _build(rng):
    size = rng.uniform(0.88, 1.08)  # short people have relatively large heads
    girth = rng.uniform(0.85, 1.3)
    legs, arms = rng.uniform(0.92, 1.08), rng.uniform(0.94, 1.06)
    head = rng.uniform(0.078, 0.1)
    shoulders = rng.uniform(0.092, 0.122)
    return Build(
        head=float(head),
        head_width=float(head * rng.uniform(0.8, 0.95)),
        neck=float(0.05 * size),
        torso=float(0.285 * size * rng.uniform(0.95, 1.05)),
        shoulders=float(shoulders * size * (0.6 + 0.4 * girth)),
        hips=float(rng.uniform(0.052, 0.07) * size * (0.6 + 0.4 * girth)),
        waist=float(rng.uniform(0.068, 0.09) * size * girth),
        upper_arm=float(0.162 * size * arms),
        forearm=float(0.15 * size * arms),
        hand=float(0.072 * size * arms),
        thigh=float(0.235 * size * legs),
        shin=float(0.225 * size * legs),
        foot=float(0.098 * size * rng.uniform(0.9, 1.1)),
        arm_width=float(0.029 * size * girth),
        leg_width=float(0.046 * size * girth),
    )


def _face(rng, skin, hair):
    lips = tuple(int(c * f) for c, f in zip(skin, (0.86, 0.55, 0.55)))
    glasses = _pick(rng, ("none", "round", "square", "shades"), [0.68, 0.13, 0.11, 0.08])
    return Face(
        eye_size=float(rng.uniform(1.0, 1.5)),
        eye_distance=float(rng.uniform(0.9, 1.1)),
        iris=((40, 28, 24), (70, 110, 160), (70, 120, 70), (110, 72, 40))[rng.integers(4)],
        brow_weight=float(rng.uniform(0.7, 1.6)),
        brow_slant=float(rng.uniform(-0.05, 0.06)),
        nose=float(rng.uniform(0.8, 1.3)),
        mouth_width=float(rng.uniform(0.8, 1.25)),
        smile=float(rng.uniform(-0.03, 0.13)),
        lips=lips if rng.random() < 0.75 else (196, 44, 66),
        blush=bool(rng.random() < 0.35),
        glasses=glasses,
        glasses_colour=_dark(rng) if rng.random() < 0.7 else _vivid(rng),
        beard=_pick(rng, BEARDS, [0.78, 0.14, 0.08]),
    )


def _garment(rng, calm=False):
    colour = _dark(rng) if rng.random() < (0.45 if calm else 0.15) else _vivid(rng)
    if rng.random() < 0.15:
        colour = _vary(rng, (238, 234, 226), 8)
    second = _vivid(rng) if rng.random() < 0.6 else (248, 246, 240)
    while _distance(colour, second) < 120:
        second = _vivid(rng) if rng.random() < 0.7 else _dark(rng)
    plain = 0.6 if calm else 0.34
    pattern = _pick(rng, PATTERNS, [plain, *[(1 - plain) / 6] * 6])
    return Garment(colour, second, pattern, float(rng.uniform(0.045, 0.09)))


def _pick(rng, choices, weights):
    return str(rng.choice(np.array(choices), p=np.array(weights) / np.sum(weights)))


def _maybe(rng, probability, draw):
    value = draw(rng)  # always drawn, so that one detail does not change the next ones
    return value if rng.random() < probability else None


def _vivid(rng):
    hue, saturation, value = rng.random(), rng.uniform(0.4, 0.85), rng.uniform(0.62, 0.95)
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))


def _dark(rng):
    hue, saturation, value = rng.random(), rng.uniform(0.1, 0.55), rng.uniform(0.16, 0.4)
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))


def _vary(rng, colour, amount):
    shift = rng.integers(-amount, amount + 1, 3)
    return tuple(int(c) for c in np.clip(np.array(colour) + shift, 0, 255))


def _distance(a, b):
    return float(np.linalg.norm(np.subtract(a, b)))
