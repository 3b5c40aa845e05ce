"""DWPose (arXiv 2307.15880): YOLOX-L finds people, a SimCC network finds 133 points on each.

Both are ONNX files run by onnxruntime. The detector was trained on BGR pictures in 0..255, the
pose network on RGB ones normalised by ImageNet's mean and deviation (mmpose's `bgr_to_rgb`); each
gets what it was trained on here, while DWPose's demonstration hands BGR to both.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from animate_jax.errors import UserError
from animate_jax.pose.keypoints import from_wholebody133
from animate_jax.pose.skeleton import DRAWN_SCORE
from animate_jax.pose.tracking import Person

STRIDES = (8, 16, 32)
PADDING_GREY = 114
MIN_CANDIDATE_SCORE = 0.1
MIN_PERSON_SCORE = 0.3
NMS_OVERLAP = 0.45
PERSON_CLASS = 0
BOX_MARGIN = 1.25
SIMCC_BINS_PER_PIXEL = 2.0
RGB_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
RGB_DEVIATION = np.array([58.395, 57.12, 57.375], np.float32)


@dataclass(frozen=True)
class DWPose:
    """The two onnxruntime sessions and the sizes (width, height) of their input pictures."""

    detector: Any
    pose: Any
    detector_size: tuple[int, int]
    pose_size: tuple[int, int]


def load_dwpose(
    detector: str | os.PathLike, pose: str | os.PathLike, threads: int | None = None
) -> DWPose:
    """Loads the two .onnx files, on a GPU where onnxruntime has one; raises UserError if unfit.

    `threads` is how many CPU threads an operator may use; by default onnxruntime decides.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "the dwpose backend needs onnxruntime; run: pip install 'animate-jax[pose]'"
        ) from error
    available = onnxruntime.get_available_providers()
    providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    sessions, sizes = [], []
    for path, default in ((detector, (640, 640)), (pose, (288, 384))):
        try:
            session = onnxruntime.InferenceSession(os.fspath(path), options, providers=providers)
        except Exception as error:  # onnxruntime's errors share no narrower class
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: not a readable .onnx network ({reason})") from error
        shape = session.get_inputs()[0].shape
        if len(shape) != 4 or shape[1] != 3:
            raise UserError(f"{path}: takes inputs of shape {shape}, not pictures (1, 3, h, w)")
        fixed = all(isinstance(n, int) for n in shape[2:])
        sessions.append(session)
        sizes.append((shape[3], shape[2]) if fixed else default)
    return DWPose(*sessions, *sizes)


def find_people(model: DWPose, frame: np.ndarray) -> list[Person]:
    """People in an RGB uint8 (height, width, 3) frame, surest first."""
    picture = Image.fromarray(frame)
    return [Person(_points(model, picture, box), box) for box in detect_boxes(model, frame)]


def fill_frame(model: DWPose, frame: np.ndarray) -> Person | None:
    """Who fills an RGB uint8 (height, width, 3) frame in which nobody is found, as in a close-up.

    None where no point scores high enough to be drawn: there is nobody then.
    """
    box = np.array([0, 0, frame.shape[1], frame.shape[0]], np.float32)
    points = _points(model, Image.fromarray(frame), box)
    return Person(points, box) if points[:, 2].max() > DRAWN_SCORE else None


def detect_boxes(model: DWPose, frame: np.ndarray) -> np.ndarray:
    """Boxes (people, 4) x0, y0, x1, y1 in pixels, surest first."""
    width, height = model.detector_size
    scale = min(width / frame.shape[1], height / frame.shape[0])
    size = max(1, int(frame.shape[1] * scale)), max(1, int(frame.shape[0] * scale))
    canvas = np.full((height, width, 3), PADDING_GREY, np.float32)
    resized = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
    canvas[: size[1], : size[0]] = np.asarray(resized)
    (output,) = _run(model.detector, canvas[..., ::-1], 1)
    boxes, scores = decode_detections(output[0], width, height)
    return boxes / scale if len(boxes) else boxes


def decode_detections(output: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """YOLOX rows (cells, 5 + classes) -> boxes (people, 4) in network pixels and their scores.

    A row holds the box centre in cells from its own cell, the logarithm of the box size in cells,
    the probability of an object, and that of each class.
    """
    cells, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: height // stride, : width // stride]
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        strides.append(np.full((x.size, 1), stride))
    cells, strides = np.concatenate(cells), np.concatenate(strides)
    if output.ndim != 2 or len(output) != len(cells) or output.shape[1] < 6:
        raise UserError(f"the person detector returned {output.shape}, which is not YOLOX's output")
    centres = (output[:, :2] + cells) * strides
    halves = np.exp(np.minimum(output[:, 2:4], 20)) * strides / 2
    scores = output[:, 4] * output[:, 5 + PERSON_CLASS]
    candidates = scores > MIN_CANDIDATE_SCORE
    boxes = np.concatenate([centres - halves, centres + halves], axis=1)[candidates]
    scores = scores[candidates]
    kept = _suppress(boxes, scores)
    kept = kept[scores[kept] > MIN_PERSON_SCORE]
    return boxes[kept].astype(np.float32), scores[kept].astype(np.float32)


def decode_simcc(along_x: np.ndarray, along_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SimCC scores (points, bins) for x and y -> network pixels (points, 2), scores (points,).

    A point's score is the lower of the two maxima, brought into [0, 1].
    """
    points = np.stack([along_x.argmax(axis=1), along_y.argmax(axis=1)], axis=1)
    scores = np.minimum(along_x.max(axis=1), along_y.max(axis=1))
    return points / SIMCC_BINS_PER_PIXEL, np.clip(scores, 0, 1)


def _points(model, picture, box):
    """float32 (134, 3) of the person in the box, cut out with a margin and the network's aspect."""
    width, height = model.pose_size
    centre, sides = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * BOX_MARGIN
    step = max(sides[0] / width, sides[1] / height, 1e-6)  # picture pixels per network pixel
    begin = centre - step * np.array([width, height]) / 2
    # The network counts from pixel centres, Pillow from pixel edges.
    edge = begin + 0.5 - 0.5 * step
    crop = picture.transform(
        (width, height),
        Image.Transform.AFFINE,
        (step, 0, edge[0], 0, step, edge[1]),
        Image.Resampling.BILINEAR,
    )
    pixels = (np.asarray(crop, np.float32) - RGB_MEAN) / RGB_DEVIATION
    along_x, along_y = _run(model.pose, pixels, 2)
    if along_x.shape[:2] != (1, 133) or along_y.shape[:2] != (1, 133):
        raise UserError(
            f"the pose network returned {along_x.shape} and {along_y.shape}, not 133 points"
        )
    points, scores = decode_simcc(along_x[0], along_y[0])
    return from_wholebody133(points * step + begin, scores)


def _suppress(boxes, scores):
    """Indices of the boxes that overlap no surer one by more than NMS_OVERLAP, surest first."""
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        common = np.prod(np.maximum(high - low, 0), axis=1)
        areas = np.prod(boxes[order, 2:] - boxes[order, :2], axis=1)
        union = areas + np.prod(boxes[best, 2:] - boxes[best, :2]) - common
        order = order[common <= NMS_OVERLAP * union]
    return np.array(kept, int)


def _run(session, picture, outputs):
    batch = np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32)
    results = session.run(None, {session.get_inputs()[0].name: batch})
    if len(results) < outputs:
        raise UserError(f"a DWPose network returned {len(results)} outputs, expected {outputs}")
    return results[:outputs]
