"""The torso of a character as parts: shirt, jacket, skirt, belt and bag."""

import numpy as np

from animate_jax.pose import skeleton as sk
from data_prep.puppets import shapes
from data_prep.puppets.body import GROUPS, Body
from data_prep.puppets.cloth import add_logo, cloth, placed
from data_prep.puppets.parts import Part, View, mix, shade

_TORSO = GROUPS.index("torso")
_CLOTH_WIDTH, _CLOTH_ABOVE = 0.6, 0.12  # of the torso's cut, in body units


def torso_parts(body: Body, view: View) -> list[Part]:
    """In painting order."""
    density = view.cloth_density
    who, build, unit = body.character, body.character.build, view.unit
    points = view.project(body.joints)
    neck, hips = points[:, sk.NECK], view.project(body.hips)
    shirt_end = 1.04 if who.open_jacket else 0.97
    levels = np.concatenate([[-0.15, -0.13, -0.1, -0.06, -0.02], np.linspace(0.03, shirt_end, 9)])
    left, right = _silhouette(body, view, levels)
    outline = np.concatenate([left, right[:, ::-1]], 1)
    low_left, low_right = _silhouette(body, view, np.array([0.8, 0.95, 1.1, 1.2]))
    edge, other = _silhouette(body, view, np.linspace(0.9, 1.2, 7))
    pelvis = np.concatenate([edge, other[:, ::-1]], 1)
    front = _front(body)

    def part(name, outline, colour, **more):
        return Part(name, _TORSO, outline, colour, **more)

    affine = _torso_affine(body, view, density)
    cut, plain_cut = _torso_cuts(who, density)
    lower = who.top if who.bottom_kind == "dress" else who.bottom
    lower_cut = plain_cut
    if lower is who.bottom:
        lower_cut = cloth(lower, _CLOTH_WIDTH, 1.0, density) if lower.pattern != "plain" else None
    more = dict(cloth=lower_cut, affine=affine)
    if who.bottom_kind in ("skirt", "dress"):
        skirt = _skirt(who, points, low_left, low_right, unit)
        parts = [part("skirt", skirt, lower.colour, border=True, **more)]
    else:
        parts = [part("pelvis", pelvis, lower.colour, **more)]
    for facing, chosen in ((front, cut), (~front, plain_cut)):
        textured = dict(cloth=chosen, affine=affine if chosen else None, shown=facing)
        parts.append(part("shirt", outline, who.top.colour, border=True, **textured))
    if who.open_jacket:
        shut = part("jacket", outline, who.open_jacket, shown=~front)
        parts += [shut, *_panels(part, who.open_jacket, left, right, front)]
    if who.belt:
        a, b = (edge[:, 1] for edge in (low_left, low_right))
        belt = np.stack([a, b], 1)
        parts.append(part("belt", belt, who.belt, line=max(1.0, 0.02 * unit)))
    return parts + _bag(part, who, points, low_left, low_right, hips, neck, front, build, unit)


def _torso_cuts(who, density):
    """The cloth of chest and back; None where it is plain."""
    if who.top.pattern == "plain" and who.logo == "none":
        return None, None
    back = cloth(who.top, _CLOTH_WIDTH, 1.0, density)
    if who.logo == "none":
        return back, back
    chest = back.copy()
    middle = 0.5 * _CLOTH_WIDTH * density, (_CLOTH_ABOVE + 0.105) * density
    add_logo(chest, who.logo, who.logo_colour, middle, 0.052 * density)
    return chest, None


def _front(body):
    across = body.joints[:, sk.LEFT_SHOULDER] - body.joints[:, sk.RIGHT_SHOULDER]
    return across[:, 0] > 0


def _torso_affine(body, view, density):
    build = body.character.build
    points = view.project(body.joints)
    neck, hips = points[:, sk.NECK], view.project(body.hips)
    along, seen = shapes.directions(neck, hips)
    v = along * (build.torso / np.maximum(seen, 0.4 * build.torso * view.unit)) * density
    across = points[:, sk.LEFT_SHOULDER] - points[:, sk.RIGHT_SHOULDER]
    width = 2 * build.shoulders * view.unit
    narrowing = np.maximum(np.linalg.norm(across, axis=-1, keepdims=True) / width, 0.35)
    u = -shapes.across(along) * density / (view.unit * narrowing)
    return placed(neck, u, v, 0.5 * _CLOTH_WIDTH * density, _CLOTH_ABOVE * density)


def _silhouette(body, view, levels):
    """Edges of the torso in the picture, left and right (frames, levels, 2).

    Levels are fractions of the way from the shoulder line (0) to the hip line (1). Seen from the
    side a cross section shows its depth in place of its width.
    """
    build = body.character.build
    shoulders, hips = build.shoulders, build.hips + 0.95 * build.leg_width
    arm = build.arm_width
    at = [-0.15, -0.1, 0.0, 0.3, 0.62, 0.88, 1.0, 1.12, 1.2]
    width = [0.45 * shoulders, 0.86 * shoulders, shoulders + 0.75 * arm, 0.88 * shoulders]
    width += [build.waist, hips * 0.98, hips, 0.8 * hips, 0.3 * hips]
    depth = np.array([0.3, 0.5, 0.6, 0.8, 0.78, 0.95, 1.0, 0.7, 0.3]) * build.waist
    width, depth = _rounded(levels, at, width), _rounded(levels, at, depth)
    neck, pelvis = body.joints[:, sk.NECK], body.hips
    top = body.joints[:, sk.LEFT_SHOULDER] - body.joints[:, sk.RIGHT_SHOULDER]
    low = body.joints[:, sk.LEFT_HIP] - body.joints[:, sk.RIGHT_HIP]
    top, low = (axis / np.linalg.norm(axis, axis=-1, keepdims=True) for axis in (top, low))
    t = np.clip(levels, 0, 1)[None, :, None]
    axis = top[:, None] * (1 - t) + low[:, None] * t
    center = neck[:, None] + levels[None, :, None] * (pelvis - neck)[:, None]
    along, _ = shapes.directions(neck[:, :2], pelvis[:, :2])
    side = -shapes.across(along)[:, None]
    flat = (axis[..., :2] * side).sum(-1)
    half = np.sqrt((width * flat) ** 2 + (depth * axis[..., 2]) ** 2)[..., None] * side
    tilt = (axis[..., :2] * along[:, None]).sum(-1)[..., None] * along[:, None]
    half = half + tilt * width[None, :, None] * np.sign(flat)[..., None]
    edges = center[..., :2] - half, center[..., :2] + half
    return tuple(view.project(edge) for edge in edges)


def _rounded(levels, at, values):
    """Linear interpolation with its corners rounded off."""
    near = levels[:, None] + np.array([-0.04, 0, 0.04])
    return np.interp(near, at, values) @ [0.25, 0.5, 0.25]


def _skirt(who, points, left, right, unit):
    """The hull of waist, hips and hem; the hem follows both legs."""
    clouds = [left[:, :2], right[:, :2]]
    for hip in (sk.RIGHT_HIP, sk.LEFT_HIP):
        length = who.skirt_length
        start, joint = (hip, hip + 1) if length <= 1 else (hip + 1, hip + 2)
        along, _ = shapes.directions(points[:, start], points[:, joint])
        place = length if length <= 1 else length - 1
        hem = points[:, start] + place * (points[:, joint] - points[:, start])
        wide = (who.build.leg_width * 0.9 + who.skirt_flare * length) * unit
        side = shapes.across(along)
        clouds += [(hem + sign * wide * side)[:, None] for sign in (-1, 1)]
        clouds.append(points[:, hip : hip + 1] + 0.9 * who.build.leg_width * unit * side[:, None])
        clouds.append(points[:, hip : hip + 1] - 0.9 * who.build.leg_width * unit * side[:, None])
    return shapes.hull(np.concatenate(clouds, 1))


def _panels(part, colour, left, right, front):
    """The two halves of an open jacket."""
    for edge, other in ((left, right), (right, left)):
        inner = edge + 0.3 * (other - edge)
        panel = np.concatenate([edge, inner[:, ::-1]], 1)
        yield part("jacket", panel, colour, shown=front)


def _bag(part, who, points, left, right, hips, neck, front, build, unit):
    if who.bag == "none":
        return []
    own_left = np.where(front[:, None], right[:, 1], left[:, 1])
    own_right = np.where(front[:, None], left[:, 1], right[:, 1])
    place = own_left if who.bag_side > 0 else own_right
    size = (0.055 if who.bag == "shoulder" else 0.032) * unit
    along, _ = shapes.directions(neck, hips)
    center = place + along * (size if who.bag == "shoulder" else 0.3 * size)
    pouch = shapes.capsule(center - 0.5 * size * along, center + 0.4 * size * along, size, size)
    flap = shapes.capsule(center - 0.6 * size * along, center - 0.3 * size * along, size, size)
    dark = shade(who.bag_colour, 0.7)
    parts = [part("bag", pouch, who.bag_colour), part("bag", flap, mix(who.bag_colour, dark, 0.6))]
    if who.bag == "shoulder":
        opposite = sk.RIGHT_SHOULDER if who.bag_side > 0 else sk.LEFT_SHOULDER
        start = 0.75 * points[:, opposite] + 0.25 * neck
        strap = np.stack([start, center], 1)
        parts.insert(0, part("strap", strap, dark, line=max(1.0, 0.016 * unit)))
    return parts
