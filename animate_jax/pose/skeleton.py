"""Topology of the 134-point skeleton: limbs, colours, kinematic tree and mirror, all as data.

Points: 0..17 the OpenPose body, 18..23 feet, 24..91 the 68-point face, 92..112 the left hand and
113..133 the right hand ("left" is the person's left). Limb order and colours are those of OpenPose
(arXiv 1812.08008) as DWPose (arXiv 2307.15880) draws them; hand colours run once around the hue
circle. Everything here is a tuple or a read-only NumPy array.
"""

import colorsys

import numpy as np

NUM_POINTS = 134
NUM_BODY = 18
NUM_FACE = 68
NUM_HAND = 21
FEET_START, FACE_START, LEFT_HAND_START, RIGHT_HAND_START = 18, 24, 92, 113
DRAWN_SCORE = 0.3  # points are drawn whose score exceeds it

(NOSE, NECK, RIGHT_SHOULDER, RIGHT_ELBOW, RIGHT_WRIST, LEFT_SHOULDER) = range(6)
(LEFT_ELBOW, LEFT_WRIST, RIGHT_HIP, RIGHT_KNEE, RIGHT_ANKLE, LEFT_HIP) = range(6, 12)
(LEFT_KNEE, LEFT_ANKLE, RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR) = range(12, 18)

# Drawing order: a later limb covers an earlier one.
LIMBS = (
    (NECK, RIGHT_SHOULDER),
    (NECK, LEFT_SHOULDER),
    (RIGHT_SHOULDER, RIGHT_ELBOW),
    (RIGHT_ELBOW, RIGHT_WRIST),
    (LEFT_SHOULDER, LEFT_ELBOW),
    (LEFT_ELBOW, LEFT_WRIST),
    (NECK, RIGHT_HIP),
    (RIGHT_HIP, RIGHT_KNEE),
    (RIGHT_KNEE, RIGHT_ANKLE),
    (NECK, LEFT_HIP),
    (LEFT_HIP, LEFT_KNEE),
    (LEFT_KNEE, LEFT_ANKLE),
    (NECK, NOSE),
    (NOSE, RIGHT_EYE),
    (RIGHT_EYE, RIGHT_EAR),
    (NOSE, LEFT_EYE),
    (LEFT_EYE, LEFT_EAR),
)

# From each finger's base to its tip, thumb first; index 0 is the hand's own wrist point.
HAND_EDGES = tuple(
    (0 if joint == 0 else first + joint - 1, first + joint)
    for first in (1, 5, 9, 13, 17)
    for joint in range(4)
)


def _hue(fraction: float) -> tuple[int, int, int]:
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(fraction, 1.0, 1.0))


def _frozen(values, dtype=np.int32) -> np.ndarray:
    array = np.asarray(values, dtype)
    array.setflags(write=False)
    return array


# 18 steps of the hue circle in OpenPose's steps of 85: red at the nose ... pink at the left ear.
BODY_COLOURS = _frozen(
    [
        (255, 0, 0),
        (255, 85, 0),
        (255, 170, 0),
        (255, 255, 0),
        (170, 255, 0),
        (85, 255, 0),
        (0, 255, 0),
        (0, 255, 85),
        (0, 255, 170),
        (0, 255, 255),
        (0, 170, 255),
        (0, 85, 255),
        (0, 0, 255),
        (85, 0, 255),
        (170, 0, 255),
        (255, 0, 255),
        (255, 0, 170),
        (255, 0, 85),
    ],
    np.uint8,
)
HAND_COLOURS = _frozen([_hue(i / len(HAND_EDGES)) for i in range(len(HAND_EDGES))], np.uint8)
HAND_POINT_COLOUR = (0, 0, 255)
FACE_COLOUR = (255, 255, 255)


def _parents() -> np.ndarray:
    """Parent of every point; -1 for the root, the neck. A parent need not have a smaller index."""
    parents = np.full(NUM_POINTS, -1)
    for parent, child in LIMBS:
        parents[child] = parent
    parents[FEET_START : FEET_START + 3] = LEFT_ANKLE
    parents[FEET_START + 3 : FACE_START] = RIGHT_ANKLE
    parents[FACE_START:LEFT_HAND_START] = NOSE
    for start, wrist in ((LEFT_HAND_START, LEFT_WRIST), (RIGHT_HAND_START, RIGHT_WRIST)):
        parents[start] = wrist
        for parent, child in HAND_EDGES:
            parents[start + child] = start + parent
    return parents


def _parents_first(parents: np.ndarray) -> list[int]:
    order = [int(i) for i in np.flatnonzero(parents < 0)]
    for point in order:  # grows while it is walked
        order.extend(int(i) for i in np.flatnonzero(parents == point))
    return order


PARENTS = _frozen(_parents())
# All points, every parent before its children.
TREE_ORDER = tuple(_parents_first(PARENTS))


def _mirror() -> np.ndarray:
    mirror = np.arange(NUM_POINTS)

    def swap(a, b):
        a, b = np.asarray(a), np.asarray(b)
        mirror[a], mirror[b] = b, a

    swap([2, 3, 4, 8, 9, 10, 14, 16], [5, 6, 7, 11, 12, 13, 15, 17])
    swap([18, 19, 20], [21, 22, 23])
    # 68-point face: runs that read backwards on the other side, then eyes and mouth corners' rows.
    for first, last in ((0, 16), (17, 26), (31, 35), (48, 54), (55, 59), (60, 64), (65, 67)):
        run = FACE_START + np.arange(first, last + 1)
        mirror[run] = run[::-1]
    swap(
        FACE_START + np.array([36, 37, 38, 39, 40, 41]),
        FACE_START + np.array([45, 44, 43, 42, 47, 46]),
    )
    hand = np.arange(NUM_HAND)
    swap(LEFT_HAND_START + hand, RIGHT_HAND_START + hand)
    return mirror


# points[..., MIRROR, :] names the points of a horizontally flipped picture correctly; the caller
# flips x. It is its own inverse.
MIRROR = _frozen(_mirror())
