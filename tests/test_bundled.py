"""The bundled model: small enough, of use without a path, led by reference and motion."""

from pathlib import Path

import numpy as np

from animate_jax import AnimateAnyonePipeline
from animate_jax.cli import main
from animate_jax.pose.keypoints import load_keypoints
from animate_jax.video.reading import probe_video, read_frames
from animate_jax.weights.model_directory import BUNDLED, load_model
from data_prep.puppets.generate import PuppetSet, generate

DEMO = Path(__file__).parents[1] / "docs" / "demo"
SEED = 77  # of puppets that are neither trained on nor in the published comparison


def test_it_is_small():
    files = [path for path in Path(BUNDLED).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    config, params = load_model(BUNDLED)
    assert config.resolution == 128
    assert config.denoising_unet.motion.max_frames == 16
    kernel = params["denoising_unet"]["conv_in"]["kernel"]
    assert kernel.dtype == "bfloat16" and np.isfinite(np.float32(kernel)).all()


def test_no_model_is_this_model(tmp_path):
    arguments = [
        "--reference",
        str(DEMO / "reference.png"),
        "--keypoints",
        str(DEMO / "motion.npz"),
    ]
    arguments += ["--reference-keypoints", str(DEMO / "reference.npz"), "--retarget", "bones"]
    arguments += ["--frames", "4", "--steps", "4"]
    out, gif, beside = (str(tmp_path / name) for name in ("a.mp4", "a.gif", "b.mp4"))
    assert main(["animate", *arguments, "--out", out, gif, "--side-by-side", beside]) == 0
    assert [probe_video(path).width for path in (out, gif, beside)] == [128, 128, 3 * 128]
    video = np.stack(list(read_frames(out)))
    reference = next(iter(read_frames(beside)))[:, :128]
    assert video.shape == (4, 128, 128, 3)
    # The background is that of the picture.
    assert np.abs(video[:, :16].astype(int) - reference[:16]).mean() < 12


def test_it_follows_reference_and_motion(tmp_path):
    """Errors over the characters' surroundings: another's reference or motion makes them larger."""
    count, frame = 6, 8
    generate(PuppetSet(count, 128, 128, SEED, frames=frame + 1), tmp_path / "p", progress=False)
    clips = [list(read_frames(path)) for path in sorted((tmp_path / "p" / "clips").iterdir())]
    points = [load_keypoints(path).points for path in sorted((tmp_path / "p/keypoints").iterdir())]
    pipe = AnimateAnyonePipeline.from_pretrained()
    told = dict(width=128, height=128, steps=8, progress=False)

    def error(reference, motion):
        """Mean squared error of clip n with the reference and motion of others."""
        errors = []
        for n in range(count):
            picture = clips[(n + reference) % count][0]
            video = pipe(picture, points[(n + motion) % count][frame:], **told)
            errors.append(np.mean((video[0] - np.float32(clips[n][frame]) / 255) ** 2))
        return np.mean(errors)

    right = error(0, 0)
    assert right < 0.012  # 19 dB; what was measured is in docs/bundled_model.md
    assert right < 0.25 * error(1, 0)
    assert right < 0.6 * error(0, 1)


def test_the_pipeline_takes_it_without_a_path():
    pipe = AnimateAnyonePipeline.from_pretrained()
    assert pipe.model.config.resolution == 128
