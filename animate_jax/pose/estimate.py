"""Keypoints of one person from a clip or a picture, by either backend.

`blazepose` is small and runs on any CPU: body and feet. `dwpose` is what Animate Anyone's public
weights were trained with: body, feet, face and hands, at several times the cost.
"""

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from animate_jax.errors import UserError, UserNote
from animate_jax.pose import blazepose, dwpose
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.models import blazepose_model_paths, dwpose_model_paths
from animate_jax.pose.smoothing import smooth_keypoints
from animate_jax.pose.tracking import (
    MAX_GAP,
    Person,
    Track,
    joined,
    select_track,
    steady_sides,
    track,
)

BACKENDS = ("blazepose", "dwpose")
DETECT_EVERY = 5  # frames between BlazePose's looks for people it does not follow yet


@dataclass(frozen=True)
class Estimator:
    """`find(frame, index, state) -> (people, state)`; the state of a clip's first frame is None.

    `fill(frame)` is who fills a frame in which `find` finds nobody, as in a close-up, or None.
    """

    find: Callable[[np.ndarray, int, Any], tuple[list[Person], Any]]
    fill: Callable[[np.ndarray], Person | None] = lambda frame: None


def load_estimator(
    backend: str = "blazepose",
    *,
    det: str | os.PathLike | None = None,
    pose: str | os.PathLike | None = None,
    threads: int | None = None,
) -> Estimator:
    """Loads a backend's two networks: `det` finds people and `pose` their points.

    Paths default to the fetched files. `threads` is how many threads a network may use; by default
    the backend decides. Raises UserError for an unknown backend, a missing package or missing
    files.
    """
    if backend == "blazepose":
        model = blazepose.load_blazepose(*blazepose_model_paths(det, pose), threads=threads)

        def find(frame, index, followed):
            detect = index % DETECT_EVERY == 0
            return blazepose.find_people(model, frame, followed or (), detect=detect)

        return Estimator(find)
    if backend == "dwpose":
        networks = dwpose.load_dwpose(*dwpose_model_paths(det, pose), threads=threads)
        return Estimator(
            lambda frame, index, state: (dwpose.find_people(networks, frame), None),
            lambda frame: dwpose.fill_frame(networks, frame),
        )
    raise UserError(f"there is no pose backend {backend!r}; choose one of {', '.join(BACKENDS)}")


def estimate_keypoints(
    frames: Iterable[np.ndarray],
    *,
    fps: float,
    width: int,
    height: int,
    backend: str | Estimator = "blazepose",
    person: int | None = None,
    smooth: bool = True,
    total: int | None = None,
    progress: bool = True,
    det: str | os.PathLike | None = None,
    pose: str | os.PathLike | None = None,
) -> Keypoints:
    """Follows one person through uint8 (height, width, 3) RGB frames.

    `person` counts the people by how long and how large they are seen; None takes the first, and
    where only one is seen at a time, takes all for one, who may leave and come back.
    Frames without the person have score 0 everywhere. Where nobody is found, nor was shortly
    before, whoever fills the frame is the first person. `smooth` takes the jitter out of positions.
    `total`, the expected number of frames, lets the progress bar show the time left. `backend` may
    be a loaded Estimator; `det` and `pose` name network files. Raises UserError when nobody is
    found or there are no frames.
    """
    estimator = _estimator(backend, det, pose)
    bar = tqdm(frames, desc="poses", total=total, unit="frame", disable=not progress)
    filling: dict[int, Person] = {}
    estimator = _keeping_who_fills(estimator, filling)
    detections = detect_people(bar, estimator, width=width, height=height)
    tracks = track(detections)
    if person is None:
        tracks = _one_person(tracks)
    if filling:
        found = tracks[0].people if tracks else {}
        tracks[:1] = [Track(len(detections), dict(sorted((found | filling).items())))]
    points = steady_sides(select_track(tracks, person))
    if smooth:
        points = smooth_keypoints(points, float(fps))
    return Keypoints(points, float(fps), int(width), int(height))


def detect_people(
    frames: Iterable[np.ndarray], estimator: Estimator, *, width: int, height: int
) -> list[list[Person]]:
    """The people in each of the uint8 (height, width, 3) RGB frames of one clip, surest first.

    Raises UserError when there are no frames or one has another size.
    """
    detections, state = [], None
    for index, frame in enumerate(frames):
        if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
            raise UserError(
                f"frame {index} is {frame.dtype} {frame.shape}, expected uint8 {(height, width, 3)}"
            )
        people, state = estimator.find(frame, index, state)
        detections.append(people)
    if not detections:
        raise UserError("there are no frames to estimate poses in; check the frame range")
    return detections


def estimate_picture(
    image: np.ndarray,
    backend: str | Estimator = "blazepose",
    *,
    det: str | os.PathLike | None = None,
    pose: str | os.PathLike | None = None,
) -> np.ndarray:
    """Points float32 (134, 3) of the largest person in a uint8 (height, width, 3) RGB picture.

    Raises UserError when nobody is found.
    """
    estimator = _estimator(backend, det, pose)
    people, _ = estimator.find(image, 0, None)
    if people:
        return max(people, key=lambda person: person.area).points
    filling = estimator.fill(image)
    if filling is None:
        raise UserError("no person was found in the picture; use one that shows the whole body")
    return filling.points


def _one_person(tracks):
    together = joined(tracks)
    if len(together) < len(tracks):
        again = sorted(t.first for t in tracks)[1:]
        note = f"the person is lost and found again {len(again)} times, first in frame {again[0]},"
        note += " and taken for the same one; person 0 would be the longest part alone"
        warnings.warn(note, UserNote, stacklevel=3)
    return together


def _keeping_who_fills(estimator, filling):
    """The same estimator; `filling`, by frames, gets who fills those where nobody is followed."""
    last = None

    def find(frame, index, state):
        nonlocal last
        people, state = estimator.find(frame, index, state)
        if people:
            last = index
        elif last is None or index - last > MAX_GAP:
            if (person := estimator.fill(frame)) is not None:
                filling[index] = person
        return people, state

    return Estimator(find)


def _estimator(backend, det, pose):
    if isinstance(backend, Estimator):
        return backend
    return load_estimator(backend, det=det, pose=pose)
