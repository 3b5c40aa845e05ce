"""The motion of a real clip, read from its keypoints as bone directions.

A bone's angle in the picture is seen directly. How far it points out of the picture follows from
how short it appears beside its length where it is seen longest; on which side it does is not seen
and is guessed from how people move: forearms and thighs forwards, shins backwards.
"""

import numpy as np

from animate_jax.errors import UserError
from animate_jax.pose import skeleton as sk
from animate_jax.pose.keypoints import Keypoints, check_keypoints
from data_prep.puppets.motion import BONES, Motion, angles_of

SEEN = 0.3
_SMOOTHING = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)  # over frames, of out-of-picture parts

# Bones that run straight between two points, towards the camera (+1) or away from it (-1) when
# they are foreshortened, and where they point when they are never seen.
_LIMBS = {
    "right_upper_arm": (sk.RIGHT_SHOULDER, sk.RIGHT_ELBOW, 1, (-0.2, 1, 0.05)),
    "right_forearm": (sk.RIGHT_ELBOW, sk.RIGHT_WRIST, 1, (-0.05, 1, 0.3)),
    "left_upper_arm": (sk.LEFT_SHOULDER, sk.LEFT_ELBOW, 1, (0.2, 1, 0.05)),
    "left_forearm": (sk.LEFT_ELBOW, sk.LEFT_WRIST, 1, (0.05, 1, 0.3)),
    "right_thigh": (sk.RIGHT_HIP, sk.RIGHT_KNEE, 1, (-0.08, 1, 0.02)),
    "right_shin": (sk.RIGHT_KNEE, sk.RIGHT_ANKLE, -1, (-0.05, 1, -0.05)),
    "left_thigh": (sk.LEFT_HIP, sk.LEFT_KNEE, 1, (0.08, 1, 0.02)),
    "left_shin": (sk.LEFT_KNEE, sk.LEFT_ANKLE, -1, (0.05, 1, -0.05)),
}


def motion_from_keypoints(keypoints: Keypoints) -> Motion:
    """Points (frames, 134, 3) of any person -> the motion, for any body.

    Gaps are filled in linearly over time. Raises UserError where shoulders or hips are never seen
    (a score above SEEN).
    """
    check_keypoints(keypoints, "keypoints")
    clip = _Clip(keypoints.points)
    for name, pair in (
        ("shoulders", (sk.RIGHT_SHOULDER, sk.LEFT_SHOULDER)),
        ("hips", (sk.RIGHT_HIP, sk.LEFT_HIP)),
    ):
        if not clip.seen(*pair):
            raise UserError(f"the {name} are never seen in these keypoints; use another clip")
    found = {name: clip.limb(*spec) for name, spec in _LIMBS.items()}
    found["shoulders"] = clip.axis(sk.RIGHT_SHOULDER, sk.LEFT_SHOULDER)
    found["hips"] = clip.axis(sk.RIGHT_HIP, sk.LEFT_HIP)
    middle_hip = clip.middle(sk.RIGHT_HIP, sk.LEFT_HIP)
    middle_shoulder = clip.middle(sk.RIGHT_SHOULDER, sk.LEFT_SHOULDER)
    found["spine"] = _lifted(middle_shoulder - middle_hip, 1)
    found["head_up"], found["head_forward"] = _head(clip, middle_shoulder, found["shoulders"])
    forward = np.cross(found["spine"], found["hips"])
    for side, hand, foot in (
        ("right", sk.RIGHT_HAND_START, sk.FEET_START + 3),
        ("left", sk.LEFT_HAND_START, sk.FEET_START),
    ):
        found[f"{side}_hand"] = found[f"{side}_forearm"]
        if clip.seen(hand, hand + 9):
            found[f"{side}_hand"] = clip.limb(hand, hand + 9, 1, (0, 1, 0))
        outward = found["hips"] * (0.35 if side == "left" else -0.35)
        found[f"{side}_foot"] = forward + outward
        if clip.seen(foot, foot + 2):
            found[f"{side}_foot"] = clip.limb(foot + 2, foot, 1, (0, 0, 1))
    directions = np.stack([found[name] for name in BONES], 1)
    root = _root(clip, middle_hip, keypoints.fps)
    face = np.zeros((len(directions), 2))
    return Motion("recorded", float(keypoints.fps), angles_of(directions), root, face)


class _Clip:
    """Positions over time with gaps filled in."""

    def __init__(self, points):
        self.score = points[..., 2]
        self.points = points[..., :2].astype(np.float64)
        frames = np.arange(len(points))
        for point in range(sk.NUM_POINTS):
            there = self.score[:, point] > SEEN
            if there.any() and not there.all():
                for axis in range(2):
                    known = self.points[there, point, axis]
                    self.points[:, point, axis] = np.interp(frames, frames[there], known)

    def seen(self, *points):
        return bool((self.score[:, points] > SEEN).any(0).all())

    def middle(self, a, b):
        return (self.points[:, a] + self.points[:, b]) / 2

    def limb(self, start, end, sign, usual):
        if not self.seen(start, end):
            return np.broadcast_to(np.array(usual, float), (len(self.points), 3))
        return _lifted(self.points[:, end] - self.points[:, start], sign)

    def axis(self, right, left):
        """From a right to a left joint. Its depth changes sign only where it is seen edge-on."""
        flat = self.points[:, left] - self.points[:, right]
        nose = self.points[:, sk.NOSE] - self.middle(sk.RIGHT_SHOULDER, sk.LEFT_SHOULDER)
        # Who looks to the right of the picture has the left side away from the camera.
        sign = -np.sign(np.median(nose[:, 0])) if self.seen(sk.NOSE) else 1.0
        return _lifted(flat, sign or 1.0)


def _lifted(flat, sign):
    """Vectors (frames, 2) -> unit vectors (frames, 3) with the depth that their length implies."""
    length = np.linalg.norm(flat, axis=-1)
    whole = max(float(np.percentile(length, 95)), 1e-6)
    share = np.clip(length / whole, 0, 1)
    # Near full length, noise of a few pixels would look like a large tilt.
    depth = np.sqrt(np.clip(1 - (share + 0.05) ** 2, 0, 1))
    depth = _smoothed(depth) * sign
    unit = flat / np.maximum(length, 1e-6)[:, None]
    unit[length < 1e-6] = [0, 1]
    return np.concatenate([unit * np.sqrt(1 - depth**2)[:, None], depth[:, None]], 1)


def _smoothed(values):
    padded = np.pad(values, 4, mode="edge")
    return np.convolve(padded, _SMOOTHING / _SMOOTHING.sum(), mode="valid")


def _head(clip, shoulders, across):
    """Directions up and forward; from ears or eyes and the nose where they are seen."""
    frames = len(shoulders)
    pairs = (sk.RIGHT_EAR, sk.LEFT_EAR), (sk.RIGHT_EYE, sk.LEFT_EYE)
    pair = next((pair for pair in pairs if clip.seen(*pair)), None)
    body_forward = np.cross(np.array([0.0, -1.0, 0.0]), across)
    if pair is None or not clip.seen(sk.NOSE):
        return np.broadcast_to([0.0, -1.0, 0.05], (frames, 3)), body_forward
    middle = clip.middle(*pair)
    up = np.concatenate([middle - shoulders, np.zeros((frames, 1))], 1)
    up /= np.maximum(np.linalg.norm(up, axis=-1, keepdims=True), 1e-6)
    width = np.linalg.norm(clip.points[:, pair[1]] - clip.points[:, pair[0]], axis=-1)
    half = max(float(np.percentile(width, 95)) / 2, 1e-6)
    reach = 1.1 if pair[0] == sk.RIGHT_EAR else 2.2  # the nose's tip, in half distances
    offset = clip.points[:, sk.NOSE] - middle
    side = np.stack([-up[:, 1], up[:, 0]], -1)
    sideways = _smoothed(np.clip((offset * side).sum(-1) / (reach * half), -0.95, 0.95))
    facing = _smoothed(np.where(clip.score[:, sk.NOSE] > SEEN, 1.0, -1.0))
    depth = np.sqrt(1 - sideways**2) * np.where(facing < 0, -1, 1)
    return up, np.concatenate([side * sideways[:, None], depth[:, None]], 1)


def _root(clip, hips, fps):
    """Path to the right and height above the ground, in leg lengths."""
    legs = []
    for hip in (sk.RIGHT_HIP, sk.LEFT_HIP):
        if clip.seen(hip, hip + 1, hip + 2):
            pieces = np.diff(clip.points[:, hip : hip + 3], axis=1)
            legs.append(np.percentile(np.linalg.norm(pieces, axis=-1).sum(1), 95))
    if not legs:  # a usual leg is 1.6 times as long as the torso
        torso = clip.middle(sk.RIGHT_SHOULDER, sk.LEFT_SHOULDER) - hips
        return np.stack([_path(hips, 1.6 * _long(torso)), np.zeros(len(hips))], -1)
    leg = max(float(np.mean(legs)), 1e-6)
    lift = np.zeros(len(hips))
    if clip.seen(sk.RIGHT_ANKLE, sk.LEFT_ANKLE):
        lowest = clip.points[:, [sk.RIGHT_ANKLE, sk.LEFT_ANKLE], 1].max(1)
        # Walking towards or away from the camera also moves feet in the picture, but slowly.
        around = 2 * round(0.4 * fps) + 1
        padded = np.pad(lowest, around // 2, mode="edge")
        ground = np.lib.stride_tricks.sliding_window_view(padded, around).max(-1)
        lift = np.clip((ground - lowest) / leg - 0.05, 0, 0.5)
    return np.stack([_path(hips, leg), lift], -1)


def _path(hips, leg):
    return (hips[:, 0] - np.median(hips[:, 0])) / leg


def _long(vectors):
    return max(float(np.percentile(np.linalg.norm(vectors, axis=-1), 95)), 1e-6)
