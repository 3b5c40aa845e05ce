"""From one video to clips: cut into scenes, filtered, encoded so that any frame decodes fast."""

import itertools
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from animate_jax.errors import UnreadableError, UserError, UserNote, hand_notes_to
from animate_jax.video.reading import probe_video, read_frames
from animate_jax.video.writing import SHORT_GROUPS, exact_rate, write_video
from data_prep.layouts import Video, printable
from data_prep.places import RESULT, local_copy
from data_prep.scenes import cut_detector, find_scenes

UNREADABLE = "unreadable"
TOO_SMALL = "too small"
TOO_SHORT = "too short"
STATIC = "static"

RATE_TOLERANCE = 1.02  # 30.3 frames a second still count as 30


@dataclass(frozen=True)
class CutSettings:
    """What becomes a clip.

    max_seconds, min_seconds: of a clip; longer scenes are cut evenly, shorter ones dropped.
    min_size: pixels of the shorter side of the video. size: pixels, at most, of the longer side of
    the clip; nothing is enlarged. max_fps: of faster videos every second, third, ... frame is kept.
    """

    max_seconds: float = 10.0
    min_seconds: float = 2.0
    min_size: int = 256
    size: int = 1024
    max_fps: float = 30.0

    def __post_init__(self):
        if not 0 < self.min_seconds <= self.max_seconds < math.inf:
            raise UserError(
                f"clips of {self.min_seconds:g} to {self.max_seconds:g} seconds are not possible;"
                " choose --min-seconds above 0 and --max-seconds no less"
            )
        if not 1 <= self.min_size or not 16 <= self.size:
            raise UserError(
                f"a minimum of {self.min_size} and a size of {self.size} pixels are not possible;"
                " choose --min-size from 1 and --size from 16"
            )
        exact_rate(self.max_fps)


def load_cut(settings: CutSettings) -> Callable[[Video], dict[str, bytes]]:
    """The job of a worker that cuts videos: Video -> files by name, as cut_video returns them.

    Raises UserError where a package for it is missing.
    """
    cut_detector()

    def cut(video: Video) -> dict[str, bytes]:
        return cut_video(video, settings)

    return cut


def cut_video(video: Video, settings: CutSettings) -> dict[str, bytes]:
    """Files by name: NAME.mp4 for every clip, and the JSON object result.json.

    The latter holds `size` of the video, `clips` (name, frames, fps, width, height, and start and
    end in seconds of the video), `drops` (scene, reason, detail) and `notes` on how it was read.
    The same video and settings give the same bytes. A video that cannot be read is a drop, not an
    error.
    """
    result = {"size": video.size, "clips": [], "drops": []}
    files, notes = {}, set()
    with local_copy(video.path) as path, tempfile.TemporaryDirectory() as directory:

        def told(message):
            # Without the place on this machine, so that results compare.
            for place in (str(path), video.path):
                message = message.replace(place, video.source)
            return printable(message)

        try:
            # Not to a worker's terminal, where nobody would find them again.
            with warnings.catch_warnings():
                warnings.simplefilter("always", UserNote)
                hand_notes_to(notes.add)
                clips = _clips(path, video, settings, result["drops"], Path(directory))
                for clip, content in clips:
                    result["clips"].append(clip)
                    files[f"{clip['name']}.mp4"] = content
        except UnreadableError as error:
            files, result["clips"] = {}, []
            drop = {"scene": None, "reason": UNREADABLE, "detail": told(str(error))}
            result["drops"] = [drop]
        result["notes"] = sorted(map(told, notes))
    files[RESULT] = (json.dumps(result) + "\n").encode()
    return files


def _clips(path, video, settings, drops, directory) -> Iterator[tuple[dict, bytes]]:
    """(description, encoded video) of each clip; what is dropped is appended to `drops`.

    The frames are decoded twice, for the cuts and for the clips, so that memory does not grow with
    the length of the video.
    """
    info = probe_video(path, default_fps=video.fps or 30.0)
    if min(info.width, info.height) < settings.min_size:
        detail = f"{info.width}x{info.height} pixels, at least {settings.min_size} are asked for"
        drops.append({"scene": None, "reason": TOO_SMALL, "detail": detail})
        return
    stride = max(1, math.ceil(info.fps / settings.max_fps / RATE_TOLERANCE))
    fps = float(exact_rate(info.fps / stride))
    kept = []
    for scene in find_scenes(read_frames(path, stride=stride), fps, settings.max_seconds):
        drop = None
        if len(scene) < settings.min_seconds * fps - 0.5:
            detail = f"{len(scene) / fps:.2f} seconds, at least {settings.min_seconds:g} are asked"
            drop = {"reason": TOO_SHORT, "detail": f"{detail} for"}
        elif scene.static or len(scene) == 1:  # as of a time-lapse
            drop = {"reason": STATIC, "detail": "nothing moves"}
        if drop:
            drops.append({"scene": _seconds(scene, fps), **drop})
        else:
            kept.append(scene)
    size = clip_size(info.width, info.height, settings.size)
    frames = read_frames(path, stride=stride) if kept else iter(())
    position = 0
    for number, scene in enumerate(kept):
        name = f"{video.key}-{number:03d}"
        clip = itertools.islice(frames, scene.begin - position, scene.end - position)
        target = directory / f"{number}.mp4"
        write_video(target, (resized(frame, *size) for frame in clip), fps, options=SHORT_GROUPS)
        position = scene.end
        start, end = _seconds(scene, fps)
        yield (
            {
                "name": name,
                "frames": len(scene),
                "fps": fps,
                "width": size[0],
                "height": size[1],
                "start": start,
                "end": end,
            },
            target.read_bytes(),
        )
        target.unlink()


def _seconds(scene, fps):
    return [round(scene.begin / fps, 3), round(scene.end / fps, 3)]


def clip_size(width: int, height: int, longer: int) -> tuple[int, int]:
    """Even sides of the same proportions whose longer one is at most `longer`, never enlarged."""
    scale = min(1.0, (longer - longer % 2) / max(width, height))
    return tuple(max(2, 2 * int(side * scale / 2 + (0.5 if scale < 1 else 0)))
                 for side in (width, height))  # fmt: skip


def resized(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """A uint8 RGB frame at another size (Lanczos); where it only loses an odd edge it is cut."""
    if 0 <= frame.shape[0] - height <= 1 and 0 <= frame.shape[1] - width <= 1:
        return frame[:height, :width]
    picture = Image.fromarray(frame)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
