"""Where on the body a place in the picture is: one chart for every pose of every body.

A place belongs to the nearest bone, measured in the bone's own thickness, and has there a distance
along and one to the side. The chart puts every bone where it is in a figure with arms and legs
spread, so that places that are near in it are near on the body. Drawn or worn, what a person looks
like at a place of the chart hardly depends on the pose (DensePose, arXiv 1802.00434, has a chart of
a body's surface, and a network that finds it; this one needs no more than the skeleton).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from animate_jax.pose import skeleton as sk

SEEN = 0.3  # points of a lower score are not there
_HEAD = (sk.NOSE, sk.RIGHT_EYE, sk.LEFT_EYE, sk.RIGHT_EAR, sk.LEFT_EAR)
_SHOULDERS = (sk.RIGHT_SHOULDER, sk.LEFT_SHOULDER)
_HIPS = (sk.RIGHT_HIP, sk.LEFT_HIP)
# Of each bone: its ends, each the middle of such points as are seen; where they are in the chart;
# how far the bone reaches to its sides. The chart's unit is the length of the torso.
_BONES = (
    (_SHOULDERS, _HIPS, (0.0, 0.0), (0.0, 1.0), 0.42),
    ((sk.NECK,), _HEAD, (0.0, -0.05), (0.0, -0.5), 0.40),
    ((sk.RIGHT_SHOULDER,), (sk.RIGHT_ELBOW,), (-0.35, 0.0), (-0.95, 0.0), 0.16),
    ((sk.LEFT_SHOULDER,), (sk.LEFT_ELBOW,), (0.35, 0.0), (0.95, 0.0), 0.16),
    ((sk.RIGHT_ELBOW,), (sk.RIGHT_WRIST,), (-0.95, 0.0), (-1.5, 0.0), 0.18),
    ((sk.LEFT_ELBOW,), (sk.LEFT_WRIST,), (0.95, 0.0), (1.5, 0.0), 0.18),
    ((sk.RIGHT_HIP,), (sk.RIGHT_KNEE,), (-0.25, 1.0), (-0.55, 1.85), 0.22),
    ((sk.LEFT_HIP,), (sk.LEFT_KNEE,), (0.25, 1.0), (0.55, 1.85), 0.22),
    ((sk.RIGHT_KNEE,), (sk.RIGHT_ANKLE,), (-0.55, 1.85), (-0.8, 2.7), 0.22),
    ((sk.LEFT_KNEE,), (sk.LEFT_ANKLE,), (0.55, 1.85), (0.8, 2.7), 0.22),
)
_REACH = np.float32([bone[-1] for bone in _BONES])
_CHART = np.float32([bone[2:4] for bone in _BONES])  # (bones, 2 ends, 2)
_LENGTH = np.linalg.norm(_CHART[:, 1] - _CHART[:, 0], axis=-1)
# The middles as sums: (bones, 2 ends, points).
_TAKEN = np.float32([[np.isin(np.arange(sk.NUM_BODY), end) for end in bone[:2]] for bone in _BONES])


def body_places(points: jax.Array, height: int, width: int, scale: float = 1.0) -> jax.Array:
    """float32 (..., height, width, 3): x and y in the chart, in lengths of the torso, and how much
    the place belongs to the body, 0 to 1.

    points (..., 134, 3): keypoints in pixels, scores in their last column. Places lie `scale`
    pixels apart, as latents do. A bone of which an end is not seen is not there; without any, all
    is 0.
    """
    points = jnp.asarray(points, jnp.float32)
    body = points[..., : sk.NUM_BODY, :]
    seen = body[..., 2] > SEEN
    count = jnp.einsum("bep,...p->...be", _TAKEN, seen.astype(jnp.float32))
    ends = jnp.einsum("bep,...px->...bex", _TAKEN, jnp.where(seen[..., None], body[..., :2], 0))
    ends /= jnp.maximum(count, 1)[..., None]
    there = (count > 0).all(-1)  # (..., bones)
    along = ends[..., 1, :] - ends[..., 0, :]
    length = jnp.linalg.norm(along, axis=-1)
    there &= length > 0
    # Bones look shorter where they point at the viewer, never longer.
    unit = jnp.max(jnp.where(there, length / _LENGTH, 0), -1)[..., None, None, None]
    unit = jnp.where(unit > 0, unit, 1)

    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    pixels = (jnp.stack([columns, rows], -1) + 0.5) * scale - 0.5
    start, along, length = (
        x[..., None, None, :] for x in (ends[..., 0, :], along, length[..., None])
    )
    offset = pixels - start  # (..., bones, height, width, 2)
    length = jnp.maximum(length[..., 0], 1e-6)
    along = along / length[..., None]
    forward = (offset * along).sum(-1)
    side = (offset[..., 1] * along[..., 0] - offset[..., 0] * along[..., 1]) / unit
    inside = jnp.clip(forward, 0, length)
    beyond = (forward - inside) / unit
    distance = jnp.hypot(beyond, side) / _REACH[:, None, None]
    distance = jnp.where(there[..., None, None], distance, jnp.inf)
    nearest = jnp.argmin(distance, axis=-3)
    # Stretched along the bone to its length in the chart, by the body's size elsewhere.
    forward = inside / length * _LENGTH[:, None, None] + beyond
    directions = (_CHART[:, 1] - _CHART[:, 0]) / _LENGTH[:, None]
    across = np.stack([-directions[:, 1], directions[:, 0]], -1)
    chart = (
        _CHART[:, 0, None, None]
        + forward[..., None] * directions[:, None, None]
        + side[..., None] * across[:, None, None]
    )
    chosen = jax.nn.one_hot(nearest, len(_BONES), axis=-3)
    place = (jnp.where(jnp.isfinite(chart), chart, 0) * chosen[..., None]).sum(-4)
    nearness = jnp.min(distance, -3)
    belongs = jnp.clip(1.75 - nearness, 0, 1)
    return jnp.concatenate([place, belongs[..., None]], -1) * (belongs > 0)[..., None]
