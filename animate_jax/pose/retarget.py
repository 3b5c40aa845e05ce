"""Fits a driving motion to the person in the reference picture, in 2D.

Animate Anyone (arXiv 2311.17117) rescales the driving skeleton to the reference's proportions
before drawing it. Both people are seen in projection, so a bone is as long as it looks or longer.
The driving length of a bone is therefore a high quantile over the clip; in the single reference
picture the longer of the left and right bone counts, and the scale of the whole person is a
weighted median over bones, from which shortened ones are left out.
"""

import numpy as np

from animate_jax.errors import UserError
from animate_jax.pose import skeleton as sk
from animate_jax.pose.keypoints import resized_points
from animate_jax.pose.render import place_points

MODES = ("none", "scale", "bones")

# Bones that share one length ratio (left with right), and their weight in the scale of the person.
_FACE = sk.FACE_START
BONE_GROUPS = {
    "torso": (3.0, ((sk.NECK, sk.RIGHT_HIP), (sk.NECK, sk.LEFT_HIP))),
    "shoulders": (2.0, ((sk.NECK, sk.RIGHT_SHOULDER), (sk.NECK, sk.LEFT_SHOULDER))),
    "thighs": (2.0, ((sk.RIGHT_HIP, sk.RIGHT_KNEE), (sk.LEFT_HIP, sk.LEFT_KNEE))),
    "shins": (2.0, ((sk.RIGHT_KNEE, sk.RIGHT_ANKLE), (sk.LEFT_KNEE, sk.LEFT_ANKLE))),
    "neck": (2.0, ((sk.NECK, sk.NOSE),)),
    "upper arms": (
        1.0,
        ((sk.RIGHT_SHOULDER, sk.RIGHT_ELBOW), (sk.LEFT_SHOULDER, sk.LEFT_ELBOW)),
    ),
    "forearms": (1.0, ((sk.RIGHT_ELBOW, sk.RIGHT_WRIST), (sk.LEFT_ELBOW, sk.LEFT_WRIST))),
    # Nose to eye, eye to ear; in the 68-point face nose bridge to chin and between the eyes. They
    # are short and turn with the head, so they count for little beside the body.
    "eyes": (0.25, ((sk.NOSE, sk.RIGHT_EYE), (sk.NOSE, sk.LEFT_EYE))),
    "ears": (0.25, ((sk.RIGHT_EYE, sk.RIGHT_EAR), (sk.LEFT_EYE, sk.LEFT_EAR))),
    "face height": (0.25, ((_FACE + 27, _FACE + 8),)),
    "face width": (0.25, ((_FACE + 36, _FACE + 45),)),
}
_HEAD = ("eyes", "ears", "face height", "face width")

LENGTH_QUANTILE = 0.95  # over the clip: long enough to be unshortened, below the outliers
SMOOTHING_FRAMES = 5  # running median that removes single bad frames before the quantile
SHORTENED = 0.6  # a bone that looks below this part of its length points at the camera
MAX_STRETCH = 2.0  # a bone's ratio stays below this multiple of the person's ratio
LONGEST_GAP = 15  # frames over which a lost joint is taken to move on evenly
STANCE_SOFTNESS = 0.03  # height between the ankles, in person heights, that moves the weight over


def retarget(
    driving,
    reference,
    mode: str,
    *,
    driving_size,
    target_size,
    reference_size=None,
    threshold: float = 0.3,
    anchored: bool = False,
) -> np.ndarray:
    """Map driving points (F, 134, 3) to the target canvas -> float32 (F, 134, 3), target pixels.

    Points are x, y in pixels of their own picture and score; sizes are (width, height) in pixels.
    reference is (134, 3) or None; its picture is stretched to the target, as the pipeline does.

    mode `none`: the driving frame is fitted into the target, see `place_points`.
    mode `scale`: besides, one scale and one shift for the clip make the person as large as the
    reference's and, in the median over frames, stand in the same place. Place is the middle of
    the hips and the lower ankle; without ankles the middle of the hips, then the neck.
    mode `bones`: besides, every bone gets the reference's length (left and right alike) while
    its direction in every frame is kept. A bone that the reference does not show, or shows
    pointing at the camera, gets the scale of the person; hands follow the forearms, feet the
    shins, the face the head. Each frame is then moved so that the height of the lower ankle
    follows its driving path, as large as the reference's legs are by the driving ones, since that
    is how far they carry; and so does the standing foot sideways.

    anchored: the driving person is known to do in the first frame what the reference shows. So it
    is there, and not in the median over frames, that the two stand in the same place, unless that
    frame shows neither hips nor neck. And it is there that bones are measured, as both people's
    point the same way, except such as that frame does not show or shows pointing at the camera.

    Scores are kept. Points at or below the threshold are not measured and follow mode `scale`;
    points with score 0 are absent and keep their coordinates.

    Raises UserError for an unknown mode, wrong shapes, a missing reference, or a reference that
    shows less than the neck and two bones.
    """
    driving = _checked(driving, 3, "driving")
    if mode not in MODES:
        raise UserError(f"unknown retargeting mode {mode!r}; choose one of {', '.join(MODES)}")
    placed = place_points(driving, driving_size, target_size)
    if mode == "none":
        return placed
    placed = placed.astype(np.float64)
    if reference is None:
        raise UserError(
            f"retargeting mode '{mode}' needs the reference's pose and none was found; "
            "give one or use --retarget none"
        )
    if reference_size is None or min(reference_size) <= 0:
        raise UserError("retargeting needs the size (width, height) of the reference picture")
    scale = np.divide(target_size, reference_size)
    reference = resized_points(_checked(reference, 2, "reference"), scale)

    seen = _seen(placed, threshold)
    if seen.any():
        ratios, overall = _length_ratios(placed, reference, threshold, anchored)
        moved = placed * [overall, overall, 1]
        if mode == "bones":
            ratios = _point_ratios(ratios, overall)
            moved = _with_bone_lengths(placed, moved, seen, ratios)
            legs = ratios[[sk.LEFT_KNEE, sk.LEFT_ANKLE]].mean()
            moved[..., :2] += _stance_shift(placed * [legs, legs, 1], moved, seen)[:, None]
        visible = _seen(reference, threshold)
        shift = _shift_in_first_frame(moved, seen, reference, visible) if anchored else None
        if shift is None:
            shift = _shift_to_reference(moved, seen, reference, visible)
        moved[..., :2] += shift
        placed = np.where(placed[..., 2:] > 0, moved, placed)
    return placed.astype(np.float32)


def _checked(points, ndim, name):
    points = np.asarray(points, np.float64)
    if points.ndim != ndim or points.shape[-2:] != (sk.NUM_POINTS, 3):
        wanted = "(frames, 134, 3)" if ndim == 3 else "(134, 3)"
        raise UserError(f"the {name} pose has shape {points.shape}; {wanted} is needed")
    return points


def _seen(points, threshold):
    return (points[..., 2] > threshold) & np.isfinite(points).all(-1)


def _lengths(points, bones, threshold):
    """Length in every frame, (F, bones); NaN where an end is not seen."""
    first, second = np.transpose(bones)
    seen = _seen(points, threshold)
    lengths = np.linalg.norm(points[:, first, :2] - points[:, second, :2], axis=-1)
    return np.where(seen[:, first] & seen[:, second], lengths, np.nan)


def _clip_length(lengths):
    """Unshortened length of one bone over a clip (F,); NaN when it is never seen."""
    lengths = lengths[np.isfinite(lengths)]
    if not len(lengths):
        return np.nan
    half = SMOOTHING_FRAMES // 2
    padded = np.pad(lengths, half, mode="reflect" if len(lengths) > half else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, SMOOTHING_FRAMES)
    return np.quantile(np.median(windows, axis=1), LENGTH_QUANTILE)


def _length_ratios(driving, reference, threshold, anchored):
    """Reference length by driving length per group of bones, and the ratio of the whole person.

    A group that either side does not show is absent, as is one shortened in the reference.
    anchored: the first frame of `driving` has the reference's pose, see `retarget`.
    """
    visible = _seen(reference, threshold)
    pairs = [pair for _, group in BONE_GROUPS.values() for pair in group]
    shown = sum(bool(visible[a] and visible[b]) for a, b in pairs)
    if not visible[sk.NECK] or shown < 2:
        raise UserError(
            "the reference picture shows too little of the person to measure it (the neck and "
            "two bones are needed); use another picture or --retarget none"
        )
    ratios = {}
    for name, (_, bones) in BONE_GROUPS.items():
        there = _lengths(reference[None], bones, threshold)[0]
        lengths = _lengths(driving, bones, threshold)
        here = np.array([_clip_length(column) for column in lengths.T])
        if anchored:
            same_pose = np.isfinite(there) & (lengths[0] > SHORTENED * here)
            if same_pose.any():
                there, here = there[same_pose], lengths[0, same_pose]
        longest_there, longest_here = (np.fmax.reduce(side) for side in (there, here))
        if longest_there > 0 and longest_here > 0:
            ratios[name] = longest_there / longest_here
    if not ratios:
        raise UserError(
            "the driving motion and the reference picture show no bone in common; "
            "use --retarget none"
        )
    overall = _weighted_median(ratios)
    ratios = {name: ratio for name, ratio in ratios.items() if ratio > SHORTENED * overall}
    return ratios, _weighted_median(ratios)


def _weighted_median(ratios):
    names = sorted(ratios, key=ratios.get)
    heights = np.cumsum([BONE_GROUPS[name][0] for name in names])
    return ratios[names[np.searchsorted(heights, heights[-1] / 2)]]


def _point_ratios(ratios, overall):
    """Ratio of the bone that leads from its parent to each point, (134,)."""
    ratios = {name: min(ratio, MAX_STRETCH * overall) for name, ratio in ratios.items()}
    result = np.full(sk.NUM_POINTS, overall)
    for name, (_, bones) in BONE_GROUPS.items():
        for _, child in bones if name not in _HEAD else ():
            result[child] = ratios.get(name, overall)
    head = {name: ratios[name] for name in _HEAD if name in ratios}
    head_points = [sk.RIGHT_EYE, sk.LEFT_EYE, sk.RIGHT_EAR, sk.LEFT_EAR]
    head_points += range(sk.FACE_START, sk.LEFT_HAND_START)
    result[head_points] = _weighted_median(head) if head else result[sk.NOSE]
    result[sk.FEET_START : sk.FACE_START] = result[sk.LEFT_ANKLE]
    result[sk.LEFT_HAND_START :] = result[sk.LEFT_WRIST]
    return result


def _with_bone_lengths(driving, scaled, seen, ratios):
    """Rebuild every frame from the neck outwards; a gap is bridged from the nearest seen point.

    A part with no seen point towards the neck starts where the uniform scale puts it. A joint that
    is lost for a moment still carries what hangs on it, which would jump otherwise.
    """
    shown = seen
    seen = seen | _in_short_gap(seen)
    unbridged = scaled
    driving, scaled = (_bridged(points, shown, seen) for points in (driving, scaled))
    result = scaled.copy()
    anchor = np.full(seen.shape, -1)  # nearest seen point from here towards the neck
    stretch = np.zeros(seen.shape)  # sum and number of the ratios on the way to it
    steps = np.zeros(seen.shape)
    frames = np.arange(len(driving))
    for point in sk.TREE_ORDER[1:]:
        parent = sk.PARENTS[point]
        direct = seen[:, parent]
        anchor[:, point] = np.where(direct, parent, anchor[:, parent])
        stretch[:, point] = ratios[point] + np.where(direct, 0, stretch[:, parent])
        steps[:, point] = 1 + np.where(direct, 0, steps[:, parent])
        start = anchor[:, point]
        offset = driving[:, point, :2] - driving[frames, start, :2]
        scale = (stretch[:, point] / steps[:, point])[:, None]
        rebuilt = result[frames, start, :2] + scale * offset
        bridged = seen[:, point] & (start >= 0)
        result[:, point, :2] = np.where(bridged[:, None], rebuilt, result[:, point, :2])
    return np.where(shown[..., None], result, unbridged)


def _in_short_gap(seen):
    """Where a point is unseen, for at most LONGEST_GAP frames between two that show it."""
    frames = np.arange(len(seen))[:, None]
    before = np.maximum.accumulate(np.where(seen, frames, -1), axis=0)
    after = np.minimum.accumulate(np.where(seen, frames, len(seen))[::-1], axis=0)[::-1]
    inside = (before >= 0) & (after < len(seen))
    return ~seen & inside & (after - before - 1 <= LONGEST_GAP)


def _bridged(points, shown, seen):
    """Points that are seen and not shown lie evenly between where they were and will be."""
    result, frames = points.copy(), np.arange(len(points))
    for point in np.flatnonzero((seen & ~shown).any(0)):
        there, gap = shown[:, point], seen[:, point] & ~shown[:, point]
        for axis in range(2):
            path = points[there, point, axis]
            result[gap, point, axis] = np.interp(frames[gap], frames[there], path)
    return result


def _stance_shift(scaled, rebuilt, seen):
    """Shift (F, 2) that puts the rebuilt feet on the path of the scaled ones.

    Down: the lower ankle is as low as before. Sideways: the ankles' shifts are averaged, weighted
    towards the lower one, so the standing foot keeps its place and a change of foot is smooth.
    Frames without ankles take the shift of their neighbours; clips without ankles none.
    """
    ankles = [sk.RIGHT_ANKLE, sk.LEFT_ANKLE]
    known = seen[:, ankles]
    some = known.any(1)
    if not some.any():
        return np.zeros((len(scaled), 2))
    before, after = scaled[:, ankles, :2][some], rebuilt[:, ankles, :2][some]
    known = known[some]
    low_before, low_after = (np.where(known, p[..., 1], -np.inf).max(1) for p in (before, after))
    heights = np.where(seen, scaled[..., 1], np.nan)[some]
    person = np.median(np.nanmax(heights, 1) - np.nanmin(heights, 1))
    height = np.where(known, before[..., 1] - low_before[:, None], -np.inf)
    weight = np.exp(height / (STANCE_SOFTNESS * max(person, 1)))
    weight /= weight.sum(1, keepdims=True)
    sideways = (weight * np.where(known, before[..., 0] - after[..., 0], 0)).sum(1)
    shift = np.stack([sideways, low_before - low_after], -1)
    frames = np.arange(len(scaled))
    return np.stack([np.interp(frames, frames[some], axis) for axis in shift.T], -1)


def _shift_to_reference(moved, seen, reference, visible):
    """Shift (2,) of the whole clip that puts its typical place on the reference person's."""
    for place in (_standing_place, _hip_place, _neck_place, _centre):
        goal, path = place(reference[None], visible[None])[0], place(moved, seen)
        known = np.isfinite(path).all(-1)
        if np.isfinite(goal).all() and known.sum() >= seen.any(1).sum() / 2:
            break
    return goal - np.median(path[known], axis=0)


def _shift_in_first_frame(moved, seen, reference, visible):
    """The same where the first frame is the reference's pose; None where it shows too little."""
    for place in (_standing_place, _hip_place, _neck_place):
        shift = place(reference[None], visible[None])[0] - place(moved[:1], seen[:1])[0]
        if np.isfinite(shift).all():
            return shift
    return None


def _standing_place(points, seen):
    ankles = [sk.RIGHT_ANKLE, sk.LEFT_ANKLE]
    lower = np.where(seen[:, ankles], points[:, ankles, 1], np.nan)
    return np.stack([_hip_place(points, seen)[:, 0], np.fmax.reduce(lower, axis=1)], -1)


def _hip_place(points, seen):
    hips = [sk.RIGHT_HIP, sk.LEFT_HIP]
    return np.where(seen[:, hips, None], points[:, hips, :2], np.nan).mean(1)


def _neck_place(points, seen):
    return np.where(seen[:, [sk.NECK]], points[:, sk.NECK, :2], np.nan)


def _centre(points, seen):
    total = np.where(seen[..., None], points[..., :2], 0).sum(1)
    return total / np.where(seen.any(1), seen.sum(1), np.nan)[:, None]
