"""The `pose` command, and the driving motion of `animate`: from a video, keypoints or drawings."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np

from animate_jax.errors import UserError, UserNote
from animate_jax.files import check_file, check_kept
from animate_jax.inference.preprocessing import fit_drawing, resize
from animate_jax.pose.estimate import estimate_keypoints, estimate_picture, load_estimator
from animate_jax.pose.keypoints import Keypoints, load_keypoints, load_pose
from animate_jax.pose.retarget import retarget
from animate_jax.video.reading import VideoInfo, probe_video, read_frames
from animate_jax.video.writing import exact_rate

_SIZES = ("driving_size", "target_size", "reference_size")


def pose(options) -> None:
    """Runs `animate-jax pose`; options as its parser gives them."""
    out = Path(options.out)
    if out.suffix != ".npz":
        raise UserError(f"{out}: keypoints are kept in .npz files; end the name in .npz")
    check_file(out, options.overwrite)
    check_kept([out], [options.video])
    if options.fps is not None:
        exact_rate(options.fps)
    info = _probed(options.video, options.fps)
    keypoints = _keypoints_of_video(options.video, info, options, _estimator(options))
    keypoints.save(out)
    seen = (keypoints.points[..., 2] > 0).any(1)
    print(f"wrote {out}: {len(seen)} frames, the person is seen in {seen.sum()}")


def driving_motion(
    options, picture: np.ndarray, size: tuple[int, int], resample: str
) -> tuple[np.ndarray, float, np.ndarray | None]:
    """What the pipeline takes as motion, its frames per second, and the pose of the person in the
    reference, (134, 3) in its pixels, where it is known.

    Keypoints (frames, 134, 3) in pixels of the video of `size` (width, height), retargeted to the
    person in the reference picture (H, W, 3); for --pose-video the drawn frames, stretched as the
    reference is where their proportions are its own, else fitted into the size with theirs kept;
    with `--pose-fit stretch` all are stretched.
    """
    if options.pose_video:
        if options.retarget not in (None, "none"):
            raise UserError("--retarget needs keypoints; drawn skeletons are taken as they are")
        told = dict(stride=options.stride, limit=options.frames, drawn=True)
        frames = read_frames(options.pose_video, **told)
        if options.pose_fit == "stretch":
            frames = np.stack([resize(frame, *size, resample) for frame in frames])
        else:
            frames = np.stack([fit_drawing(frame, picture, *size, resample) for frame in frames])
        info = _probed(options.pose_video, _rate(options.pose_video, options))
        return frames, info.fps / options.stride, None
    if options.driving:
        info = _probed(options.driving, _rate(options.driving, options))
        estimator = _estimator(options)
        mode, reference = _reference(options, picture, lambda: estimator)
        keypoints = _keypoints_of_video(options.driving, info, options, estimator)
    else:
        keypoints = _keypoints_from_file(options)
        mode, reference = _reference(options, picture, lambda: _estimator(options))
    _note_lost(keypoints)
    sizes = dict(
        driving_size=(keypoints.width, keypoints.height),
        target_size=size,
        reference_size=(picture.shape[1], picture.shape[0]),
    )
    try:
        points = retarget(keypoints.points, reference, mode, **sizes)
    except UserError as error:
        if options.retarget:
            raise
        _note_unfitted(error)
        points = retarget(keypoints.points, None, "none", **sizes)
    return points, keypoints.fps, reference


def _estimator(options):
    return load_estimator(options.backend, det=options.detector, pose=options.pose_network)


def _rate(path, options) -> float | None:
    """Of a folder of pictures that is to become a video of --fps; a file has its own."""
    return options.fps * options.stride if options.fps and Path(path).is_dir() else None


def _probed(path, fps: float | None) -> VideoInfo:
    """What is known of a video; fps: in place of what a file says, or a folder does not."""
    info = probe_video(path)
    if fps:
        return dataclasses.replace(info, fps=fps)
    if Path(path).is_dir():
        note = f"{path}: pictures do not say their rate; taken as {info.fps:g} per second (--fps)"
        warnings.warn(note, UserNote, stacklevel=4)
    return info


def _keypoints_of_video(path, info, options, estimator) -> Keypoints:
    total = -(-info.frames_hint // options.stride) if info.frames_hint else None
    if total and options.frames:
        total = min(total, options.frames)
    return estimate_keypoints(
        read_frames(path, stride=options.stride, limit=options.frames),
        fps=info.fps / options.stride,
        width=info.width,
        height=info.height,
        backend=estimator,
        person=options.person,
        smooth=options.smooth,
        total=total,
    )


def _keypoints_from_file(options) -> Keypoints:
    keypoints = load_keypoints(options.keypoints)
    points = keypoints.points[:: options.stride][: options.frames]
    return dataclasses.replace(keypoints, points=points, fps=keypoints.fps / options.stride)


def _reference(options, picture, estimator):
    """The retargeting mode and the reference's pose (134, 3) in its pixels, given or found.

    Without --retarget the mode is `scale`, or `none`, with a note, where there is no such pose, or
    too little of it to measure. With `none` a pose that is given is read, none is looked for.
    """
    mode = options.retarget or "scale"
    if mode == "none" and not options.reference_keypoints:
        return mode, None
    size = picture.shape[1], picture.shape[0]
    if options.reference_keypoints:
        return mode, load_pose(options.reference_keypoints, *size)
    try:
        points = estimate_picture(picture, estimator())
        # Measured against itself: what cannot be measured is known before the long work.
        retarget(points[None], points, mode, **dict.fromkeys(_SIZES, size))
        return mode, points
    except UserError as error:
        if options.retarget:
            raise UserError(
                f"{options.reference}: {error}; or give --reference-keypoints, or --retarget none"
            ) from error
        _note_unfitted(error)
        return "none", None


def _note_lost(keypoints):
    x, y, score = np.moveaxis(keypoints.points, -1, 0)
    inside = (0 <= x) & (x < keypoints.width) & (0 <= y) & (y < keypoints.height)
    lost = ~((score > 0) & inside).any(1)
    if lost.any():
        note = f"the person is not found in {lost.sum()} of {len(lost)} frames, which have no"
        note += " skeleton; cut them off, or try --person 1 or --backend dwpose"
        warnings.warn(note, UserNote, stacklevel=3)


def _note_unfitted(error):
    warnings.warn(f"the motion is not fitted to the reference: {error}", UserNote, stacklevel=3)
