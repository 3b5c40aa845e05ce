"""A character performing a motion: joints in space, who hides whom, and exact keypoints.

Space is the camera's: x to the right, y down, z towards the camera, in body units; the ground is
y = 0 where the lowest foot stands. The projection is parallel, so that a bone's angle in the
picture is the motion's angle, whoever performs it.
"""

from dataclasses import dataclass

import numpy as np

from animate_jax.pose import skeleton as sk
from data_prep.puppets.character import Character
from data_prep.puppets.face import EAR_LATITUDE, face_points, on_head
from data_prep.puppets.motion import BONE, Motion

GROUPS = ("right_arm", "left_arm", "right_leg", "left_leg", "torso", "head")
HIDDEN_SCORE = 0.5

# Fingers in units of the hand: along it and towards the thumb's side, thumb first.
_FINGERS = np.array(
    [(0, 0)]
    + [(0.15, 0.18), (0.3, 0.34), (0.45, 0.42), (0.57, 0.46)]
    + [(0.5, 0.2), (0.68, 0.23), (0.82, 0.24), (0.93, 0.25)]
    + [(0.52, 0.06), (0.74, 0.07), (0.9, 0.07), (1.02, 0.07)]
    + [(0.5, -0.08), (0.7, -0.09), (0.84, -0.1), (0.95, -0.1)]
    + [(0.45, -0.2), (0.6, -0.23), (0.7, -0.25), (0.79, -0.26)]
)
_TORSO, _HEAD = 4, 5


@dataclass(frozen=True)
class Camera:
    """Body units to pixels: the point (0, 0) on the ground is seen at (x, y)."""

    scale: float
    x: float
    y: float
    width: int
    height: int

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2 or 3) in space -> (..., 2) in pixels."""
        return points[..., :2] * self.scale + np.array([self.x, self.y])


@dataclass(frozen=True)
class Body:
    """A character over a motion's frames.

    joints (frames, 134, 3): the keypoints in space. scores (frames, 134). head (frames, 3): its
    centre; head_axes (frames, 3, 3): its left, up and forward, scaled to its size. hips (frames,
    3): midway between the hip joints. order (frames, 6): GROUPS from the farthest to the nearest.
    """

    character: Character
    joints: np.ndarray
    scores: np.ndarray
    head: np.ndarray
    head_axes: np.ndarray
    hips: np.ndarray
    order: np.ndarray

    def on_head(self, places: np.ndarray) -> np.ndarray:
        """Head coordinates (n, 3) -> points in space (frames, n, 3)."""
        return self.head[:, None] + np.einsum("ni,fij->fnj", places, self.head_axes)


def pose_body(character: Character, motion: Motion, camera: Camera) -> np.ndarray:
    """Exact keypoints, float32 (frames, 134, 3) in pixels of the camera's picture, with scores.

    The score is 1 for what can be seen, HIDDEN_SCORE for what another part of the body hides, and
    0 for face points, eyes and nose turned away and for everything outside the picture. Clothes,
    hair and hats hide nothing.
    """
    return project_body(place_body(character, motion), camera)


def project_body(body: Body, camera: Camera) -> np.ndarray:
    """pose_body for a body that is already placed."""
    points = camera.project(body.joints)
    inside = ((points >= 0) & (points <= [camera.width - 1, camera.height - 1])).all(-1)
    scores = np.where(inside, body.scores, 0)
    return np.concatenate([points, scores[..., None]], -1).astype(np.float32)


def place_body(character: Character, motion: Motion) -> Body:
    """Joints of the character in every frame of the motion."""
    build, toward = character.build, motion.directions
    joints = np.zeros((len(motion), sk.NUM_POINTS, 3))

    def bone(name):
        return toward[:, BONE[name]]

    hips = np.zeros((len(motion), 3))
    neck = hips + bone("spine") * build.torso
    joints[:, sk.NECK] = neck
    sides = (
        ("right", -1, sk.RIGHT_SHOULDER, sk.RIGHT_HIP, sk.RIGHT_HAND_START, sk.FEET_START + 3),
        ("left", 1, sk.LEFT_SHOULDER, sk.LEFT_HIP, sk.LEFT_HAND_START, sk.FEET_START),
    )
    for side, sign, shoulder, hip, hand, foot in sides:
        joints[:, shoulder] = neck + sign * build.shoulders * bone("shoulders")
        elbow = joints[:, shoulder] + build.upper_arm * bone(f"{side}_upper_arm")
        wrist = elbow + build.forearm * bone(f"{side}_forearm")
        joints[:, shoulder + 1], joints[:, shoulder + 2] = elbow, wrist
        fingers = _FINGERS * build.hand
        thumb = _thumb_side(bone(f"{side}_hand"), bone("spine"), bone("shoulders"), sign)
        joints[:, hand : hand + 21] = wrist[:, None] + (
            fingers[:, :1] * bone(f"{side}_hand")[:, None] + fingers[:, 1:] * thumb[:, None]
        )
        joints[:, hip] = hips + sign * build.hips * bone("hips")
        knee = joints[:, hip] + build.thigh * bone(f"{side}_thigh")
        ankle = knee + build.shin * bone(f"{side}_shin")
        joints[:, hip + 1], joints[:, hip + 2] = knee, ankle
        forward = bone(f"{side}_foot") * build.foot
        heel = ankle + 0.028 * bone(f"{side}_shin") - 0.25 * forward
        across = sign * 0.016 * _perpendicular(bone("hips"), bone(f"{side}_foot"))
        joints[:, foot] = heel + forward - across
        joints[:, foot + 1] = heel + 0.9 * forward + across
        joints[:, foot + 2] = heel
    head, axes, face_scores = _place_head(character, motion, neck, joints)

    lowest = joints[:, sk.FEET_START : sk.FACE_START, 1].max(1) + 0.012  # the sole
    lift = motion.root[:, 1] * build.leg
    root = np.stack([motion.root[:, 0] * build.leg, -lowest - lift, np.zeros(len(motion))], -1)
    joints, head, hips = joints + root[:, None], head + root, hips + root

    order = _order(character, joints, hips)
    scores = np.where(_hidden(character, joints, hips, head, order), HIDDEN_SCORE, 1.0)
    face = [sk.NOSE, sk.RIGHT_EYE, sk.LEFT_EYE, *range(sk.FACE_START, sk.LEFT_HAND_START)]
    scores[:, face] *= face_scores
    return Body(character, joints, scores, head, axes, hips, order)


def _place_head(character, motion, neck, joints):
    """Fills in the head's joints; returns its centre, axes, and scores of nose, eyes and face."""
    build, toward = character.build, motion.directions
    up = toward[:, BONE["head_up"]]
    forward = _perpendicular(toward[:, BONE["head_forward"]], up)
    left = np.cross(forward, up)  # y points down
    head = neck + up * (build.neck + build.head)
    size = np.array([build.head_width, build.head, build.head_width])
    axes = np.stack([left, up, forward], 1) * size[:, None]
    places = face_points(character.face, motion.face[:, 0], motion.face[:, 1])
    joints[:, sk.FACE_START : sk.LEFT_HAND_START] = head[:, None] + np.einsum(
        "fni,fij->fnj", places, axes
    )
    eyes = joints[:, sk.FACE_START + 36 : sk.FACE_START + 48].reshape(len(motion), 2, 6, 3).mean(2)
    joints[:, sk.RIGHT_EYE], joints[:, sk.LEFT_EYE] = eyes[:, 0], eyes[:, 1]
    joints[:, sk.NOSE] = joints[:, sk.FACE_START + 30]
    ears = on_head([-90, 90], [EAR_LATITUDE, EAR_LATITUDE])
    joints[:, [sk.RIGHT_EAR, sk.LEFT_EAR]] = head[:, None] + np.einsum("ni,fij->fnj", ears, axes)
    return head, axes, _face_seen(joints, head, forward, build.head_width)


def _face_seen(joints, head, forward, half):
    """Whether nose, eyes and face points are turned to the camera: (frames, 3 + 68) of 0 and 1."""
    depth = (joints[..., 2] - head[:, None, 2]) / half
    eyes = depth[:, [sk.RIGHT_EYE, sk.LEFT_EYE]] > 0.28
    nose, mouth = forward[:, 2:] > 0.1, forward[:, 2:] > 0.3
    jaw = depth[:, sk.FACE_START : sk.FACE_START + 17] > 0.04
    right, left = eyes[:, :1], eyes[:, 1:]
    runs = (right, 5), (left, 5), (nose, 9), (right, 6), (left, 6), (mouth, 20)
    face = [jaw, *(np.repeat(seen, count, axis=1) for seen, count in runs)]
    return np.concatenate([nose, eyes, *face], axis=1).astype(float)


def _thumb_side(hand, spine, across, sign):
    """Hanging and raised hands show the thumb towards the body, stretched ones to the front."""
    front = np.cross(spine, across)
    return _perpendicular(-0.8 * sign * across + 0.6 * front, hand)


def _perpendicular(vector, direction):
    rest = vector - (vector * direction).sum(-1, keepdims=True) * direction
    return rest / np.maximum(np.linalg.norm(rest, axis=-1, keepdims=True), 1e-9)


def _order(character, joints, hips):
    """GROUPS from far to near (frames, 6): the painter's order, also what decides who is hidden."""
    torso = (hips[:, 2] + joints[:, sk.NECK, 2]) / 2
    skirted = character.bottom_kind in ("skirt", "dress")  # cloth always covers the thighs
    keys = np.zeros((len(joints), len(GROUPS)))
    for group, elbow in ((0, sk.RIGHT_ELBOW), (1, sk.LEFT_ELBOW)):
        depth = joints[:, [elbow, elbow + 1], 2].mean(1) - torso
        keys[:, group] = np.where(depth > -0.02, 5, 0) + 0.5 * depth
    for group, knee in ((2, sk.RIGHT_KNEE), (3, sk.LEFT_KNEE)):
        depth = joints[:, [knee, knee + 1], 2].mean(1) - hips[:, 2]
        before = (joints[:, knee, 2] - joints[:, knee - 1, 2] > 0.1) & ~skirted
        keys[:, group] = np.where(before, 3, 1) + 0.5 * depth
    keys[:, _TORSO], keys[:, _HEAD] = 2, 4
    return np.argsort(keys, axis=1, kind="stable")


def _hidden(character, joints, hips, head, order):
    """Points (frames, 134) that lie within the outline of a nearer group."""
    build = character.build
    rank = np.argsort(order, axis=1)
    group = _point_groups()
    hidden = np.zeros(joints.shape[:2], bool)
    neck = joints[:, sk.NECK]
    volumes = [
        (_TORSO, neck, hips, *_torso_radii(build, joints)),
        (_HEAD, head, head, build.head_width, build.head_width),
    ]
    arm, leg = build.arm_width, build.leg_width
    for member, first in ((0, sk.RIGHT_SHOULDER), (1, sk.LEFT_SHOULDER)):
        for joint, wide, narrow in ((first, arm, 0.84 * arm), (first + 1, 0.84 * arm, 0.62 * arm)):
            volumes.append((member, joints[:, joint], joints[:, joint + 1], wide, narrow))
    for member, first in ((2, sk.RIGHT_HIP), (3, sk.LEFT_HIP)):
        for joint, wide, narrow in ((first, leg, 0.74 * leg), (first + 1, 0.74 * leg, 0.5 * leg)):
            volumes.append((member, joints[:, joint], joints[:, joint + 1], wide, narrow))
    for member, start, end, wide, narrow in volumes:
        nearer = rank[:, [member]] > rank[:, group]
        nearer[:, group == member] = False
        distance, t = _distance(joints[..., :2], start[:, None, :2], end[:, None, :2])
        wide, narrow = np.reshape(wide, (-1, 1)), np.reshape(narrow, (-1, 1))
        hidden |= nearer & (distance < wide + t * (narrow - wide))
    for right, left in ((sk.RIGHT_SHOULDER, sk.LEFT_SHOULDER), (sk.RIGHT_HIP, sk.LEFT_HIP)):
        # These joints lie in the torso: only a torso seen from the side hides the farther one.
        across = joints[:, left] - joints[:, right]
        sideways = np.abs(across[:, 2]) > 0.8 * np.linalg.norm(across, axis=-1)
        hidden[:, right] = sideways & (across[:, 2] > 0)
        hidden[:, left] = sideways & (across[:, 2] < 0)
    hidden[:, sk.NECK] = False
    for ear in (sk.RIGHT_EAR, sk.LEFT_EAR):
        hidden[:, ear] |= joints[:, ear, 2] < head[:, 2] - 0.4 * build.head_width
    return hidden


def _torso_radii(build, joints):
    """Half its breadth in the picture at the chest and at the hips (frames,)."""
    across = joints[:, sk.LEFT_SHOULDER] - joints[:, sk.RIGHT_SHOULDER]
    across = across / np.linalg.norm(across, axis=-1, keepdims=True)
    flat, deep = np.linalg.norm(across[:, :2], axis=-1), across[:, 2]
    hips = build.hips + 0.95 * build.leg_width
    return tuple(np.hypot(width * flat, build.waist * deep) for width in (build.shoulders, hips))


def _point_groups():
    group = np.full(sk.NUM_POINTS, _HEAD)
    group[[sk.NECK]] = _TORSO
    group[sk.RIGHT_SHOULDER : sk.RIGHT_WRIST + 1] = 0
    group[sk.LEFT_SHOULDER : sk.LEFT_WRIST + 1] = 1
    group[sk.RIGHT_HIP : sk.RIGHT_ANKLE + 1] = 2
    group[sk.LEFT_HIP : sk.LEFT_ANKLE + 1] = 3
    group[sk.FEET_START : sk.FEET_START + 3] = 3
    group[sk.FEET_START + 3 : sk.FACE_START] = 2
    group[sk.LEFT_HAND_START : sk.RIGHT_HAND_START] = 1
    group[sk.RIGHT_HAND_START :] = 0
    return group


def _distance(points, start, end):
    """From points (frames, n, 2) to segments (frames, 1, 2), and where along them, 0 to 1."""
    along = end - start
    length = np.maximum((along**2).sum(-1), 1e-12)
    t = np.clip(((points - start) * along).sum(-1) / length, 0, 1)
    return np.linalg.norm(points - start - t[..., None] * along, axis=-1), t
