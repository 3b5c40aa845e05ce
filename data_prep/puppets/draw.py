"""Frames and part maps: parts painted from far to near.

A frame is painted several times as large as it will be and reduced by averaging, which smooths
all edges alike. Patterns are pictures in the coordinates of a limb or the torso, sampled through
an affine map per frame, so that they move with the body. The same arguments give the same bytes.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from animate_jax.pose import skeleton as sk
from data_prep.puppets.body import Body, Camera
from data_prep.puppets.limbs import limb_parts
from data_prep.puppets.moves import CAMERA_PITCH
from data_prep.puppets.parts import BEHIND, View, shade
from data_prep.puppets.portrait import head_parts
from data_prep.puppets.scene import Backdrop
from data_prep.puppets.torso import torso_parts

_JOINT_CORNERS = 2  # of a capsule's 9 at its start that still get a contour, at both sides


def enlargement(camera: Camera) -> int:
    """How many times as large frames are painted: more where pixels are few."""
    side = min(camera.width, camera.height)
    return 4 if side < 200 else 3 if side < 400 else 2


def draw_frames(body: Body, camera: Camera, backdrop: Backdrop) -> Iterator[np.ndarray]:
    """Frames as uint8 (height, width, 3), one for each of the body's."""
    view = View(camera, backdrop.factor)
    groups = _painting_groups(body, view)
    border = max(1, round(0.007 * view.unit))
    shadows = _shadows(body, view)
    for frame in range(len(body.joints)):
        canvas = backdrop.image.copy()
        blended = ImageDraw.Draw(canvas, "RGBA")
        for shadow in shadows:
            blended.polygon(shadow[frame].ravel().tolist(), (0, 0, 0, round(255 * backdrop.shadow)))
        draw = ImageDraw.Draw(canvas)
        for group in (BEHIND, *body.order[frame].tolist()):
            shown = [part for part in groups[group] if part.shown is None or part.shown[frame]]
            corners = [part.outline[frame].ravel().tolist() for part in shown]
            for part, xy in zip(shown, corners):
                if part.border:
                    _contour(draw, part, xy, border)
            for part, xy in zip(shown, corners):
                _paint(canvas, draw, part, xy, frame)
        yield np.asarray(canvas.reduce(backdrop.factor))


def draw_part_maps(body: Body, camera: Camera, names: list[str]) -> Iterator[np.ndarray]:
    """Which part is seen where: uint8 (height, width) per frame.

    A pixel is 1 + the index in `names` of the nearest part there, 255 for other parts of the
    person, 0 for the background. Drawn without smoothing, contours or strokes' rounding.
    """
    view = View(camera, 1)
    groups = _painting_groups(body, view)
    for frame in range(len(body.joints)):
        image = Image.new("L", view.size)
        draw = ImageDraw.Draw(image)
        for group in (BEHIND, *body.order[frame].tolist()):
            for part in groups[group]:
                if part.shown is not None and not part.shown[frame]:
                    continue
                value = 1 + names.index(part.name) if part.name in names else 255
                xy = part.outline[frame].ravel().tolist()
                if part.line:
                    draw.line(xy, value, max(1, round(part.line)))
                else:
                    draw.polygon(xy, value)
        yield np.asarray(image)


def _painting_groups(body, view):
    groups = [[] for _ in range(BEHIND + 1)]
    for part in (*limb_parts(body, view), *torso_parts(body, view), *head_parts(body, view)):
        groups[part.group].append(part)
    return groups


def _contour(draw, part, xy, border):
    colour = shade(part.colour, 0.62)
    if part.line:
        draw.line(xy, colour, round(part.line) + border)
    elif part.joint:
        kept = 2 * _JOINT_CORNERS
        draw.line([*xy[-kept:], *xy[: len(xy) - 18 + kept]], colour, border)
    else:
        draw.line([*xy, *xy[:2]], colour, border)


def _paint(canvas, draw, part, xy, frame):
    if part.line:
        draw.line(xy, part.colour, max(1, round(part.line)))
    elif part.cloth is None:
        draw.polygon(xy, part.colour)
    else:
        _paint_cloth(canvas, part, xy, part.affine[frame])


def _paint_cloth(canvas, part, xy, affine):
    """Samples the cloth within the polygon's bounding box and pastes it through the polygon."""
    xs, ys = xy[::2], xy[1::2]
    left, top = max(0, int(min(xs)) - 1), max(0, int(min(ys)) - 1)
    right, bottom = min(canvas.width, int(max(xs)) + 2), min(canvas.height, int(max(ys)) + 2)
    if left >= right or top >= bottom:
        return
    size = right - left, bottom - top
    mask = Image.new("L", size)
    local = [c - (top if i % 2 else left) for i, c in enumerate(xy)]
    ImageDraw.Draw(mask).polygon(local, 255)
    a, b, c, d, e, f = affine.tolist()
    moved = (a, b, a * left + b * top + c, d, e, d * left + e * top + f)
    sampled = part.cloth.transform(
        size, Image.Transform.AFFINE, moved, Image.Resampling.NEAREST, fillcolor=part.colour
    )
    canvas.paste(sampled, (left, top), mask)


def _shadows(body, view):
    """A flat ellipse on the ground under each foot, smaller the higher the foot is."""
    feet = np.stack(
        [body.joints[:, f : f + 3].mean(1) for f in (sk.FEET_START, sk.FEET_START + 3)], 1
    )
    lowest = np.take_along_axis(feet[..., 2], feet[..., 1].argmax(1)[:, None], 1)
    ground = CAMERA_PITCH * (feet[..., 2] - lowest)
    height = np.clip(ground - feet[..., 1], 0, 1)[..., None]
    turn = np.linspace(0, 2 * np.pi, 21)[:-1]
    ring = np.stack([np.cos(turn), 0.22 * np.sin(turn)], -1)
    size = view.unit * 0.075 * np.clip(1 - 2 * height, 0.2, 1)
    center = view.project(np.stack([feet[..., 0], ground], -1))
    outlines = center[:, :, None] + size[:, :, None] * ring
    return [outlines[:, 0], outlines[:, 1]]
