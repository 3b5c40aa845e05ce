"""Skeletons to pictures in pure JAX, equal to what OpenCV draws in the DWPose style.

The style is that of DWPose (arXiv 2307.15880) as the public reproduction of Animate Anyone uses
it: body limbs as ellipses at 60 % brightness, joints, hands, then face points, on black. Feet are
not drawn. Widths are given for a short side of 512 px and scale with the picture.

Every shape is convex, so per picture row it is one interval of columns. The intervals follow
OpenCV's integer rules: ellipses become polygons with a rounded corner at every degree, outlines
are traced as in Bresenham's algorithm, the interior is filled between the edges. Painting is then
two comparisons per pixel and shape, one shape after the other on a canvas of packed colours.
"""

import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from animate_jax.errors import UserError
from animate_jax.pose import skeleton
from animate_jax.pose.keypoints import resized_points

# Widths in pixels, ends included, at a short side of 512.
LIMB_WIDTH, JOINT_WIDTH, HAND_LINE_WIDTH, HAND_POINT_WIDTH, FACE_POINT_WIDTH = 9, 9, 3, 9, 7
LIMB_BRIGHTNESS = 0.6
SHAPES_AT_ONCE = 17  # in one pass over the picture

_EMPTY = 1e6  # left end of the interval of a row that a shape does not reach; right is -_EMPTY
# cv2.ellipse2Poly reads sines from a table of 7 decimals.
_SINE = np.round(np.sin(np.deg2rad(np.arange(360))), 7).astype(np.float32)
_COSINE = np.roll(_SINE, -90)


def draw_skeletons(
    points, height: int, width: int, *, threshold: float = skeleton.DRAWN_SCORE
) -> jax.Array:
    """Draw one skeleton per picture: (..., 134, 3) -> float32 (..., height, width, 3) in [0, 1].

    points: x, y in pixels of the output and score; they may lie outside the picture. A point is
    drawn where it is finite and its score exceeds the threshold, one of a hand or the face only
    where x and y are 1 or more; a limb or hand line where both its ends are drawn.
    height and width are static. Frames are painted one after the other; beside the result the
    memory is about a third of it, for the shapes of all frames.

    Raises UserError for points of another shape or an empty picture.
    """
    if jnp.ndim(points) < 2 or jnp.shape(points)[-2:] != (skeleton.NUM_POINTS, 3):
        raise UserError(
            f"skeleton points have shape {tuple(jnp.shape(points))}; give (..., 134, 3) with "
            "x, y in pixels and the score"
        )
    if height < 1 or width < 1:
        raise UserError(f"cannot draw into {width}x{height} pixels; give a positive size")
    return _draw_all(jnp.asarray(points, jnp.float32), int(height), int(width), threshold)


def place_points(points, source_size, target_size) -> np.ndarray:
    """Fit a source frame into a target canvas: one scale for both axes, centred, scores kept.

    points (..., 3) in pixels of the source; both sizes are (width, height) in pixels. Points with
    score 0 are absent and stay as they are. Raises UserError for sizes that are not positive.
    """
    for name, size in (("source", source_size), ("target", target_size)):
        if len(size) != 2 or min(size) <= 0:
            raise UserError(f"the {name} size is {tuple(size)}; give (width, height) in pixels")
    source = np.asarray(source_size, np.float32)
    target = np.asarray(target_size, np.float32)
    scale = (target / source).min()
    points = np.asarray(points, np.float32)
    placed = resized_points(points, scale, (target - source * scale) / 2)
    return np.where(points[..., 2:] > 0, placed, points)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw_all(points, height, width, threshold):
    frames = points.reshape(-1, *points.shape[-2:])
    shapes = jax.vmap(lambda frame: _shapes(frame, height, width, threshold))(frames)
    pictures = lax.map(lambda parts: _draw(parts, height, width), shapes)
    return pictures.reshape(*points.shape[:-2], height, width, 3)


class _Part(typing.NamedTuple):
    """Shapes that are painted together."""

    spans: tuple[jax.Array, jax.Array]  # left and right column (shapes, height), ends included
    shown: jax.Array  # bool (shapes,)


def _shapes(points, height, width, threshold) -> list[_Part]:
    """What a frame's points (134, 3) look like: limbs, joints; lines and points of both hands, one
    hand after the other; the face."""
    visible = (points[:, 2] > threshold) & jnp.isfinite(points).all(-1)
    # The reproduction leaves out what hands and face have in the first column and row, and beyond.
    inside = (points[:, :2] >= 1).all(-1)
    visible &= inside | (np.arange(skeleton.NUM_POINTS) < skeleton.FACE_START)
    positions = jnp.where(visible[:, None], points[:, :2], 0)
    corners = jnp.trunc(positions)  # OpenCV takes whole pixels, cut towards zero
    rows = jnp.arange(height, dtype=jnp.float32)
    scale = min(height, width) / 512

    def radius(width_at_512):
        return (max(1.0, width_at_512 * scale) - 1) / 2

    def discs(start, count, disc_width):
        chosen = slice(start, start + count)
        whole_radius = math.floor(radius(disc_width) + 0.5)
        return _Part(_disc_spans(corners[chosen], whole_radius, rows), visible[chosen])

    def hand(start):
        first, second = start + np.array(skeleton.HAND_EDGES).T
        spans = _line_spans(corners[first], corners[second], radius(HAND_LINE_WIDTH), rows)
        lines = _Part(spans, visible[first] & visible[second])
        return [lines, discs(start, skeleton.NUM_HAND, HAND_POINT_WIDTH)]

    first, second = np.array(skeleton.LIMBS).T
    spans = _ellipse_spans(positions[first], positions[second], radius(LIMB_WIDTH), rows)
    return [
        _Part(spans, visible[first] & visible[second]),
        discs(0, skeleton.NUM_BODY, JOINT_WIDTH),
        *hand(skeleton.LEFT_HAND_START),
        *hand(skeleton.RIGHT_HAND_START),
        discs(skeleton.FACE_START, skeleton.NUM_FACE, FACE_POINT_WIDTH),
    ]


def _draw(parts: list[_Part], height, width):
    dimmed = (skeleton.BODY_COLOURS * LIMB_BRIGHTNESS).astype(np.uint8)[: len(skeleton.LIMBS)]
    hand = [skeleton.HAND_COLOURS, [skeleton.HAND_POINT_COLOUR] * skeleton.NUM_HAND]
    face = [skeleton.FACE_COLOUR] * skeleton.NUM_FACE
    canvas = jnp.zeros((height, width), jnp.int32)
    for part, colours in zip(parts, [dimmed, skeleton.BODY_COLOURS, *hand, *hand, face]):
        paint = functools.partial(_paint, part=part, colours=jnp.asarray(_packed(colours)))
        # Body-only skeletons are common: painting their absent hands and faces costs nothing.
        canvas = lax.cond(part.shown.any(), paint, lambda unchanged: unchanged, canvas)
    return _unpacked(canvas)


def _packed(colours) -> np.ndarray:
    red, green, blue = np.asarray(colours, np.int32).T
    return red | green << 8 | blue << 16


def _unpacked(canvas):
    channels = [(canvas >> shift) & 255 for shift in (0, 8, 16)]
    return jnp.stack(channels, -1).astype(jnp.float32) / 255


def _paint(canvas, part: _Part, colours):
    """Lays shapes over a canvas (height, width) of packed colours, later shapes on top."""
    left, right = (jnp.clip(end, -1, canvas.shape[1]).astype(jnp.int32) for end in part.spans)
    columns = jnp.arange(canvas.shape[1], dtype=jnp.int32)
    right = jnp.where(part.shown[:, None], right, -1)

    def lay(canvas, shapes):
        for left, right, colour in zip(*shapes):
            inside = (columns >= left[:, None]) & (columns <= right[:, None])
            canvas = jnp.where(inside, colour, canvas)
        return canvas, None

    count = len(colours)
    together = max(n for n in range(1, SHAPES_AT_ONCE + 1) if count % n == 0)
    shapes = [x.reshape(count // together, together, *x.shape[1:]) for x in (left, right, colours)]
    return lax.scan(lay, canvas, shapes)[0]


def _disc_spans(centres, radius, rows):
    away = rows - centres[:, 1:]
    reach = jnp.floor(jnp.sqrt(jnp.maximum(radius**2 - away**2, 0)))
    hit = jnp.abs(away) <= radius
    return (
        jnp.where(hit, centres[:, :1] - reach, _EMPTY),
        jnp.where(hit, centres[:, :1] + reach, -_EMPTY),
    )


def _line_spans(start, end, half_width, rows):
    """Rectangle around the line, with a disc at either end."""
    along = end - start
    length = jnp.sqrt(jnp.sum(along**2, -1, keepdims=True))
    along = along * half_width / jnp.maximum(length, 1)
    across = jnp.stack([-along[:, 1], along[:, 0]], -1)
    corners = jnp.stack([start + across, start - across, end - across, end + across], 1)
    spans = [_polygon_spans(corners, rows)]
    spans += [_disc_spans(point, half_width, rows) for point in (start, end)]
    left, right = zip(*spans, strict=True)
    return functools.reduce(jnp.minimum, left), functools.reduce(jnp.maximum, right)


def _ellipse_spans(start, end, half_width, rows):
    """Ellipse with the long axis from start to end: whole-pixel centre and half length, whole
    degrees, 360 rounded corners."""
    centre = jnp.trunc((start + end) / 2)
    along = start - end
    # 1e-4 keeps exact values such as 45 degrees from falling to the number below in float32.
    half_length = jnp.trunc(jnp.sqrt(jnp.sum(along**2, -1)) / 2 + 1e-4)[:, None]
    angle = jnp.rad2deg(jnp.arctan2(along[:, 1], along[:, 0]))
    degrees = jnp.trunc(angle + 1e-4 * jnp.sign(angle)).astype(jnp.int32) % 360
    cosine, sine = (jnp.asarray(table)[degrees][:, None] for table in (_COSINE, _SINE))
    long, short = half_length * _COSINE, half_width * _SINE
    x = centre[:, :1] + long * cosine - short * sine
    y = centre[:, 1:] + long * sine + short * cosine
    return _polygon_spans(jnp.round(jnp.stack([x, y], -1)), rows)


def _polygon_spans(corners, rows):
    """Filled convex polygons (shapes, corners, 2) -> left and right columns (shapes, rows)."""

    def add_edge(spans, edge):
        left, right = _edge_spans(*edge, rows)
        return (jnp.minimum(spans[0], left), jnp.maximum(spans[1], right)), None

    nothing = jnp.full((corners.shape[0], rows.shape[0]), _EMPTY)
    edges = tuple(jnp.moveaxis(x, 1, 0) for x in (corners, jnp.roll(corners, -1, axis=1)))
    return lax.scan(add_edge, (nothing, -nothing), edges)[0]


def _edge_spans(start, end, rows):
    """Leftmost and rightmost pixel of one edge per row: its traced outline and its fill limit.

    An outline steps by whole pixels along its longer axis from its rounded upper (or left) end; on
    a tie it keeps to the outside. The fill limit runs between the rounded rows of both ends.
    """
    shift = jnp.abs(end - start)
    steep = shift[:, 1] >= shift[:, 0]
    backwards = jnp.where(steep, end[:, 1] < start[:, 1], end[:, 0] < start[:, 0])[:, None]
    start, end = jnp.where(backwards, end, start), jnp.where(backwards, start, end)
    x0, y0, x1, y1 = start[:, :1], start[:, 1:], end[:, :1], end[:, 1:]
    steep, dx, dy = steep[:, None], x1 - x0, y1 - y0
    last = jnp.floor(jnp.maximum(jnp.abs(dx), jnp.abs(dy)) + 1e-4)  # number of steps

    row = rows - _nearest(y0)
    x = x0 + dx / jnp.where(dy == 0, 1, dy) * row
    traced = steep & (row >= 0) & (row <= last)
    steep_left, steep_right = jnp.ceil(x - 0.5), _nearest(x)

    level = dy == 0
    per_row = dx / jnp.where(level, 1, dy)
    ends = (rows - 0.5 - y0) * per_row, (rows + 0.5 - y0) * per_row
    step0 = jnp.where(level, 0, jnp.maximum(jnp.floor(jnp.minimum(*ends)) + 1, 0))
    step1 = jnp.where(level, last, jnp.minimum(jnp.floor(jnp.maximum(*ends)), last))
    flat = ~steep & (step0 <= step1) & (~level | (row == 0))
    flat_left, flat_right = _nearest(x0) + step0, _nearest(x0) + step1

    left = jnp.where(traced, steep_left, jnp.where(flat, flat_left, _EMPTY))
    right = jnp.where(traced, steep_right, jnp.where(flat, flat_right, -_EMPTY))

    fall = _nearest(y1) - _nearest(y0)
    limit = _nearest(x0 + dx / jnp.where(fall == 0, 1, fall) * row)
    filled = (fall != 0) & (row >= jnp.minimum(fall, 0)) & (row <= jnp.maximum(fall, 0))
    pixels = [(filled, limit), (row == 0, _nearest(x0)), (row == fall, _nearest(x1))]
    for hit, column in pixels:
        left = jnp.minimum(left, jnp.where(hit, column, _EMPTY))
        right = jnp.maximum(right, jnp.where(hit, column, -_EMPTY))
    return left, right


def _nearest(x):
    return jnp.floor(x + 0.5)
