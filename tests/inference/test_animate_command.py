"""The `animate` command, as far as it comes without networks: what it refuses, and its motion."""

import argparse

import numpy as np
import pytest
from PIL import Image

from animate_jax.cli import main
from animate_jax.commands.motion import driving_motion
from animate_jax.inference.pipeline import AnimateAnyonePipeline
from animate_jax.inference.preprocessing import resize
from animate_jax.pose.keypoints import Keypoints
from animate_jax.video.writing import write_video


def test_keypoint_files_shorter_than_the_window_are_not_too_long(tmp_path, capsys):
    """What comes next is refused: the reference's keypoints."""
    Image.new("RGB", (64, 64)).save(tmp_path / "reference.png")
    for frames, message in ((3, "nowhere.npz"), (60, "a window of 40 frames is too long")):
        points = np.full((frames, 134, 3), (9, 9, 1), np.float32)
        Keypoints(points, 25.0, 64, 64).save(tmp_path / "motion.npz")
        told = ["--reference", tmp_path / "reference.png", "--keypoints", tmp_path / "motion.npz"]
        told += ["--window", 40, "--out", tmp_path / "out.mp4"]
        told += ["--reference-keypoints", tmp_path / "nowhere.npz"]
        assert main(["animate", *map(str, told)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("fit", ["keep", "stretch"])
def test_drawn_skeletons_keep_their_proportions_or_are_stretched(tmp_path, fit):
    drawing = np.full((2, 64, 64, 3), 200, np.uint8)
    write_video(tmp_path / "drawn", drawing, 8)
    options = argparse.Namespace(
        pose_video=tmp_path / "drawn", retarget=None, stride=1, frames=None, fps=8, pose_fit=fit
    )
    motion, _, _ = driving_motion(options, np.zeros((64, 32, 3), np.uint8), (32, 64), "lanczos")
    if fit == "stretch":
        np.testing.assert_array_equal(motion[0], resize(drawing[0], 32, 64, "lanczos"))
    else:
        assert motion.any((0, 2, 3)).sum() == 32


@pytest.mark.parametrize("held, kind", [(3 * 64 * 64 * 12 - 1, "Sampled"), (2**20, "ndarray")])
def test_a_large_result_is_decoded_as_it_is_written(tmp_path, monkeypatch, capsys, held, kind):
    """Of several outputs, for each anew; never all frames at once."""

    class Sampled:
        def __len__(self):
            return 3

        def __iter__(self):
            return (np.full((64, 64, 3), shade, np.float32) for shade in (0.2, 0.4, 0.6))

    def pipeline(reference, motion, *, lazy, **options):
        return Sampled() if lazy else np.stack(list(Sampled()))

    monkeypatch.setattr("animate_jax.commands.animate.HELD_BYTES", held)
    monkeypatch.setattr(AnimateAnyonePipeline, "from_pretrained", lambda *_: pipeline)
    written = []
    monkeypatch.setattr(
        "animate_jax.commands.animate.write_video",
        lambda path, frames, *_, **__: written.append((type(frames).__name__, len(list(frames)))),
    )
    Image.new("RGB", (64, 64)).save(tmp_path / "reference.png")
    Keypoints(np.full((3, 134, 3), (9, 9, 1), np.float32), 60.0, 64, 64).save(
        tmp_path / "motion.npz"
    )
    told = ["--reference", tmp_path / "reference.png", "--keypoints", tmp_path / "motion.npz"]
    told += [
        "--width",
        64,
        "--height",
        64,
        "--retarget",
        "none",
        "--out",
        tmp_path / "a.mp4",
        tmp_path / "b.gif",
    ]
    assert main(["animate", *map(str, told)]) == 0
    assert written == [(kind, 3)] * 2
    assert "at most 50 frames a second; of 60 some are left out" in capsys.readouterr().err
