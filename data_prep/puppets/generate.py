"""Data sets of puppets: clips, keypoints and one line of metadata each.

DIR/clips/000000.mp4, DIR/keypoints/000000.npz, ..., DIR/metadata.jsonl. Clip n of a seed is the
same whatever the number of clips.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from animate_jax.data.records import METADATA
from animate_jax.errors import UserError
from animate_jax.files import check_place, replacing_directory
from animate_jax.pose.keypoints import Keypoints, load_keypoints
from animate_jax.video.writing import SHORT_GROUPS, exact_rate, write_video
from data_prep.puppets.body import place_body, project_body
from data_prep.puppets.character import generator, random_character
from data_prep.puppets.draw import draw_frames, enlargement
from data_prep.puppets.motion import Motion
from data_prep.puppets.moves import random_motion
from data_prep.puppets.recorded import motion_from_keypoints
from data_prep.puppets.scene import random_backdrop, random_camera

LICENCE = "CC0-1.0"
MIN_SIDE, MAX_SIDE = 64, 1024


@dataclass(frozen=True)
class PuppetSet:
    """What to generate: clips of `frames` frames at `fps`, width x height pixels.

    group: how many characters perform each motion, seen by the same camera. motions: keypoint
    files whose motions are used in turn in place of random ones, cut to `frames` at their own
    rates.
    """

    clips: int
    width: int
    height: int
    seed: int
    frames: int = 48
    fps: float = 15.0
    group: int = 1
    motions: Sequence[str] = ()

    def __post_init__(self):
        for name in ("clips", "frames", "group"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give at least 1")
        if min(self.width, self.height) < MIN_SIDE or max(self.width, self.height) > MAX_SIDE:
            raise UserError(
                f"{self.width}x{self.height} pixels: sides from {MIN_SIDE} to {MAX_SIDE} are drawn"
            )
        if self.width % 2 or self.height % 2:
            raise UserError(
                f"{self.width}x{self.height} pixels: videos have even sides; give even ones"
            )
        if self.clips % self.group:
            raise UserError(
                f"{self.clips} clips cannot be grouped by {self.group}; give a multiple of it"
            )
        exact_rate(self.fps)
        generator(self.seed, "check")


def generate(puppets: PuppetSet, out: str, *, overwrite: bool = False, progress: bool = True):
    """Writes the set into the new directory `out`, which appears whole or not at all.

    Raises UserError where `out` exists (unless `overwrite`, which replaces nothing but an earlier
    set of puppets) or a motion file is no keypoint file.
    """
    check_place(out)
    out = Path(out)
    _check_directory(out, overwrite)
    recorded = [(Path(p).name, motion_from_keypoints(load_keypoints(p))) for p in puppets.motions]
    bar = tqdm(total=puppets.clips, desc="puppets", unit="clip", disable=not progress)
    try:
        with bar, replacing_directory(out) as directory:
            (directory / "clips").mkdir()
            (directory / "keypoints").mkdir()
            with open(directory / METADATA, "w", encoding="utf-8") as lines:
                for group in range(puppets.clips // puppets.group):
                    for line in _write_group(puppets, group, recorded, directory):
                        lines.write(json.dumps(line) + "\n")
                        bar.update()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error


def _check_directory(out, overwrite):
    if out.is_dir():
        if not any(out.iterdir()):
            return
        if not overwrite:
            raise UserError(f"{out}: exists; choose another directory or add --overwrite")
        if not {entry.name for entry in out.iterdir()} <= {"clips", "keypoints", METADATA}:
            raise UserError(f"{out}: holds other files than puppets; choose another directory")
    elif out.exists():
        raise UserError(f"{out}: is a file; choose another name")


def _write_group(puppets, group, recorded, directory):
    """Clips of one motion by one or several characters; yields their metadata."""
    motion_seed = derived_seed(puppets.seed, "motion", group)
    if recorded:
        source, motion = recorded[group % len(recorded)]
        motion = _cut(motion, puppets.frames)
    else:
        source, motion = None, random_motion(motion_seed, puppets.frames, puppets.fps)
    camera_seed = derived_seed(puppets.seed, "camera", group)
    indices = range(group * puppets.group, (group + 1) * puppets.group)
    seeds = [derived_seed(puppets.seed, "character", index) for index in indices]
    bodies = [place_body(random_character(seed), motion) for seed in seeds]
    camera = random_camera(camera_seed, bodies, puppets.width, puppets.height)
    for index, seed, body in zip(indices, seeds, bodies):
        scene_seed = derived_seed(puppets.seed, "scene", index)
        backdrop = random_backdrop(scene_seed, camera, enlargement(camera))
        clip, points = f"clips/{index:06d}.mp4", f"keypoints/{index:06d}.npz"
        frames = draw_frames(body, camera, backdrop)
        write_video(directory / clip, frames, motion.fps, options=SHORT_GROUPS)
        size = puppets.width, puppets.height
        Keypoints(project_body(body, camera), motion.fps, *size).save(directory / points)
        yield {
            "clip": clip,
            "keypoints": points,
            "frames": len(motion),
            "fps": motion.fps,
            "width": puppets.width,
            "height": puppets.height,
            "source": f"puppets-{puppets.seed}/{group:06d}",
            "group": group,
            "motion": motion.kind,
            "motion_seed": None if source else motion_seed,
            "motion_file": source,
            "character_seed": seed,
            "camera_seed": camera_seed,
            "scene_seed": scene_seed,
            "licence": LICENCE,
        }


def _cut(motion, frames):
    parts = (values[:frames] for values in (motion.angles, motion.root, motion.face))
    return Motion(motion.kind, motion.fps, *parts)


def derived_seed(seed: int, purpose: str, index: int) -> int:
    """A seed below 2**31 for one thing of a set."""
    rng = np.random.default_rng([*generator(seed, purpose).integers(2**32, size=4), index])
    return int(rng.integers(2**31))
