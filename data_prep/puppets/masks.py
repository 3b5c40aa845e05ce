"""Which pixels of a puppet clip are the puppet's: drawn again from what its record says.

A record names the set's seed, the motion's group and the clip. How many characters perform each
motion is not in it, so the sizes of groups are tried; the right one gives the record's keypoints.
"""

from __future__ import annotations

import re

import numpy as np

from data_prep.puppets.body import Body, Camera, place_body, project_body
from data_prep.puppets.character import random_character
from data_prep.puppets.draw import draw_part_maps
from data_prep.puppets.generate import derived_seed
from data_prep.puppets.moves import random_motion
from data_prep.puppets.scene import random_camera

LARGEST_GROUP = 8
SOURCE = re.compile(r"puppets-(\d+)/(\d+)")


def puppet_masks(record: dict, numbers) -> np.ndarray | None:
    """True where the puppet is: bool (n, height, width) for the frames of these numbers.

    record: name, source, keypoints, frames, fps, width and height, as in a data set of records.
    None for what is no puppet, and for puppets that move by recorded motions, which lie elsewhere.
    Shadows do not count.
    """
    found = _redraw(record)
    if found is None:
        return None
    maps = np.stack(list(draw_part_maps(*found, names=[])))
    return maps[np.asarray(numbers)] > 0


def _redraw(record) -> tuple[Body, Camera] | None:
    source = SOURCE.fullmatch(record["source"])
    clip = re.search(r"(?:^|/)(\d{6,})$", record["name"])
    if not source or not clip:
        return None
    seed, group, index = int(source[1]), int(source[2]), int(clip[1])
    fps = float(record["fps"])
    motion = random_motion(derived_seed(seed, "motion", group), int(record["frames"]), fps)
    for size in range(1, LARGEST_GROUP + 1):
        if index // size != group:
            continue
        members = range(group * size, (group + 1) * size)
        characters = (random_character(derived_seed(seed, "character", i)) for i in members)
        bodies = [place_body(character, motion) for character in characters]
        camera = random_camera(
            derived_seed(seed, "camera", group), bodies, int(record["width"]), int(record["height"])
        )
        body = bodies[index - members.start]
        if np.abs(project_body(body, camera) - record["keypoints"]).max() < 1e-2:
            return body, camera
    return None
