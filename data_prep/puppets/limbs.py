"""Arms and legs of a character as parts, with sleeves, trousers, socks and shoes."""

import numpy as np

from animate_jax.pose import skeleton as sk
from data_prep.puppets import shapes
from data_prep.puppets.body import GROUPS, Body
from data_prep.puppets.cloth import cloth, placed
from data_prep.puppets.parts import Part, View


def limb_parts(body: Body, view: View) -> list[Part]:
    """In painting order within each group."""
    density = view.cloth_density
    parts = []
    for side, shoulder, hip, hand, foot in (
        ("right", sk.RIGHT_SHOULDER, sk.RIGHT_HIP, sk.RIGHT_HAND_START, sk.FEET_START + 3),
        ("left", sk.LEFT_SHOULDER, sk.LEFT_HIP, sk.LEFT_HAND_START, sk.FEET_START),
    ):
        arm, leg = GROUPS.index(f"{side}_arm"), GROUPS.index(f"{side}_leg")
        parts += _leg(body, view, density, side, leg, hip, foot)
        parts += _arm(body, view, density, side, arm, shoulder, hand)
    return parts


def _arm(body, view, density, side, group, first, hand):
    who, unit = body.character, view.unit
    points = view.project(body.joints)
    shoulder, elbow, wrist = (points[:, first + i] for i in range(3))
    radius = who.build.arm_width * unit
    wrist_radius = 0.62 * radius

    def part(name, outline, colour, **more):
        return Part(f"{side}_{name}", group, outline, colour, **more)

    parts = _hand(part, who, points[:, hand : hand + 21], wrist_radius)
    forearm = shapes.capsule(elbow, wrist, 0.84 * radius, wrist_radius)
    upper = shapes.capsule(shoulder, elbow, radius, 0.84 * radius)
    parts.append(part("forearm", forearm, who.skin, border=True))
    parts.append(part("upper_arm", upper, who.skin, border=True, joint=True))
    if side == "left" and who.wristband:
        cuff = wrist + 0.16 * (elbow - wrist)
        band = shapes.capsule(cuff, cuff + 0.14 * (elbow - wrist), *[1.15 * wrist_radius] * 2)
        parts.append(part("wristband", band, who.wristband))
    sleeve = who.sleeves[0 if side == "right" else 1]
    garment = who.bottom if who.odd_sleeve and side == "left" else who.top
    if who.open_jacket:
        sleeve, garment = 2.0, _plain(garment, who.open_jacket)
    if sleeve <= 0:
        return parts
    wide = 1.22 * radius
    lower_end = min(max(sleeve - 1, 0) * 0.97, 0.97)
    lengths = who.build.upper_arm, who.build.forearm
    return parts + _covered(
        part, "sleeve", (shoulder, elbow, wrist), (wide, 1.12 * radius, 1.3 * wrist_radius),
        min(sleeve, 1.0), lower_end, garment, lengths, view, density,
    )  # fmt: skip


def _hand(part, who, points, wrist_radius):
    palm = shapes.hull(points[:, [0, 1, 5, 9, 13, 17]])
    width = max(1.0, 0.72 * wrist_radius)
    parts = [part("hand", palm, who.skin, border=True)]
    for finger in range(5):
        line = points[:, [0, *range(1 + 4 * finger, 5 + 4 * finger)]]
        parts.append(part("hand", line, who.skin, line=width, border=True))
    return parts


def _leg(body, view, density, side, group, first, foot):
    who, unit = body.character, view.unit
    points = view.project(body.joints)
    hip, knee, ankle = (points[:, first + i] for i in range(3))
    toe, heel = points[:, foot : foot + 2].mean(1), points[:, foot + 2]
    radius = who.build.leg_width * unit
    knee_radius, ankle_radius = 0.74 * radius, 0.5 * radius

    def part(name, outline, colour, **more):
        return Part(f"{side}_{name}", group, outline, colour, **more)

    thigh = shapes.capsule(hip, knee, radius, knee_radius)
    shin = shapes.capsule(knee, ankle, knee_radius, ankle_radius)
    parts = [
        part("thigh", thigh, who.skin, border=True, joint=True),
        part("shin", shin, who.skin, border=True),
    ]
    if who.socks:
        top = ankle + 0.35 * (knee - ankle)
        sock = shapes.capsule(top, ankle, 0.62 * radius, 1.05 * ankle_radius)
        parts.append(part("sock", sock, who.socks))
    if who.bottom_kind in ("trousers", "shorts"):
        widths = (1.08 * radius, 1.16 * knee_radius, 1.45 * ankle_radius)
        lower_end = 0.96 if who.bottom_kind == "trousers" else 0.0
        lengths = who.build.thigh, who.build.shin
        upper_end = min(who.hem, 1.0)
        parts += _covered(
            part, "trousers", (hip, knee, ankle), widths, upper_end, lower_end,
            who.bottom, lengths, view, density,
        )  # fmt: skip
        if side == "right" and who.patch and who.hem >= 1:
            patch = shapes.capsule(
                knee + 0.12 * (hip - knee), knee + 0.1 * (ankle - knee), *[0.55 * knee_radius] * 2
            )
            parts.append(part("patch", patch, who.patch))
    return parts + _shoe(part, who, knee, ankle, toe, heel, ankle_radius, unit)


def _shoe(part, who, knee, ankle, toe, heel, ankle_radius, unit):
    thick = 0.021 * unit
    down, _ = shapes.directions(knee, ankle)
    sole = down * 0.012 * unit
    upper = shapes.hull(
        np.concatenate(
            [
                shapes.capsule(heel, toe, thick, 0.85 * thick),
                shapes.ellipse(ankle, *(ankle_radius * 0.95 * v for v in _axes(ankle))),
            ],
            axis=1,
        )
    )
    under = shapes.hull(shapes.capsule(heel + sole, toe + sole, thick * 0.9, thick * 0.8))
    parts = [part("sole", under, who.soles, border=True)]
    if who.boots:
        top = ankle + 0.4 * (knee - ankle)
        shaft = shapes.capsule(top, ankle, 1.5 * ankle_radius, 1.25 * ankle_radius)
        parts.append(part("shoe", shaft, who.shoes, border=True))
    return [*parts, part("shoe", upper, who.shoes, border=True)]


def _covered(part, name, chain, widths, upper_end, lower_end, garment, lengths, view, density):
    """Cloth over a limb's two segments, up to fractions of each; the pattern moves along."""
    start, middle, end = chain
    parts = []
    cut = None
    if garment.pattern != "plain":
        cut = cloth(garment, 0.36, sum(lengths) + 0.24, density)
    specs = [(start, middle, widths[0], widths[1], upper_end, 0.0, lengths[0])]
    if lower_end > 0:
        specs.insert(0, (middle, end, widths[1], widths[2], lower_end, lengths[0], lengths[1]))
    for a, b, wide, narrow, fraction, offset, length in specs:
        tip = a + fraction * (b - a)
        narrow = wide + fraction * (narrow - wide)
        flat = fraction < 1 or offset > 0
        outline = shapes.capsule(a, tip, wide, narrow, flat_end=flat)
        affine = None
        if cut is not None:
            affine = _limb_affine(a, b, length, offset + 0.12, 0.18, view.unit, density)
        parts.append(
            part(name, outline, garment.colour, border=True, joint=True, cloth=cut, affine=affine)
        )
    return parts


def _limb_affine(start, end, length, down, left, unit, density):
    """From the view's pixels to those of a cut that lies along start -> end."""
    along, seen = shapes.directions(start, end)
    seen = np.maximum(seen, 0.3 * length * unit)
    v = along * (length / seen) * density
    u = shapes.across(along) * (density / unit)
    return placed(start, u, v, left * density, down * density)


def _plain(garment, colour):
    return type(garment)(colour, garment.second)


def _axes(like):
    return np.broadcast_to([1.0, 0.0], like.shape), np.broadcast_to([0.0, 1.0], like.shape)
