"""The head of a character as parts: neck, scarf, skull, hair and hats around the face."""

import numpy as np

from animate_jax.pose import skeleton as sk
from data_prep.puppets import shapes
from data_prep.puppets.body import GROUPS, Body
from data_prep.puppets.face import EAR_LATITUDE, on_head
from data_prep.puppets.features import face_features
from data_prep.puppets.head_frame import TURN, HeadFrame
from data_prep.puppets.parts import BEHIND, Part, View, shade

_HEAD = GROUPS.index("head")
# Latitude of the hair's edge at these distances in longitude from the middle of the face.
_NODES = [0, 40, 70, 95, 130, 180]
_HAIRLINES = {
    "short": [46, 42, 30, -2, -28, -34],
    "fringe": [27, 27, 24, -6, -28, -34],
    "bob": [42, 34, 14, -55, -80, -85],
    "long": [46, 40, 18, -50, -80, -85],
    "ponytail": [50, 46, 36, 6, -22, -30],
    "bun": [50, 46, 36, 6, -22, -30],
    "afro": [36, 33, 20, -8, -30, -36],
}


def head_parts(body: Body, view: View) -> list[Part]:
    """In painting order; hair that hangs behind a person who faces the camera is in BEHIND."""
    who = body.character
    frame = HeadFrame(body, view)
    facing = body.head_axes[:, 2, 2] > 0
    crown = [*_skull(frame, who), *face_features(frame, who), *_hat(frame, who)]
    back, nape = _loose_hair(frame, who)
    parts = [Part("hair", BEHIND, shape, who.hair, border=True, shown=facing) for shape in back]
    parts += [Part("hair", _HEAD, shape, who.hair, shown=facing) for shape in nape]
    parts += _neck(frame, who, facing)
    parts += crown
    later = [Part("hair", _HEAD, s, who.hair, border=True, shown=~facing) for s in back + nape]
    return parts + later


def _neck(frame, who, facing):
    neck = frame.view.project(frame.body.joints[:, sk.NECK])
    radius = 0.5 * frame.half
    # A neckline is deeper at the front.
    base = neck + np.where(facing, 0.08, 0.5)[:, None] * frame.up
    shape = shapes.capsule(frame.center - 0.4 * frame.up, base, radius, 1.05 * radius)
    parts = [Part("neck", _HEAD, shape, shade(who.skin, 0.9))]
    if who.scarf:
        wrap = shapes.capsule(
            neck - 0.9 * frame.right + 0.05 * frame.up,
            neck + 0.9 * frame.right,
            *[0.3 * frame.half] * 2,
        )
        tail = shapes.capsule(
            neck + 0.4 * frame.right,
            neck + 0.5 * frame.right - 1.4 * frame.up,
            *[0.25 * frame.half] * 2,
        )
        parts += [
            Part("scarf", _HEAD, tail, shade(who.scarf, 0.85), shown=facing),
            Part("scarf", _HEAD, wrap, who.scarf, border=True),
        ]
    return parts


def _skull(frame, who):
    contour = frame.silhouette(np.linspace(0, 2 * np.pi, 33)[:-1], 1.0)
    parts = [Part("head", _HEAD, contour, who.skin, border=True)]
    bald = who.hair_style in ("bald", "mohawk")
    if who.hair_style == "afro":
        ball = shapes.ellipse(frame.center + 0.35 * frame.up, 1.5 * frame.right, 1.2 * frame.up)
        parts.insert(0, Part("hair", _HEAD, ball, who.hair, border=True))
    if not bald:
        line = np.interp(np.abs(TURN), _NODES, _HAIRLINES[who.hair_style])
        # A parting, on a side that the seed decides.
        swoop = 9 * np.sin(np.deg2rad(TURN * 2)) * (1 if who.seed % 2 else -1)
        hair, shown = frame.region(line + np.where(np.abs(TURN) < 90, swoop, 0), 1, 1.07)
        parts.append(Part("hair", _HEAD, hair, who.hair, shown=shown))
    elif who.hair_style == "mohawk":
        crest = np.linspace(10, 200, 12)
        places = [on_head(0.0, crest[::-1], np.full(12, r)) for r in (1.0, 1.32)]
        strip = np.concatenate([frame.at(places[0]), frame.at(places[1])[:, ::-1]], 1)
        middle = frame.at(on_head(0.0, crest[crest < 150], np.full((crest < 150).sum(), 1.12)))
        parts.append(Part("hair", _HEAD, middle, who.hair, line=0.5 * frame.half))
        parts.append(Part("hair", _HEAD, strip, who.hair))
    covered = who.hair_style in ("bob", "long")
    if not covered:
        for side in (-1, 1):
            place = on_head(side * 92, EAR_LATITUDE, np.array([1.03]))
            ear = shapes.ellipse(frame.at(place)[:, 0], 0.16 * frame.right, 0.2 * frame.up)
            shown = frame.depth(place)[:, 0] > -0.5
            parts.insert(
                0 if who.hair_style == "bald" else len(parts),
                Part("ear", _HEAD, ear, shade(who.skin, 0.92), shown=shown),
            )
    return parts


def _loose_hair(frame, who):
    """Shapes behind everything, and shapes right behind the head."""
    center, up, right = frame.center, frame.up, frame.right
    if who.hair_style == "bob":
        return [], [
            shapes.capsule(
                center + 0.1 * up, center - 0.4 * up, 1.16 * frame.half, 1.12 * frame.half
            )
        ]
    if who.hair_style == "long":
        down = np.linalg.norm(up, axis=-1, keepdims=True) * [0.0, 1.0]
        return [
            shapes.capsule(center, center + 2.3 * down, 1.2 * frame.half, 0.95 * frame.half)
        ], []
    if who.hair_style == "ponytail":
        tie, back = frame.at(np.array([[0, 0.35, -1.15], [0, 0.35, -1.75]])).swapaxes(0, 1)
        tip = back + np.linalg.norm(up, axis=-1, keepdims=True) * [0.0, 1.4]  # gravity
        return [shapes.capsule(tie, tip, 0.36 * frame.half, 0.26 * frame.half)], []
    if who.hair_style == "bun":
        knot = frame.at(np.array([[0, 1.12, -0.55]]))[:, 0]
        return [], [shapes.ellipse(knot, 0.5 * right, 0.42 * up)]
    return [], []


def _hat(frame, who):
    if who.hat == "none":
        return []
    crown, shown = frame.region(np.full(48, 34.0 if who.hat == "cap" else 26.0), 1, 1.16)
    parts = [Part("hat", _HEAD, crown, who.hat_colour, border=True, shown=shown)]
    dark = shade(who.hat_colour, 0.75)
    if who.hat == "cap":
        along = np.linspace(-55, 55, 9)
        near = on_head(along, np.full(9, 34.0), np.full(9, 1.16))
        far = near + np.cos(np.deg2rad(along * 1.5))[:, None] * np.array([0, -0.12, 0.75])
        brim = np.concatenate([frame.at(near), frame.at(far)[:, ::-1]], 1)
        parts.append(Part("hat", _HEAD, brim, dark, shown=frame.axis[:, 2, 2] > -0.15))
    else:
        band = on_head(TURN, np.full(48, 26.0), np.full(48, 1.18))
        seen = frame.depth(band) > -0.05
        points = frame.at(band)
        # Hidden places move to the nearest visible end, so that the band has a fixed length.
        for f in range(len(points)):
            order = np.flatnonzero(seen[f])
            start = np.flatnonzero(seen[f] & ~np.roll(seen[f], 1))
            run = np.roll(np.arange(48), -int(start[0]))[: len(order)] if len(start) else order
            points[f] = points[f][np.concatenate([run, np.full(48 - len(run), run[-1])])]
        parts.append(Part("hat", _HEAD, points, dark, line=0.24 * frame.half))
        pom = frame.center + 1.22 * frame.up
        parts.append(
            Part("hat", _HEAD, shapes.ellipse(pom, 0.24 * frame.right, 0.2 * frame.up), dark)
        )
    return parts
