"""Who is who over time: detections of single frames joined into one track per person.

Greedy association: each track predicts where its box will be from its recent velocity; the pairs
of track and detection that agree best (overlap, nearness, equal size) are joined first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from animate_jax.errors import UserError
from animate_jax.pose.keypoints import BODY, FACE, FEET, POINTS
from animate_jax.pose.skeleton import MIRROR

MIN_TRACK_SCORE = 0.3  # points below this do not shape a person's box
SWAP_COST = 0.002  # of taking one frame's left for its right, in mean movement per body height
MAX_SIZES = 3.0  # times as high as the other; more is not one person, unless they overlap
MAX_MOVEMENT = 0.5  # body heights; a wild point says no more than this
MAX_GAP = 30  # frames in which a person may be overlooked


@dataclass(frozen=True)
class Person:
    """One person in one frame: points float32 (134, 3) x, y, score, and box (x0, y0, x1, y1)."""

    points: np.ndarray
    box: np.ndarray

    @property
    def area(self) -> float:
        """Pixels squared."""
        return float(max(self.box[2] - self.box[0], 0) * max(self.box[3] - self.box[1], 0))


@dataclass(frozen=True)
class Track:
    """The appearances of one person: frame index -> Person, ascending, in `frames` frames."""

    frames: int
    people: dict[int, Person]

    @property
    def first(self) -> int:
        """Index of the earliest frame with this person."""
        return next(iter(self.people))

    @property
    def last(self) -> int:
        """Index of the latest frame with this person."""
        return next(reversed(self.people))

    @property
    def presence(self) -> float:
        """Heights of the person's boxes summed over frames: who is small has to be there longer."""
        return float(sum(person.box[3] - person.box[1] for person in self.people.values()))

    def predicted(self, frame: int) -> np.ndarray:
        """The box (4,) expected in `frame`: the last one, moved on for at most ten frames."""
        recent = list(self.people.items())[-5:]
        (first, start), (last, end) = recent[0], recent[-1]
        if first == last:
            return end.box
        velocity = (_centre(end.box) - _centre(start.box)) / (last - first)
        return end.box + np.tile(velocity * min(frame - last, 10), 2)

    def points(self) -> np.ndarray:
        """float32 (frames, 134, 3), zeros in frames without this person."""
        result = np.zeros((self.frames, POINTS, 3), np.float32)
        for frame, person in self.people.items():
            result[frame] = person.points
        return result


def track(detections: Sequence[Sequence[Person]], *, max_gap: int = MAX_GAP) -> list[Track]:
    """People of consecutive frames -> tracks, those with the most presence first.

    A person who is not detected for up to `max_gap` frames keeps the track.
    """
    tracks: list[Track] = []
    for frame, people in enumerate(detections):
        active = [t for t in tracks if frame - t.last <= max_gap + 1]
        pairs = [
            (_agreement(t.predicted(frame), person.box, frame - t.last), i, j)
            for i, t in enumerate(active)
            for j, person in enumerate(people)
        ]
        free_tracks, free_people = set(range(len(active))), set(range(len(people)))
        for agreement, i, j in sorted(pairs, key=lambda pair: -pair[0]):
            if agreement > 0 and i in free_tracks and j in free_people:
                active[i].people[frame] = people[j]
                free_tracks.remove(i)
                free_people.remove(j)
        tracks += [Track(len(detections), {frame: people[j]}) for j in sorted(free_people)]
    return sorted(tracks, key=lambda t: -t.presence)


def joined(tracks: Sequence[Track]) -> list[Track]:
    """The tracks as one where none lasts beside another: whoever leaves and comes back, runs, or
    is shown closer after a cut. Else as they are."""
    tracks = sorted(tracks, key=lambda t: t.first)
    if any(a.last > b.first for a, b in pairwise(tracks)):
        return sorted(tracks, key=lambda t: -t.presence)
    people = dict(item for t in tracks for item in t.people.items())
    return [Track(tracks[0].frames, people)] if tracks else []


def select_track(tracks: Sequence[Track], person: int | None = None) -> np.ndarray:
    """Points float32 (frames, 134, 3) of one track, zeros where absent.

    `person` counts tracks by presence, most first; None takes the first. Raises UserError when
    there is no such track.
    """
    if not tracks:
        raise UserError("no person was found; use a clip in which the whole body can be seen")
    ranked = sorted(tracks, key=lambda t: -t.presence)
    person = 0 if person is None else person
    if not 0 <= person < len(ranked):
        raise UserError(
            f"there is no person {person}: {len(ranked)} found, counted from 0, most seen first"
        )
    return ranked[person].points()


def mirrored_names(points: np.ndarray) -> np.ndarray:
    """Points (..., 134, 3) of body, feet and hands with left and right exchanged (face untouched).

    Only the names change, not the coordinates.
    """
    order = MIRROR.copy()
    order[FACE] = np.r_[FACE]
    return points[..., order, :]


def steady_sides(points: np.ndarray) -> np.ndarray:
    """One person's points (frames, 134, 3) without frames whose left and right are exchanged.

    Pose networks take a back for a front at times and exchange all limbs for some frames. Of all
    ways to exchange left and right in some frames, this takes the one with the least movement
    (Viterbi over two states per frame); exchanging costs a little, so a steady clip stays as it is.
    A point counts as far as it, its other side, and both a frame later are seen: nobody can tell
    of a limb that is seen alone which side it is, and not exchanging has to cost no more.
    """
    body = np.r_[BODY, FEET]
    seen = np.flatnonzero(points[:, body, 2].max(axis=1) > 0)
    if len(seen) < 2:
        return points
    both = np.stack([points[seen], mirrored_names(points[seen])], axis=1)[:, :, body]
    height = max(float(np.median([box[3] - box[1] for box in map(box_of, points[seen])])), 1.0)
    cost = np.array([0.0, SWAP_COST])
    came_from = []
    for before, now in pairwise(both):
        moved = np.linalg.norm(before[:, None, :, :2] - now[None, :, :, :2], axis=-1) / height
        weight = np.minimum(before[..., 2], now[..., 2]).min(axis=0)
        step = (np.minimum(moved, MAX_MOVEMENT) * weight).mean(axis=-1)
        total = cost[:, None] + step + np.array([0.0, SWAP_COST])
        came_from.append(total.argmin(axis=0))
        cost = total.min(axis=0)
    state = int(cost.argmin())
    states = [state]
    for choice in reversed(came_from):
        state = int(choice[state])
        states.append(state)
    swapped = seen[np.array(states[::-1]) == 1]
    result = points.copy()
    result[swapped] = mirrored_names(points[swapped])
    return result


def box_of(points: np.ndarray) -> np.ndarray:
    """The box (4,) x0, y0, x1, y1 around points (134, 3) with a score; zeros when there is none."""
    scored = points[points[:, 2] > MIN_TRACK_SCORE]
    if len(scored) == 0:
        scored = points[points[:, 2] > 0]
    if len(scored) == 0:
        return np.zeros(4, np.float32)
    return np.concatenate([scored[:, :2].min(0), scored[:, :2].max(0)]).astype(np.float32)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (4,)."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - common
    return common / union if union > 0 else 0.0


def _agreement(expected, box, gap):
    """Above 0 when the two boxes can be one person; the radius allowed grows with the gap."""
    low, high = sorted(max(float(b[3] - b[1]), 1.0) for b in (expected, box))
    distance = float(np.linalg.norm(_centre(expected) - _centre(box))) / high
    radius = min(0.3 + 0.03 * (gap - 1), 0.8)
    iou = overlap(expected, box)
    if (distance > radius or high > MAX_SIZES * low) and iou < 0.3:
        return 0.0
    return iou + max(1.0 - distance, 0.01)


def _centre(box):
    return (box[:2] + box[2:]) / 2
