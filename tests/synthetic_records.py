"""Records such as `animate_jax.data.records` gives, drawn on the spot: dots at keypoints."""

import numpy as np

from animate_jax.pose import skeleton as sk
from animate_jax.video.writing import write_video

SHORT_GROUPS = {"crf": "20", "g": "10", "bf": "0"}
# Every colour is far from the others, from grey and from black bars.
DOTS = {
    sk.NOSE: (255, 255, 255),
    sk.RIGHT_WRIST: (255, 0, 0),
    sk.LEFT_WRIST: (0, 255, 0),
    sk.RIGHT_ANKLE: (0, 0, 255),
    sk.LEFT_ANKLE: (255, 255, 0),
    sk.LEFT_HAND_START + 8: (0, 255, 255),
}
BACKGROUND = (90, 60, 90)


def dotted_record(directory, points, width, height, *, name="dots", radius=9.0, options=None):
    """A clip whose frames show a disc of each colour of DOTS at that point; others are not seen.

    points: {point: (frames, 2)} in pixels of the clip.
    """
    count = len(next(iter(points.values())))
    keypoints = np.zeros((count, sk.NUM_POINTS, 3), np.float32)
    frames = np.empty((count, height, width, 3), np.float32)
    frames[:] = BACKGROUND
    y, x = np.mgrid[:height, :width]
    for point, places in points.items():
        keypoints[:, point, :2], keypoints[:, point, 2] = places, 1
        for frame, (centre_x, centre_y) in zip(frames, places):
            away = np.hypot(x - centre_x, y - centre_y)
            inside = np.clip(radius + 0.5 - away, 0, 1)[..., None]
            frame[:] = frame * (1 - inside) + inside * np.array(DOTS[point])
    path = directory / f"{name}.mp4"
    write_video(path, frames.round().astype(np.uint8), 30, options=options or SHORT_GROUPS)
    return {
        "name": name,
        "clip": path.read_bytes(),
        "keypoints": keypoints,
        "frames": count,
        "width": width,
        "height": height,
        "fps": 30.0,
        "source": name,
        "licence": "CC0-1.0",
    }


def dot_places(picture):
    """{point: (x, y)} of the centres of the dots that an RGB picture shows."""
    colours = np.array([*DOTS.values(), BACKGROUND, (0, 0, 0)], np.float32)
    away = np.linalg.norm(picture[:, :, None].astype(np.float32) - colours, axis=-1)
    nearest = np.where(away.min(-1) < 90, away.argmin(-1), -1)
    found = {}
    for index, point in enumerate(DOTS):
        rows, columns = np.nonzero(nearest == index)
        if len(rows) > 5:
            # Single pixels at the rims of other dots may happen to have its colour.
            columns = columns[np.abs(columns - np.median(columns)) < 15]
            rows = rows[np.abs(rows - np.median(rows)) < 15]
            found[point] = columns.mean(), rows.mean()
    return found
