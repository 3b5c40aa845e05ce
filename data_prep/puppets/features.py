"""Eyes, brows, nose, mouth, beard and glasses as parts, at the face's keypoints."""

import numpy as np

from animate_jax.pose import skeleton as sk
from data_prep.puppets import shapes
from data_prep.puppets.body import GROUPS
from data_prep.puppets.character import Character
from data_prep.puppets.face import on_head
from data_prep.puppets.head_frame import TURN, HeadFrame
from data_prep.puppets.parts import Part, mix, shade

_HEAD = GROUPS.index("head")


def face_features(frame: HeadFrame, who: Character) -> list[Part]:
    """In painting order; what is turned away is not shown."""
    face, unit = who.face, frame.half
    dark = mix(who.hair, (30, 22, 22), 0.5)

    def part(name, outline, colour, **more):
        return Part(name, _HEAD, outline, colour, **more)

    front = frame.axis[:, 2, 2]
    parts = []
    if face.blush:
        for side in (-1, 1):
            place = on_head(side * 38, -18)
            cheek = shapes.ellipse(frame.at(place[None])[:, 0], 0.16 * frame.right, 0.11 * frame.up)
            shown = frame.depth(place[None])[:, 0] > 0.45
            parts.append(part("face", cheek, mix(who.skin, (232, 92, 92), 0.3), shown=shown))
    if face.beard == "full":
        edge = np.interp(
            np.abs(TURN), [0, 22, 34, 60, 86, 96, 180], [-26, -26, -34, -26, -4, -90, -90]
        )
        shape, shown = frame.region(edge, -1, 1.015)
        parts.append(
            part("face", shape, mix(who.hair, who.skin, 0.15), shown=shown & (front > 0.1))
        )
    if face.beard == "moustache":
        lip = frame.at(on_head([-20, -10, 0, 10, 20], [-31, -25, -24, -25, -31]))
        parts.append(part("face", lip, who.hair, line=0.15 * unit, shown=front > 0.35))
    parts += _mouth_and_nose(frame, who, part)
    for first, side in ((36, -1), (42, 1)):
        shown = frame.body.scores[:, sk.RIGHT_EYE if side < 0 else sk.LEFT_EYE] > 0
        ring = frame.points(range(first, first + 6))
        openness = frame.body.joints[:, sk.FACE_START + first + 1 : sk.FACE_START + first + 6]
        opened = np.linalg.norm(openness[:, 0] - openness[:, 4], axis=-1) * frame.view.unit
        wide = opened > 0.06 * unit
        parts.append(part("face", shapes.smooth(ring, 4), (252, 250, 246), shown=shown & wide))
        pupil = ring.mean(1) - 0.03 * frame.up
        radius = np.minimum(0.46 * opened, 0.17 * unit)[:, None]
        for share, colour in ((1.0, face.iris), (0.55, (24, 18, 20))):
            axes = (
                share * radius * axis / np.linalg.norm(axis, axis=-1, keepdims=True)
                for axis in (frame.right, frame.up)
            )
            parts.append(part("face", shapes.ellipse(pupil, *axes), colour, shown=shown & wide))
        lid = ring[:, :4]
        parts.append(part("face", lid, (44, 30, 30), line=0.055 * unit, shown=shown))
        brow = frame.points(range(17, 22) if side < 0 else range(22, 27))
        parts.append(part("face", brow, dark, line=0.085 * unit * face.brow_weight, shown=shown))
    return parts + _glasses(frame, who, part)


def _mouth_and_nose(frame, who, part):
    face, unit = who.face, frame.half
    scored = frame.body.scores > 0
    mouth = scored[:, sk.FACE_START + 48]
    lips = frame.points(range(48, 60))
    opened = frame.points([62])[:, 0] - frame.points([66])[:, 0]
    talking = np.linalg.norm(opened, axis=-1) > 0.05 * unit
    corners = frame.points([48, 60, 67, 66, 65, 64, 54])
    parts = [
        part("face", shapes.smooth(lips, 2), face.lips, shown=mouth),
        part("face", frame.points(range(60, 68)), (92, 24, 34), shown=mouth & talking),
        part("face", corners, shade(face.lips, 0.62), line=0.045 * unit, shown=mouth & ~talking),
    ]
    turned = frame.axis[:, 2, 0] > 0
    for numbers, shown in (([28, 30, 33, 31], ~turned), ([28, 30, 33, 35], turned)):
        nose = frame.points(numbers)
        line = part(
            "face", nose, shade(who.skin, 0.74), line=0.07 * unit, shown=shown & scored[:, sk.NOSE]
        )
        parts.append(line)
    return parts


def _glasses(frame, who, part):
    face = who.face
    if face.glasses == "none":
        return []
    parts = []
    centers = []
    width = max(1.0, 0.07 * frame.half)
    for side in (-1, 1):
        place = on_head(side * 25 * face.eye_distance, 5, np.array([1.04]))
        shown = frame.depth(place)[:, 0] > 0.28
        t = np.linspace(0, 2 * np.pi, 17)
        if face.glasses == "square":
            across, down = np.clip(1.5 * np.cos(t), -1, 1), np.clip(1.5 * np.sin(t), -1, 1) * 0.75
        else:
            across, down = np.cos(t), np.sin(t)
        rim = on_head(side * 25 * face.eye_distance + 16 * across, 5 + 14 * down, np.full(17, 1.04))
        if face.glasses == "shades":
            parts.append(part("face", frame.at(rim), (28, 28, 34), shown=shown))
        parts.append(part("face", frame.at(rim), face.glasses_colour, line=width, shown=shown))
        inner = on_head(side * (25 * face.eye_distance - 16), 8, np.array([1.05]))
        centers.append(frame.at(inner))
        outer = on_head(
            side * np.array([25 * face.eye_distance + 16, 88]), [8, 4], np.full(2, 1.04)
        )
        near = frame.depth(outer)[:, 0] > 0.1
        parts.append(part("face", frame.at(outer), face.glasses_colour, line=width, shown=near))
    bridge = np.concatenate(centers, 1)
    seen = frame.axis[:, 2, 2] > 0.3
    return [*parts, part("face", bridge, face.glasses_colour, line=width, shown=seen)]
