"""From one clip to the keypoints of the one person in it, or to the reason why there are none."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from animate_jax.errors import UserError
from animate_jax.pose.estimate import Estimator, detect_people, load_estimator
from animate_jax.pose.keypoints import BODY, Keypoints
from animate_jax.pose.smoothing import smooth_keypoints
from animate_jax.pose.tracking import Person, overlap, select_track, steady_sides, track
from animate_jax.video.reading import read_frames
from data_prep.places import RESULT, local_copy

NO_PERSON = "no person"
SEVERAL_PEOPLE = "several people"
FEW_KEYPOINTS = "few keypoints"

CONFIDENT = 0.3  # scores above this count; skeletons are drawn from them too
SMALL_PERSON = 0.25  # of the height of the one who is followed; smaller people do not count
LOOK_EVERY = 5  # frames between second looks
SAME_PERSON = 0.5  # overlap of boxes from which on a second look has found the first person


@dataclass(frozen=True)
class PoseSettings:
    """How poses are estimated and what a clip must show.

    min_person: share of the frames in which the person must be found. max_second: share of the
    frames in which a second person may be. min_keypoints: mean share of the 18 body points that
    are confident (score above 0.3) where the person is found. detector, pose_network: files of
    the backend's networks; by default those that are fetched.
    """

    backend: str = "blazepose"
    smooth: bool = True
    min_person: float = 0.8
    max_second: float = 0.1
    min_keypoints: float = 0.5
    detector: str | None = None
    pose_network: str | None = None

    def __post_init__(self):
        for name in ("min_person", "max_second", "min_keypoints"):
            if not 0 <= getattr(self, name) <= 1:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} {getattr(self, name):g} is no share from 0 to 1")


@dataclass(frozen=True)
class Clip:
    """An encoded clip at `path`, a place, with what is known of it."""

    name: str
    path: str
    fps: float
    width: int
    height: int


def load_pose(settings: PoseSettings) -> Callable[[Clip], dict[str, bytes]]:
    """The job of a worker that finds poses: Clip -> files by name, as pose_clip returns them.

    Its networks are loaded once and run on one thread, so that results do not depend on how many
    workers or cores there are.
    """
    networks = dict(det=settings.detector, pose=settings.pose_network)
    estimator = load_estimator(settings.backend, threads=1, **networks)
    return lambda clip: pose_clip(clip, estimator, settings)


def pose_clip(clip: Clip, estimator: Estimator, settings: PoseSettings) -> dict[str, bytes]:
    """Files by name: keypoints.npz where the clip is kept, and the JSON object result.json.

    The latter holds `drop` (reason and detail, or null), and of a kept clip `person`, the share of
    the frames in which the person is found, and `confident`, the mean share of confident points.
    """
    with local_copy(clip.path) as path:
        size = dict(width=clip.width, height=clip.height)
        detections = detect_people(read_frames(path), looking_twice(estimator), **size)
    drop = people_fault(detections, settings)
    if drop:
        return {RESULT: _json({"drop": drop})}
    points = steady_sides(select_track(track(detections)))
    if settings.smooth:
        points = smooth_keypoints(points, clip.fps)
    found = (points[..., 2] > 0).any(axis=1)
    confident = (points[found][:, BODY, 2] > CONFIDENT).mean()
    if confident < settings.min_keypoints:
        detail = f"{confident:.0%} of the body points on average are confident"
        return {RESULT: _json({"drop": {"reason": FEW_KEYPOINTS, "detail": detail}})}
    keypoints = Keypoints(points, clip.fps, clip.width, clip.height)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "keypoints.npz"
        keypoints.save(file)
        content = file.read_bytes()
    seen = {"person": round(float(found.mean()), 4), "confident": round(float(confident), 4)}
    return {RESULT: _json({"drop": None, **seen}), "keypoints.npz": content}


def looking_twice(estimator: Estimator) -> Estimator:
    """The same estimator, which in every fifth frame looks again with the person painted over.

    A network made for one person overlooks others beside the one it sees.
    """

    def find(frame, index, state):
        people, state = estimator.find(frame, index, state)
        if len(people) == 1 and index % LOOK_EVERY == 0:
            others, _ = estimator.find(_painted_over(frame, people[0].box), 0, None)
            people += [p for p in others if overlap(p.box, people[0].box) < SAME_PERSON]
        return people, state

    return Estimator(find)


def people_fault(detections: Sequence[Sequence[Person]], settings: PoseSettings) -> dict | None:
    """Why a clip with these people in its frames is dropped, as {"reason", "detail"}, or None.

    Everybody is followed, and counts as there between frames in which they are found that are at
    most two second looks apart. A frame shows several people when two or more are there who are at
    least a quarter as high as the one who is seen most.
    """
    tracks = track(detections)
    if not tracks:
        return {"reason": NO_PERSON, "detail": "nobody is found"}
    heights = [np.median([_height(person) for person in t.people.values()]) for t in tracks]
    there = np.zeros(len(detections), int)
    for someone, height in zip(tracks, heights, strict=True):
        if height >= SMALL_PERSON * heights[0]:
            there += _seen_or_between(someone)
    several, followed = np.mean(there > 1), len(tracks[0].people) / len(detections)
    if several > settings.max_second:
        share = f"a second person in {several:.0%} of the frames"
        return {"reason": SEVERAL_PEOPLE, "detail": share}
    if followed < settings.min_person:
        share = f"one person is followed through {followed:.0%} of the frames"
        return {"reason": NO_PERSON, "detail": share}
    return None


def _seen_or_between(someone):
    """Whether the person of a track is there, bool (frames,): found, or soon before and after."""
    frames = np.array(list(someone.people))
    there = np.zeros(someone.frames, bool)
    there[frames] = True
    for before, after in zip(frames, frames[1:], strict=False):
        if after - before <= 2 * LOOK_EVERY:
            there[before:after] = True
    return there


def _painted_over(frame, box):
    """A copy of the frame, its mean colour over the box and a margin; boxes leave out the hair."""
    x0, y0, x1, y1 = box
    margin = 0.1 * (y1 - y0)
    top, bottom = max(0, int(y0 - 1.5 * margin)), max(0, int(y1 + margin))
    left, right = max(0, int(x0 - margin)), max(0, int(x1 + margin))
    result = frame.copy()
    result[top:bottom, left:right] = frame.reshape(-1, 3).mean(axis=0)
    return result


def _height(person):
    return float(person.box[3] - person.box[1])


def _json(content):
    return (json.dumps(content) + "\n").encode()
