"""The head in the picture: where places on it are seen, and which regions of it."""

import numpy as np

from animate_jax.pose import skeleton as sk
from data_prep.puppets import shapes
from data_prep.puppets.body import Body
from data_prep.puppets.face import chin_taper, on_head
from data_prep.puppets.parts import View

TURN = np.linspace(-180, 180, 49)[:-1]  # longitudes of a line around the head, in degrees


class HeadFrame:
    """The head in the view: places on it in pixels, and its axes in the picture."""

    def __init__(self, body: Body, view: View):
        self.body, self.view = body, view
        self.center = view.project(body.head)
        build = body.character.build
        up, _ = shapes.directions(np.zeros_like(self.center), body.head_axes[:, 1, :2])
        self.up = up * build.head * view.unit
        self.right = shapes.across(up) * build.head_width * view.unit  # in the picture
        self.half = build.head_width * view.unit
        self.axis = body.head_axes / np.linalg.norm(body.head_axes, axis=-1, keepdims=True)

    def at(self, places):
        """Head coordinates (n, 3) -> pixels (frames, n, 2)."""
        return self.view.project(self.body.on_head(places))

    def depth(self, places):
        """Towards the camera (frames, n), 1 at the head's nearest point."""
        return np.einsum("ni,fi->fn", places, self.axis[:, :, 2])

    def points(self, which):
        """Face points by their numbers 0..67 -> pixels (frames, n, 2)."""
        return self.view.project(self.body.joints[:, sk.FACE_START + np.array(which)])

    def silhouette(self, angle, radius):
        """The head's contour (frames, n, 2) at angles (n,) from upwards, clockwise."""
        return np.stack([self._contour(f, angle, radius) for f in range(len(self.center))])

    def region(self, latitudes, pole, radius=1.0):
        """The visible part of the head below (pole -1) or above (+1) a line of latitudes.

        latitudes: (48,) at longitudes TURN. The visible run of the line is closed along the
        contour through the pole. Returns (frames, 96, 2) and where anything is seen (frames,).
        """
        places = on_head(TURN, latitudes, np.full(len(TURN), radius))
        line, depth = self.at(places), self.depth(places)
        result = np.empty((len(line), 96, 2))
        shown = np.ones(len(line), bool)
        to_center = line - self.center[:, None]
        along = (to_center * self.up[:, None]).sum(-1) / (self.up**2).sum(-1)[:, None]
        wide = (to_center * self.right[:, None]).sum(-1) / (self.right**2).sum(-1)[:, None]
        angle = np.arctan2(wide, along * pole)  # from the pole
        for f in range(len(line)):
            seen = depth[f] >= 0
            if not seen.any() or seen.all():
                shown[f] = seen.all()
                result[f] = np.repeat(line[f], 2, axis=0)
                continue
            first = int(np.flatnonzero(seen & ~np.roll(seen, 1))[0])
            run = np.roll(np.arange(48), -first)[: int(seen.sum())]
            close = np.linspace(angle[f, run[-1]], angle[f, run[0]], 96 - len(run))
            if pole < 0:
                close = np.pi - close
            arc = self._contour(f, close, radius)
            result[f] = np.concatenate([line[f, run], arc])
        return result, shown

    def _contour(self, f, angle, radius):
        height = np.cos(angle)[:, None]
        wide = np.sin(angle)[:, None] * chin_taper(height)
        return self.center[f] + radius * (height * self.up[f] + wide * self.right[f])
