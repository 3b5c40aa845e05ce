"""Keypoints of one person over a clip: 134 points in OpenPose order, their file, and conversions.

Points 0..17 are the OpenPose-18 body and 18..23 the feet, 24..91 the 68 face points, 92..112 the
left hand and 113..133 the right hand: the order in which DWPose's OpenPose variant lists
COCO-WholeBody. "Left" is the person's left. Places are in pixels, and (0, 0) is the middle of the
upper left one.
"""

import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from animate_jax.errors import UserError
from animate_jax.files import replacing

# What NumPy raises for files that are no archives of arrays, or damaged ones.
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
POINTS = 134
BODY = slice(0, 18)
FEET = slice(18, 24)
FACE = slice(24, 92)
LEFT_HAND = slice(92, 113)
RIGHT_HAND = slice(113, 134)

BODY_NAMES = (
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
)
FEET_NAMES = (
    "left_big_toe",
    "left_small_toe",
    "left_heel",
    "right_big_toe",
    "right_small_toe",
    "right_heel",
)

# For each OpenPose body point but the neck, its place in COCO's 17 (nose, eyes, ears, shoulders,
# elbows, wrists, hips, knees, ankles; left before right).
NECK = 1
BODY_FROM_COCO = {
    0: 0,
    2: 6,
    3: 8,
    4: 10,
    5: 5,
    6: 7,
    7: 9,
    8: 12,
    9: 14,
    10: 16,
    11: 11,
    12: 13,
    13: 15,
    14: 2,
    15: 1,
    16: 4,
    17: 3,
}


@dataclass(frozen=True)
class Keypoints:
    """One person over a clip.

    points: float32 (frames, 134, 3): x and y in pixels of a width x height picture, and a score
    in [0, 1] that is 0 where the point is missing. fps: frames per second.
    """

    points: np.ndarray
    fps: float
    width: int
    height: int

    def save(self, path: str | os.PathLike) -> None:
        """Writes an .npz file that load_keypoints reads; an existing file is replaced."""
        path = Path(path)
        if path.suffix != ".npz":
            raise UserError(f"{path}: keypoints are kept in .npz files; end the name in .npz")
        check_keypoints(self, str(path))
        try:
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(
                    file,
                    points=self.points,
                    fps=np.float64(self.fps),
                    size=np.array([self.width, self.height], np.int32),
                )
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def load_keypoints(path: str | os.PathLike) -> Keypoints:
    """Reads what Keypoints.save wrote; raises UserError for anything else."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such keypoint file; check the path")
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path}: not a keypoint file (.npz); make one with: animate-jax pose, or give a video"
            " with --driving; a pose that you have written down is for --reference-keypoints, and"
            " its name ends in .json"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            points, fps, size = archive["points"], archive["fps"], archive["size"]
    except _DAMAGE as error:
        raise UserError(
            f"{path}: not a keypoint file ({error}); make one with: animate-jax pose"
        ) from error
    if size.shape != (2,) or size.dtype.kind != "i" or fps.shape != () or fps.dtype.kind != "f":
        raise UserError(f"{path}: not a keypoint file (size or fps malformed); estimate it again")
    keypoints = Keypoints(points, float(fps), int(size[0]), int(size[1]))
    check_keypoints(keypoints, str(path))
    return keypoints


def load_written_points(path: str | os.PathLike) -> np.ndarray:
    """One pose that somebody has written down -> float32 (134, 3).

    JSON: {"nose": [x, y], "right_shoulder": [x, y], ...} in pixels, with as many of BODY_NAMES and
    FEET_NAMES as are seen; a neck that is not given lies between the shoulders. Raises UserError
    for anything else.
    """
    names = (*BODY_NAMES, *FEET_NAMES)
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file; check the path")
    try:
        written = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        places = {name: np.array(place, np.float32) for name, place in written.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f'{path}: is not JSON like {{"nose": [64, 30], ...}} ({error})') from error
    points = np.zeros((POINTS, 3), np.float32)
    for name, place in places.items():
        if name not in names:
            raise UserError(f"{path}: there is no point {name!r}; there are {', '.join(names)}")
        if place.shape != (2,) or not np.isfinite(place).all():
            raise UserError(f"{path}: {name} is {written[name]!r}; give its x and y in pixels")
        points[names.index(name)] = (*place, 1)
    shoulders = points[[names.index("right_shoulder"), names.index("left_shoulder")]]
    if "neck" not in places and shoulders[:, 2].all():
        points[NECK] = shoulders.mean(0)
    return points


def resized_points(points: np.ndarray, scale, offset=0.0) -> np.ndarray:
    """Points (..., 3) of a picture once it is `scale` (x, y) times as large and lies at `offset`
    (x, y), in pixels, of another. Scores stay."""
    # (0, 0) is the middle of the first pixel, half a pixel from the picture's edge.
    moved = points[..., :2] * scale + (offset + 0.5 * scale - 0.5)
    return np.concatenate([moved, points[..., 2:]], -1)


def first_pose(keypoints: Keypoints, width: int, height: int) -> np.ndarray:
    """The points of the first frame, float32 (134, 3), in pixels of a picture of another size.

    Raises UserError where there is no frame.
    """
    if not len(keypoints.points):
        raise UserError("the reference's keypoints have no frame; take those of a picture")
    scale = np.array([width / keypoints.width, height / keypoints.height])
    return resized_points(keypoints.points[0], scale).astype(np.float32)


def load_pose(path: str | os.PathLike, width: int, height: int) -> np.ndarray:
    """One pose, float32 (134, 3) in pixels of a picture: written by hand (.json) in its pixels, or
    the first of a keypoint file. Raises UserError for anything else."""
    if Path(path).suffix.lower() == ".json":
        return load_written_points(path)
    return first_pose(load_keypoints(path), width, height)


def check_keypoints(keypoints: Keypoints, name: str) -> None:
    """Raises UserError, speaking of `name`, unless shapes, types and ranges are as documented."""
    points = keypoints.points
    if points.ndim != 3 or points.shape[1:] != (POINTS, 3) or len(points) == 0:
        raise UserError(f"{name}: points have shape {points.shape}, expected (frames, 134, 3)")
    if points.dtype != np.float32:
        raise UserError(f"{name}: points are {points.dtype}, expected float32")
    if not np.isfinite(points).all():
        raise UserError(f"{name}: points contain NaN or infinity; estimate the poses again")
    if points[..., 2].min() < 0 or points[..., 2].max() > 1:
        raise UserError(f"{name}: scores leave the range 0 to 1; estimate the poses again")
    found = points[..., :2][points[..., 2] > 0]
    if len(found) and np.abs(found).max() <= 2 and min(keypoints.width, keypoints.height) > 8:
        raise UserError(
            f"{name}: places seem to be parts of the picture, from 0 to 1; multiply them by its"
            f" size, {keypoints.width}x{keypoints.height}: they are in pixels"
        )
    if not np.isfinite(keypoints.fps) or keypoints.fps <= 0:
        raise UserError(f"{name}: {keypoints.fps} frames per second is not possible")
    if keypoints.width < 1 or keypoints.height < 1:
        raise UserError(f"{name}: a {keypoints.width}x{keypoints.height} picture is not possible")


def from_wholebody133(points: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """COCO-WholeBody points (..., 133, 2) with scores (..., 133) -> float32 (..., 134, 3).

    COCO has no neck: it lies midway between the shoulders, with the lower of their two scores.
    """
    if points.shape[-2:] != (133, 2) or scores.shape != points.shape[:-1]:
        raise UserError(
            f"points {points.shape} and scores {scores.shape} are not COCO-WholeBody's 133 points"
        )
    coco = np.concatenate([points, scores[..., None]], axis=-1).astype(np.float32)
    result = np.zeros((*coco.shape[:-2], POINTS, 3), np.float32)
    for ours, theirs in BODY_FROM_COCO.items():
        result[..., ours, :] = coco[..., theirs, :]
    result[..., NECK, :] = middle(coco[..., 5, :], coco[..., 6, :])
    result[..., FEET.start :, :] = coco[..., 17:, :]
    return result


def middle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The point (..., 3) midway between two points; its score is the lower one."""
    score = np.minimum(a[..., 2:], b[..., 2:])
    return np.concatenate([(a[..., :2] + b[..., :2]) / 2, score], axis=-1)
