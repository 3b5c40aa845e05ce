"""BlazePose (arXiv 2006.10204): two small networks that find people and 33 landmarks on a CPU.

The detector looks at the whole picture and returns, for every person, the middle of the hips and a
second keypoint whose distance and direction give the size and the rotation of the body. The
landmark network looks at that square, turned upright, and refines its answer with heatmaps. In a
clip the landmark network also tells where the person will be, so the detector only has to look for
people who are not followed yet. Constants are those of MediaPipe's pose_detection and
pose_landmark graphs.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from animate_jax.errors import UserError
from animate_jax.pose.keypoints import NECK, POINTS, middle
from animate_jax.pose.models import FETCH
from animate_jax.pose.tracking import Person, box_of

DETECTOR_SIZE = 224
LANDMARK_SIZE = 256
MIN_DETECTION_SCORE = 0.3  # low: the landmark network judges again
MIN_PERSON_SCORE = 0.5
NMS_OVERLAP = 0.3
ROI_MARGIN = 1.25
HEATMAP_REACH = 3  # a 7 x 7 window
MIN_HEATMAP_PEAK = 0.5
PICTURE_MARGIN = 0.02  # points farther outside, as a share of the longer side, count as missing
SAME_PERSON = 0.08  # two poses whose points differ less than this share of their size are one

# OpenPose point -> BlazePose landmark. The face and hand landmarks of BlazePose (eye and mouth
# corners, knuckles) are left out: networks that draw poses know whole faces and hands or none.
FROM_BLAZEPOSE = {
    0: 0,
    2: 12,
    3: 14,
    4: 16,
    5: 11,
    6: 13,
    7: 15,
    8: 24,
    9: 26,
    10: 28,
    11: 23,
    12: 25,
    13: 27,
    14: 5,
    15: 2,
    16: 8,
    17: 7,
    18: 31,
    20: 29,
    21: 32,
    23: 30,
}
LEFT_SHOULDER, RIGHT_SHOULDER = 11, 12
ROI_CENTRE, ROI_TOP = 33, 34  # auxiliary landmarks


@dataclass(frozen=True)
class BlazePose:
    """The two networks as LiteRT interpreters, and the detector's anchors (2254, 2)."""

    detector: Any
    landmarks: Any
    anchors: np.ndarray


@dataclass(frozen=True)
class Region:
    """A square of a picture, turned: centre (2,) and side in pixels, `up` (2,) a unit vector."""

    centre: np.ndarray
    up: np.ndarray
    side: float

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) in [0, 1] of the square -> pixels of the picture."""
        right = np.array([-self.up[1], self.up[0]])
        offset = (np.asarray(points, np.float64) - 0.5) * self.side
        return self.centre + offset[..., :1] * right - offset[..., 1:] * self.up


def load_blazepose(
    detector: str | os.PathLike, landmarks: str | os.PathLike, threads: int | None = None
) -> BlazePose:
    """Loads the two .tflite files, to run on `threads` threads (by default up to four).

    Raises UserError when LiteRT is missing or a file is unfit.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise UserError(
            "the blazepose backend needs LiteRT; run: pip install 'animate-jax[pose]'"
        ) from error
    threads = threads or min(4, os.cpu_count() or 1)
    networks = []
    for path, size in ((detector, DETECTOR_SIZE), (landmarks, LANDMARK_SIZE)):
        try:
            network = Interpreter(model_path=os.fspath(path), num_threads=threads)
            network.allocate_tensors()
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"{path}: not a readable .tflite network ({error})") from error
        if tuple(network.get_input_details()[0]["shape"]) != (1, size, size, 3):
            raise UserError(f"{path}: not the expected BlazePose network; run: {FETCH}")
        networks.append(network)
    return BlazePose(networks[0], networks[1], _anchors())


def find_people(
    model: BlazePose, frame: np.ndarray, followed: tuple[Region, ...] = (), *, detect: bool = True
) -> tuple[list[Person], tuple[Region, ...]]:
    """People in an RGB uint8 (height, width, 3) frame, surest first, and where they will be next.

    `followed` are the regions returned for the previous frame of the clip; without them, or where
    the person is lost, the detector finds people anew. With detect=False it only does so when no
    followed person is left or one was lost.
    """
    picture = Image.fromarray(frame)
    found = [pose for region in followed if (pose := _pose(model, picture, region))]
    if detect or not found or len(found) < len(followed):
        regions = [r for r in _detect(model, picture) if not any(_covers(p[2], r) for p in found)]
        found += [pose for region in regions if (pose := _pose(model, picture, region))]
    found = _without_duplicates(found)
    people = [_person(landmarks, frame.shape[1], frame.shape[0]) for landmarks, _, _ in found]
    return people, tuple(region for _, _, region in found)


def _pose(model, picture, region):
    """(landmarks (39, 3) x px, y px, score; person score; next region), or None without a person.

    A landmark is scored by the probability that it is visible and present.
    """
    crop = _crop(picture, region)
    raw, flag, heatmaps = _run(model.landmarks, crop / np.float32(255), (39 * 5, 1, 64 * 64 * 39))
    score = float(flag.item())
    if not score > MIN_PERSON_SCORE:
        return None
    raw = raw.reshape(39, 5)
    inside = _refine(raw[:, :2] / LANDMARK_SIZE, heatmaps[0])
    pixels = region.to_picture(inside)
    probability = _sigmoid(raw[:, 3]) * _sigmoid(raw[:, 4])
    # The network counts from the square's edge, keypoints from the middle of the first pixel.
    landmarks = np.concatenate([pixels - 0.5, probability[:, None]], axis=1)
    following = _region(pixels[ROI_CENTRE], pixels[ROI_TOP])
    return (landmarks, score, following) if following else None


def _detect(model, picture):
    """Regions of the people that the detector sees, surest first."""
    width, height = picture.size
    scale = DETECTOR_SIZE / max(width, height)
    small = picture.resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BILINEAR
    )
    square = np.zeros((DETECTOR_SIZE, DETECTOR_SIZE, 3), np.float32)
    left, top = (DETECTOR_SIZE - small.width) // 2, (DETECTOR_SIZE - small.height) // 2
    square[top : top + small.height, left : left + small.width] = np.asarray(small)
    boxes, logits = _run(
        model.detector, square / 127.5 - 1, (len(model.anchors) * 12, len(model.anchors))
    )
    scores = _sigmoid(np.clip(logits[0, :, 0], -100, 100))
    likely = scores >= MIN_DETECTION_SCORE
    # Each row: box centre, box size, four keypoints; relative to the anchor, in network pixels.
    values = boxes[0, likely].reshape(-1, 6, 2) / DETECTOR_SIZE
    values[:, [0, 2, 3, 4, 5]] += model.anchors[likely, None]
    values = values[:, [0, 0, 2, 3, 4, 5]] + np.concatenate(
        [values[:, 1:2] * -0.5, values[:, 1:2] * 0.5, np.zeros_like(values[:, 2:])], axis=1
    )
    people = _weighted_suppression(values, scores[likely])
    stretch = np.array([width / small.width, height / small.height])
    keypoints = [(p[2:] * DETECTOR_SIZE - [left, top]) * stretch for p in people]
    return [region for k in keypoints if (region := _region(k[0], k[1]))]


def _weighted_suppression(values, scores):
    """Rows (n, 6, 2) that begin with a box's two corners -> one averaged row per person.

    The rows that overlap with the surest one are averaged by score, then the rest is treated so.
    """
    people = []
    order = np.argsort(-scores, kind="stable")
    while len(order):
        low, high = values[order, 0], values[order, 1]
        sides = np.minimum(high, high[0]) - np.maximum(low, low[0])
        common = np.prod(np.maximum(sides, 0), axis=1)
        areas = np.prod(np.maximum(high - low, 0), axis=1)
        same = common > NMS_OVERLAP * np.maximum(areas + areas[0] - common, 1e-9)
        same[0] = True
        people.append(np.average(values[order[same]], axis=0, weights=scores[order[same]]))
        order = order[~same]
    return people


def _region(centre, top):
    arm = np.asarray(top, np.float64) - centre
    length = float(np.linalg.norm(arm))
    if not np.isfinite(length) or length < 1:
        return None
    return Region(np.asarray(centre, np.float64), arm / length, 2 * length * ROI_MARGIN)


def _crop(picture, region):
    """float32 (256, 256, 3) in 0..255: the region turned upright, zero outside the picture.

    Large regions are first shrunk by a whole factor, so that sampling does not alias.
    """
    factor = max(1, int(region.side / LANDMARK_SIZE))
    origin = np.zeros(2)
    if factor > 1:
        corners = region.to_picture(np.array([[0, 0], [1, 0], [0, 1], [1, 1]]))
        low = np.clip(np.floor(corners.min(0)) - factor, 0, np.array(picture.size) - 1)
        low = (low // factor) * factor
        high = np.clip(np.ceil(corners.max(0)) + factor, low + 1, picture.size)
        picture = picture.reduce(factor, box=(*low.astype(int), *high.astype(int)))
        origin = low
    begin, across, down = (
        (region.to_picture(np.array(p)) - origin) / factor for p in ((0, 0), (1, 0), (0, 1))
    )
    across, down = (across - begin) / LANDMARK_SIZE, (down - begin) / LANDMARK_SIZE
    crop = picture.transform(
        (LANDMARK_SIZE, LANDMARK_SIZE),
        Image.Transform.AFFINE,
        (across[0], down[0], begin[0], across[1], down[1], begin[1]),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(crop, np.float32)


def _refine(points, heatmaps):
    """Points (39, 2) in [0, 1] moved to the centre of mass of their heatmap (64, 64, 39) nearby."""
    rows, columns = heatmaps.shape[:2]
    refined = points.copy()
    for index, (x, y) in enumerate(points):
        column, row = int(np.floor(x * columns)), int(np.floor(y * rows))
        if not (0 <= column < columns and 0 <= row < rows):
            continue
        left, top = max(0, column - HEATMAP_REACH), max(0, row - HEATMAP_REACH)
        right, bottom = column + HEATMAP_REACH + 1, row + HEATMAP_REACH + 1
        window = _sigmoid(heatmaps[top:bottom, left:right, index])
        if window.max() < MIN_HEATMAP_PEAK:
            continue
        mass = window.sum()
        refined[index] = (
            (window.sum(0) @ np.arange(left, left + window.shape[1])) / mass / columns,
            (window.sum(1) @ np.arange(top, top + window.shape[0])) / mass / rows,
        )
    return refined


def _person(landmarks, width, height):
    points = np.zeros((POINTS, 3), np.float32)
    for ours, theirs in FROM_BLAZEPOSE.items():
        points[ours] = landmarks[theirs]
    points[NECK] = middle(landmarks[LEFT_SHOULDER], landmarks[RIGHT_SHOULDER])
    margin = PICTURE_MARGIN * max(width, height)
    inside = (points[:, :2] >= -margin) & (points[:, :2] <= np.array([width, height]) + margin)
    points[~inside.all(axis=1)] = 0
    points[points[:, 2] == 0] = 0
    return Person(points, box_of(points))


def _covers(followed, detected):
    return np.linalg.norm(followed.centre - detected.centre) < 0.1 * (followed.side + detected.side)


def _without_duplicates(found):
    """Surest first; of two poses with nearly equal points only the surer one stays."""
    kept = []
    for pose in sorted(found, key=lambda pose: -pose[1]):
        distances = [
            np.linalg.norm(pose[0][:33, :2] - other[0][:33, :2], axis=1).mean() / other[2].side
            for other in kept
        ]
        if all(distance > SAME_PERSON for distance in distances):
            kept.append(pose)
    return kept


def _anchors():
    """Cell centres (2254, 2) in [0, 1]: 2 per cell at stride 8, 2 at 16, and 3 x 2 at 32."""
    layers = []
    for stride, per_cell in ((8, 2), (16, 2), (32, 6)):
        cells = DETECTOR_SIZE // stride
        y, x = np.mgrid[:cells, :cells]
        centres = (np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) / cells
        layers.append(np.repeat(centres, per_cell, axis=0))
    return np.concatenate(layers).astype(np.float32)


def _run(network, picture, sizes):
    """Outputs of a LiteRT network, picked by their number of values."""
    network.set_tensor(network.get_input_details()[0]["index"], picture[None].astype(np.float32))
    network.invoke()
    outputs = {int(np.prod(d["shape"])): d["index"] for d in network.get_output_details()}
    return [network.get_tensor(outputs[size]) for size in sizes]


def _sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))
