"""Whether a long video shows where its windows join.

    python benchmarks/seams.py [--model MODEL] [--frames 200] [--out VIDEO.mp4]

animates one puppet by its own motion and compares the difference between neighbouring frames where
windows overlap with that elsewhere: of the video, and in excess of what the truth moves.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from held_out import SEED, SIZE

from animate_jax import AnimateAnyonePipeline
from animate_jax.inference.pipeline import default_window
from animate_jax.inference.windows import make_windows
from animate_jax.pose.keypoints import load_keypoints
from animate_jax.video.reading import read_frames
from animate_jax.video.writing import write_video
from animate_jax.weights.model_directory import BUNDLED
from data_prep.puppets.generate import PuppetSet, generate


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--overlap", type=int, default=4)
    parser.add_argument("--out", help="the video")
    options = parser.parse_args()
    truth, points = puppet(options.frames)
    pipe = AnimateAnyonePipeline.from_pretrained(options.model)
    told = dict(width=SIZE, height=SIZE, steps=options.steps, overlap=options.overlap)
    video = pipe(truth[0], points, reference_keypoints=points[0], **told)
    if options.out:
        write_video(options.out, video, 15, overwrite=True)
    joint = where_windows_join(options.frames, default_window(pipe.model.config), options.overlap)
    moved, true = np.diff(video, axis=0), np.diff(truth.astype(np.float32) / 255, axis=0)
    for name, change in (("between frames", moved), ("beyond the truth's", moved - true)):
        change = np.abs(change).mean((1, 2, 3))
        there, elsewhere = np.median(change[joint]), np.median(change[~joint])
        ratio = there / elsewhere
        print(f"{name}: {there:.5f} where windows join, {elsewhere:.5f} elsewhere ({ratio:.3f})")


def puppet(frames: int):
    """A clip uint8 (frames, SIZE, SIZE, 3) and its keypoints (frames, 134, 3)."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "puppets"
        generate(PuppetSet(1, SIZE, SIZE, SEED + 1, frames=frames), out, progress=False)
        clip = np.stack(list(read_frames(out / "clips" / "000000.mp4")))
        return clip, load_keypoints(out / "keypoints" / "000000.npz").points


def where_windows_join(frames: int, window: int, overlap: int) -> np.ndarray:
    """Of the changes from each frame to the next (frames - 1,): whether another window has a say
    in the second frame than in the first, or two windows have one in both."""
    indices, weights = make_windows(frames, window, overlap)
    share = np.zeros((len(indices), frames))
    np.put_along_axis(share, indices, weights, 1)
    return ~((share[:, :-1] == 1) & (share[:, 1:] == 1)).any(0)


if __name__ == "__main__":
    main()
