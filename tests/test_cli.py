"""The command line as users run it: files in, files out; one line and exit code 2 for bad input."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image

from animate_jax.cli import main
from animate_jax.commands.run import run
from animate_jax.files import replacing_directory
from animate_jax.pose.keypoints import Keypoints, load_keypoints
from animate_jax.video.reading import probe_video, read_frames
from animate_jax.video.writing import write_video
from animate_jax.weights.model_directory import load_model

SMALL = ["--width", "64", "--height", "64", "--steps", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "model"
    assert main(["new", "tiny", str(path)]) == 0
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A reference, keypoints of 3 frames, and the same as drawn skeletons."""
    folder = tmp_path_factory.mktemp("files")
    blocks = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    picture = Image.fromarray(blocks).resize((100, 120))
    picture.save(folder / "reference.png")
    points = np.zeros((3, 134, 3), np.float32)
    points[:, :18, :2] = np.random.default_rng(1).uniform(10, 90, (3, 18, 2))
    points[:, :18, 2] = 1
    Keypoints(points, 12.5, 100, 100).save(folder / "motion.npz")
    drawn = np.random.default_rng(2).integers(0, 256, (3, 64, 64, 3), np.uint8)
    write_video(folder / "drawn.mp4", drawn, 10)
    return folder


def animate(model, files, out, *more, motion=("--keypoints", "motion.npz")):
    return main(
        ["animate", "--model", model, "--reference", str(files / "reference.png")]
        + [motion[0], str(files / motion[1]), "--out", str(out), *more]
    )


def error_of(capsys, code, *message):
    """The one line that was printed; code is what main returned."""
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if line.startswith("animate-jax: error:")]
    assert code == 2, lines
    assert len(lines) == 1
    for part in message:
        assert part in lines[0]
    return lines[0]


def test_keypoints_to_video(model, files, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    assert animate(model, files, out, *SMALL, "--retarget", "none", "--side-by-side") == 0
    info = probe_video(out)
    assert (info.width, info.height, info.fps) == (3 * 64, 64, 12.5)
    assert len(list(read_frames(out))) == 3
    assert "wrote" in capsys.readouterr().out
    reference, _, result = np.split(np.stack(list(read_frames(out))), 3, axis=2)
    assert np.ptp(reference.astype(int), axis=0).max() < 8  # the same picture in every frame
    assert np.abs(reference.astype(int) - result).mean() > 8
    # Not again over the same file, unless asked to.
    error_of(capsys, animate(model, files, out, *SMALL), "out.mp4", "overwrite")
    assert animate(model, files, out, *SMALL, "--retarget", "none", "--overwrite") == 0
    assert probe_video(out).width == 64


def test_drawn_skeletons_to_frames(model, files, tmp_path):
    out = tmp_path / "frames"
    drawn = ("--pose-video", "drawn.mp4")
    assert animate(model, files, out, *SMALL, "--frames", "2", "--stride", "1", motion=drawn) == 0
    assert sorted(p.name for p in out.iterdir()) == ["000000.png", "000001.png"]
    assert Image.open(out / "000000.png").size == (64, 64)


def test_initial_noise_decides_the_result(model, files, tmp_path):
    noise = np.random.default_rng(3).standard_normal((3, 8, 8, 4)).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    videos = []
    for i, more in enumerate((["--seed", "1"], ["--seed", "2"], ["--guidance", "1"])):
        out = tmp_path / f"{i}.npy"
        more = [*more, "--initial-noise", str(tmp_path / "noise.npy"), "--retarget", "none"]
        assert animate(model, files, out, *SMALL, *more) == 0
        videos.append(np.load(out))
    assert videos[0].shape == (3, 64, 64, 3) and videos[0].dtype == np.float32
    np.testing.assert_array_equal(videos[0], videos[1])
    assert np.abs(videos[0] - videos[2]).max() > 1e-3


def test_size_follows_the_reference_and_is_rounded(model, files, tmp_path, capsys):
    out = tmp_path / "out.npy"
    options = ["--height", "61", "--steps", "1", "--retarget", "none", "--frames", "1"]
    assert animate(model, files, out, *options) == 0
    assert np.load(out).shape == (1, 56, 48, 3)  # 100 x 120 pixels; 61 lines are 7 latents
    assert "not divisible by 8" in capsys.readouterr().err


def test_an_animation_without_a_person_in_the_reference_says_so(
    model, files, tmp_path, capsys, blazepose_models
):
    out = tmp_path / "out.npy"
    assert animate(model, files, out, *SMALL) == 0
    assert "not fitted to the reference: no person" in capsys.readouterr().err
    code = animate(model, files, tmp_path / "other.npy", *SMALL, "--retarget", "bones")
    error_of(capsys, code, "reference.png", "--retarget none")


def test_a_portrait_is_animated_without_fitting(model, files, tmp_path, capsys, blazepose_models):
    """BlazePose finds the face of a portrait, too little to measure a body."""
    Image.fromarray(skimage.data.astronaut()[:220, 120:330]).save(tmp_path / "portrait.png")
    out, portrait = tmp_path / "out.npy", ["--reference", str(tmp_path / "portrait.png")]
    assert animate(model, files, out, *SMALL, *portrait) == 0
    assert "not fitted to the reference: the reference picture shows" in capsys.readouterr().err
    error_of(capsys, animate(model, files, out, *SMALL, *portrait, "--overwrite",
                             "--retarget", "scale"), "shows too little")  # fmt: skip


def test_bad_input_is_one_line_and_leaves_nothing(model, files, tmp_path, capsys):
    out = tmp_path / "out" / "video.mp4"
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.npz").write_text("not keypoints")
    (tmp_path / "other.npy").write_text("not noise")
    cases = [
        (["--model", str(tmp_path / "nowhere")], "no such model directory"),
        (["--model", str(tmp_path)], "not a model directory"),
        (["--reference", str(tmp_path / "nowhere.png")], "nowhere.png"),
        (["--reference", str(tmp_path / "empty.mp4")], "empty.mp4"),
        (["--out", str(tmp_path / "video.avi")], ".avi"),
        (["--window", "4", "--overlap", "4"], "overlap"),
        (["--eta", "2"], "eta"),
        (["--guidance", "nan"], "guidance"),
        (["--fps", "-1"], "frames per second"),
        (["--initial-noise", str(tmp_path / "other.npy")], "other.npy"),
        (["--side-by-side", str(out.parent / ".." / "out" / "video.mp4")], "two outputs"),
        (["--compiled", str(tmp_path / "text.npz")], "text.npz: no directory"),
    ]
    for more, message in cases:
        code = animate(model, files, out, *SMALL, "--retarget", "none", *more)
        error_of(capsys, code, message)
    for motion, message in (
        (("--driving", tmp_path / "empty.mp4"), "empty.mp4"),
        (("--driving", tmp_path / "nowhere.mp4"), "nowhere.mp4"),
        (("--keypoints", tmp_path / "text.npz"), "text.npz"),
        (("--pose-video", tmp_path / "empty.mp4"), "empty.mp4"),
    ):
        code = animate(model, files, out, *SMALL, "--retarget", "none", motion=motion)
        error_of(capsys, code, message)
    assert not out.parent.exists()


def test_pose_of_a_video_without_a_person(tmp_path, capsys, blazepose_models):
    write_video(tmp_path / "grey.mp4", np.full((3, 64, 64, 3), 0.5, np.float32), 10)
    code = main(["pose", str(tmp_path / "grey.mp4"), str(tmp_path / "out.npz")])
    error_of(capsys, code, "person")
    assert not (tmp_path / "out.npz").exists()


def test_pose_then_animate_a_one_frame_video(model, files, tmp_path, blazepose_models, clips):
    frame = next(read_frames(clips["single/cam01"]))
    write_video(tmp_path / "one.mp4", frame[None], 25)
    assert main(["pose", str(tmp_path / "one.mp4"), str(tmp_path / "one.npz")]) == 0
    keypoints = load_keypoints(tmp_path / "one.npz")
    assert keypoints.points.shape == (1, 134, 3)
    out = tmp_path / "out.gif"
    assert (
        main(
            ["animate", "--model", model, "--reference", str(tmp_path / "frame.png")]
            + ["--keypoints", str(tmp_path / "one.npz"), "--out", str(out), *SMALL]
        )
        == 2
    )  # the reference is not there
    Image.fromarray(frame).save(tmp_path / "frame.png")
    assert (
        main(
            ["animate", "--model", model, "--reference", str(tmp_path / "frame.png")]
            + ["--keypoints", str(tmp_path / "one.npz"), "--out", str(out), *SMALL]
            + ["--retarget", "bones"]
        )
        == 0
    )
    assert Image.open(out).size == (64, 64)


def test_inspect_and_a_damaged_config(model, tmp_path, capsys):
    assert main(["inspect", model]) == 0
    text = capsys.readouterr().out
    assert "denoising_unet" in text and "motion" in text
    (tmp_path / "model").mkdir()
    config = json.loads(open(f"{model}/config.json").read())
    config["denoising_unet"]["colour"] = 1
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    error_of(capsys, main(["inspect", str(tmp_path / "model")]), "colour")


def test_weights_go_round_by_relative_paths(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "moore", model, "files"]) == 0
    assert main(["convert", "moore", "files", "again", "--motion-heads", "4"]) == 0
    capsys.readouterr()
    assert main(["inspect", "again"]) == 0
    assert "float32" in capsys.readouterr().out
    assert main(["convert", "sd15", "files/stable-diffusion-v1-5", "start"]) == 2
    assert main(["convert", "moore", "files", "pictures", "--no-motion"]) == 0
    assert main(["inspect", "pictures"]) == 0
    assert "motion_modules: none" in capsys.readouterr().out
    error_of(capsys, main(["convert", "moore", "files", "again"]), "again", "overwrite")


def test_copy_in_another_precision(model, tmp_path, capsys):
    out = tmp_path / "half"
    assert main(["copy", model, str(out), "--dtype", "bfloat16"]) == 0
    before, after = (load_model(path)[1] for path in (model, out))
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert other.dtype == jnp.bfloat16
        assert jnp.array_equal(one.astype(jnp.bfloat16), other)
    error_of(capsys, main(["copy", model, str(out)]), "overwrite")
    assert main(["copy", str(out), str(tmp_path / "same")]) == 0
    same = jax.tree.leaves(load_model(tmp_path / "same")[1])
    assert all(map(jnp.array_equal, jax.tree.leaves(after), same))


def test_new_refuses_to_replace(model, capsys):
    error_of(capsys, main(["new", "tiny", model]), "overwrite")


def test_unexpected_errors_are_one_line_without_debug(monkeypatch, capsys):
    import animate_jax.weights.inspect as inspect

    def fail(path):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(inspect, "describe_model", fail)
    assert main(["inspect", "any"]) == 1
    assert "RuntimeError: two lines" in capsys.readouterr().err
    with pytest.raises(RuntimeError):
        main(["inspect", "any", "--debug"])


def test_a_command_that_is_told_to_end_leaves_no_half_written_files(monkeypatch, capsys, tmp_path):
    import animate_jax.weights.inspect as inspect

    def stop(path):
        with replacing_directory(path) as half:
            (half / "weights").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    monkeypatch.setattr(inspect, "describe_model", stop)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert main(["inspect", str(tmp_path / "model")]) == 143
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "animate-jax: told to end\n"
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_told_with_what_installs_it(monkeypatch, capsys):
    import animate_jax.weights.inspect as inspect

    errors = iter(
        [
            ModuleNotFoundError("No module named 'grain'", name="grain"),
            ImportError("Please install gcsfs to access Google Storage"),
            ImportError("No module named 'else'"),
        ]
    )

    def fail(path):
        raise next(errors)

    monkeypatch.setattr(inspect, "describe_model", fail)
    error_of(capsys, main(["inspect", "any"]), "grain is needed", "'animate-jax[train]'")
    error_of(capsys, main(["inspect", "any"]), "gcsfs is needed", "'animate-jax[gcs]'")
    assert main(["inspect", "any"]) == 1


def test_the_program_starts_quickly_and_has_help():
    code = (
        "import sys; from animate_jax.cli import main\ntry: main(['--help'])\nexcept SystemExit: "
    )
    code += "print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "convert" in done.stdout and done.stdout.strip().endswith("False")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(model, files, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code = animate(model, files, tmp_path / "file" / "out.mp4", *SMALL, "--retarget", "none")
    error_of(capsys, code, "is no directory")
    error_of(capsys, main(["new", "tiny", str(tmp_path / "file" / "m")]), "is no directory")
    error_of(capsys, main(["export", "moore", model, str(tmp_path / "file" / "m")]), "no directory")


def test_a_bucket_keeps_what_is_copied_onto_itself(model, buckets, capsys):
    there = buckets / "bucket" / "run" / "model"
    shutil.copytree(model, there)
    files = sorted(there.rglob("*"))
    for source, out in (
        ("gs://bucket/run/model", "gs://bucket/run/model/"),
        ("gs://bucket/run", "gs://bucket/run/model"),
        ("gs://bucket/run/model", "gs://bucket/run"),
    ):
        error_of(capsys, main(["copy", source, out, "--overwrite"]), "is what is copied")
    assert sorted(there.rglob("*")) == files and len(files) > 10


@pytest.mark.parametrize("size, expected", [(["--width", "30"], 24), (["--height", "61"], 56)])
def test_one_side_that_is_rounded_stretches_nothing(model, files, tmp_path, capsys, size, expected):
    Image.new("RGB", (128, 128)).save(tmp_path / "square.png")
    more = ["--reference", str(tmp_path / "square.png"), "--retarget", "none", "--frames", "1"]
    out = tmp_path / "out.npy"
    assert animate(model, files, out, "--steps", "1", *size, *more) == 0
    assert np.load(out).shape == (1, expected, expected, 3)
    assert "stretched" not in capsys.readouterr().err


def test_what_can_be_refused_is_refused_before_poses_are_sought(model, files, tmp_path, capsys):
    """No pose network is there: it would be missed first."""
    write_video(tmp_path / "long.mp4", np.zeros((40, 32, 32, 3), np.uint8), 10)
    np.savez(tmp_path / "noise.npz", np.zeros((3, 8, 8, 4), np.float32))
    np.save(tmp_path / "flat.npy", np.zeros(8, np.float32))
    np.save(tmp_path / "text.npy", np.full((3, 8, 8, 4), "x"))
    long = "--driving", tmp_path / "long.mp4"
    for more, message in (
        (["--seed", "-1"], "--seed is -1"),
        (["--guidance", "inf"], "--guidance is inf"),
        (["--window", "40"], "a window of 40 frames is too long"),
        (["--initial-noise", str(tmp_path / "noise.npz")], "noise.npz: not a .npy"),
        (["--initial-noise", str(tmp_path / "flat.npy")], "flat.npy: not a .npy"),
        (["--initial-noise", str(tmp_path / "text.npy")], "text.npy: not a .npy"),
    ):
        networks = ["--detector", "missing.tflite", "--pose-network", "missing.tflite"]
        code = animate(model, files, tmp_path / "out.mp4", *SMALL, *networks, *more, motion=long)
        error_of(capsys, code, message)


def test_frames_without_a_person_are_told(model, files, tmp_path, capsys):
    motion = load_keypoints(files / "motion.npz")
    motion.points[1, :, 2] = 0
    motion.points[2, :, :2] += 1e4  # far outside the picture
    motion.save(tmp_path / "gap.npz")
    gap = "--keypoints", tmp_path / "gap.npz"
    out = tmp_path / "out.npy"
    assert animate(model, files, out, *SMALL, "--retarget", "none", motion=gap) == 0
    assert "the person is not found in 2 of 3 frames" in capsys.readouterr().err


def test_pictures_have_the_rate_that_is_said(model, files, tmp_path, capsys):
    frames = np.random.default_rng(2).integers(0, 256, (4, 64, 64, 3), np.uint8)
    write_video(tmp_path / "drawn", frames, 1)
    drawn = "--pose-video", tmp_path / "drawn"
    for more, rate, said in (([], 8, True), (["--fps", "30"], 30, False)):
        out = tmp_path / f"{rate}.mp4"
        assert animate(model, files, out, *SMALL, *more, motion=drawn) == 0
        assert ("do not say their rate" in capsys.readouterr().err) == said
        assert probe_video(out).fps == rate


def test_the_rate_of_keypoints_found_in_pictures(tmp_path, blazepose_models, clips, capsys):
    frames = read_frames(clips["single/cam02"], limit=4)
    write_video(tmp_path / "frames", frames, 1)
    told = ["--fps", "25", "--stride", "2"]
    assert main(["pose", str(tmp_path / "frames"), str(tmp_path / "out.npz"), *told]) == 0
    assert load_keypoints(tmp_path / "out.npz").fps == 12.5
    assert "do not say" not in capsys.readouterr().err
    code = main(["pose", str(tmp_path / "frames"), str(tmp_path / "no.npz"), "--fps", "0"])
    error_of(capsys, code, "frames per second")


def test_a_reader_that_has_had_enough_is_no_success(capsys):
    def work(_):
        raise BrokenPipeError

    stdout = sys.stdout
    try:
        assert run(argparse.Namespace(run=work, debug=False), "animate-jax") == 141
    finally:
        sys.stdout = stdout
