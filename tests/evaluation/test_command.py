"""`animate-jax evaluate` as users run it: a report, and one line where something is wrong."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from small_model import small_model

from animate_jax.cli import main
from animate_jax.errors import UserError
from animate_jax.evaluation import networks, pixels
from animate_jax.evaluation.clips import clip_frames, clip_masks, open_clips
from animate_jax.evaluation.frechet import frechet_distance
from animate_jax.evaluation.protocol import PROTOCOLS, SETTINGS, read_protocol
from animate_jax.evaluation.report import make_report, mean_interval, table, write_report
from animate_jax.evaluation.score import METRICS
from animate_jax.inference.pipeline import AnimateAnyonePipeline
from animate_jax.models.animate_anyone import COMPONENTS, AnimateAnyone
from animate_jax.pose.retarget import retarget
from animate_jax.video.reading import probe_video
from animate_jax.video.writing import write_video
from animate_jax.weights.model_directory import load_model, save_model


def evaluate(out, *options):
    code = main(["evaluate", "--out", str(out), *map(str, options)])
    return code, json.loads(out.read_text()) if out.exists() else None


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path, config = tmp_path_factory.mktemp("evaluate") / "model", small_model()
    module = AnimateAnyone(config)
    save_model(path, config, ((name, module.init(0, (name,))[name]) for name in COMPONENTS))
    return path


@pytest.fixture
def quick_compilation():
    """Programs that run once: compiled in half the time, and slower."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("quick_compilation")
def test_a_model_driven_by_others(model, puppets, tmp_path, capsys):
    sampling = "--steps", 1, "--guidance", 1, "--frames", 2, "--pairs", 2, "--cross"
    options = "--model", model, "--data", puppets, *sampling
    shown = "--frames-detail", "--pictures", tmp_path / "pictures"
    code, report = evaluate(tmp_path / "report.json", *options, *shown)
    assert code == 0
    printed = capsys.readouterr().out
    assert (
        "psnr_character" in printed and "without ms_ssim: needs pictures of at least 176" in printed
    )
    rows = report["clips"]
    assert [row["name"] for row in rows] == ["000000, as 000001", "000001, as 000000"]
    assert [row["seed"] for row in rows] == [0, 1]
    assert report["settings"]["sizes"] == [[32, 40]]  # the model's resolution, in proportion
    assert report["settings"]["steps"] == 1 and report["versions"]["jax"]
    for row in rows:
        assert row["frames"] == 2 and len(row["per_frame"]["psnr"]) == 2
        assert abs(np.mean(row["per_frame"]["psnr"]) - row["psnr"]) < 1e-6
        assert 0 < row["psnr_character"] < 30 and 0 < row["flicker"] < 1
    values = [row["l1"] for row in rows]
    assert abs(report["means"]["l1"]["mean"] - np.mean(values)) < 1e-9
    np.testing.assert_allclose(report["means"]["l1"]["interval"], np.sort(values), rtol=1e-6)
    assert "give --i3d FILE" in report["left_out"]["fvd"]
    info = probe_video(tmp_path / "pictures" / "000000, as 000001.mp4")
    assert (info.width, info.height) == (4 * 32, 40)  # reference, skeleton, result, truth
    # The same seed gives the same numbers, another one others.
    for seed, same in ((0, True), (5, False)):
        _, again = evaluate(tmp_path / f"{seed}.json", *options, "--seed", seed)
        assert (again["means"]["l1"] == report["means"]["l1"]) is same
        assert "per_frame" not in again["clips"][0]


def test_the_autoencoder_alone(model, puppets, tmp_path, monkeypatch):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 40, 32, 3), np.uint8)
    config, params = load_model(model, components=("autoencoder",))
    module = AnimateAnyone(config)
    latents = module.encode_latents(params, jnp.float32(pictures) / 127.5 - 1)
    expected = np.asarray(module.decode_latents(params, latents))
    assert np.abs(expected[0] - expected[1]).max() > 1e-3  # it matters what is encoded
    pipeline = AnimateAnyonePipeline.from_pretrained(model)
    for given in (pictures, pictures / np.float32(255)):
        np.testing.assert_allclose(pipeline.reconstruct(given), expected, atol=1e-5)
    with pytest.raises(UserError, match="32x39 pixels"):
        pipeline.reconstruct(pictures[:, 1:])

    # The command gives it the truth, frame by frame.
    monkeypatch.setattr(AnimateAnyonePipeline, "reconstruct", lambda _, frames: frames / 255)
    options = "--model", model, "--data", puppets, "--autoencoder-only", "--frames", 2
    code, report = evaluate(tmp_path / "report.json", *options, "--pairs", 1)
    assert code == 0 and report["clips"][0]["psnr"] == 100
    assert report["settings"]["autoencoder_only"] and "steps" not in report["settings"]


@pytest.fixture(scope="module")
def copied(puppets, tmp_path_factory):
    """The report of the copy baseline, and the same clips as folders of pictures."""
    directory = tmp_path_factory.mktemp("copied")
    code, report = evaluate(directory / "copy.json", "--baseline", "copy", "--data", puppets)
    assert code == 0
    for name, clip in open_clips(puppets, "validation").items():
        frames, _ = clip_frames(clip.load(), range(10), (96, 128))
        write_video(directory / "truth" / name, frames[1:], 8)
        write_video(directory / "predicted" / name, frames[:1].repeat(9, 0), 8)
    return directory, report


def test_the_reference_held_still(copied, puppets):
    report = copied[1]
    for row in report["clips"]:
        record = open_clips(puppets, "validation")[row["name"]].load()
        frames, _ = clip_frames(record, range(10), (96, 128))
        masks = clip_masks(record, range(1, 10), (96, 128))
        error = (np.float64(frames[:1]) - frames[1:]) ** 2
        expected = [-10 * np.log10(one[mask].mean() / 255**2) for one, mask in zip(error, masks)]
        assert abs(row["psnr_character"] - np.mean(expected)) < 1e-3
        assert row["flicker_ratio"] == 0
        still = np.abs(np.diff(np.float32(frames[1:]), axis=0)).mean() / 255
        assert abs(row["flicker"] - still) < 1e-6
        printed = pixels.psnr_disco(frames[:1].repeat(9, 0), frames[1:]).mean()
        assert abs(row["psnr_disco"] - printed) < 1e-9 and printed > row["psnr"] + 5
    assert list(report["means"]) == [name for name in METRICS if name in report["means"]]


def test_folders_score_as_the_command_does(copied, tmp_path, capsys):
    directory, report = copied
    folders = "--predicted", directory / "predicted", "--truth", directory / "truth"
    code, found = evaluate(tmp_path / "report.json", *folders)
    assert code == 0 and [row["name"] for row in found["clips"]] == [f"00000{i}" for i in range(4)]
    for name, mean in report["means"].items():
        if name != "psnr_character":
            np.testing.assert_allclose(found["means"][name]["mean"], mean["mean"], rtol=1e-6)
    assert "ms_ssim" in found["left_out"] and "flicker" not in found["left_out"]
    # One folder of pictures is one clip; sizes may differ.
    one = "--predicted", directory / "predicted/000001", "--truth", directory / "truth/000001"
    _, single = evaluate(tmp_path / "single.json", *one, "--width", 48, "--height", 64)
    assert len(single["clips"]) == 1 and single["settings"]["sizes"] == [[48, 64]]
    assert single["means"]["l1"]["interval"] is None
    # What does not fit is said in one line.
    other = tmp_path / "other"
    write_video(other / "000000", np.zeros((4, 64, 64, 3), np.uint8), 8)
    for more, message in (([], "has no video '000001'"), (["--frames", "4"], "has no video")):
        code, _ = evaluate(tmp_path / "no.json", "--predicted", other, *folders[2:], *more)
        assert code == 2 and message in capsys.readouterr().err
    pair = "--predicted", other / "000000", "--truth", directory / "truth/000000"
    code, _ = evaluate(tmp_path / "no.json", *pair)
    assert code == 2 and "has 4 frames, but" in capsys.readouterr().err
    code, cut = evaluate(tmp_path / "cut.json", *pair, "--frames", 4)
    assert code == 0 and cut["clips"][0]["frames"] == 4 and cut["settings"]["sizes"] == [[96, 128]]


def test_a_pair_of_unequal_length_costs_no_report(tmp_path, capsys):
    for name, frames in (("a", 3), ("b", 4), ("c", 3)):
        clip = np.random.default_rng(0).integers(0, 256, (frames, 32, 32, 3), np.uint8)
        write_video(tmp_path / "predicted" / name, clip, 8)
        write_video(tmp_path / "truth" / name, clip[:3] // 2, 8)
    folders = "--predicted", tmp_path / "predicted", "--truth", tmp_path / "truth"
    code, report = evaluate(tmp_path / "report.json", *folders)
    assert code == 0 and [row["name"] for row in report["clips"]] == ["a", "c", "b"]
    assert "has 4 frames, but" in report["clips"][2]["left_out"]
    assert report["means"]["l1"]["clips"] == 2
    printed = capsys.readouterr()
    assert "b is left out" in printed.err
    assert "2 clips" in printed.out and "without the clip b" in printed.out


def test_distances_are_of_all_frames_and_windows(copied, tmp_path, monkeypatch):
    directory, _ = copied

    def means(weights, x):  # a network that is quick to compile
        return x.mean((1, 2) if x.ndim == 4 else (1, 2, 3)) * weights["w"]

    for name in ("inception", "i3d"):
        quick = dataclasses.replace(networks.NETWORKS[name], features=means)
        monkeypatch.setitem(networks.NETWORKS, name, quick)
    files = tmp_path / "networks"
    files.mkdir()
    torch.save({"w": torch.tensor([1.0, 2.0, 3.0])}, files / "i3d_pretrained_400.pt")
    torch.save({"w": torch.ones(3)}, files / "pt_inception-2015-12-05-6726825d.pth")
    folders = "--predicted", directory / "predicted", "--truth", directory / "truth"
    windows = "--window-frames", 9, "--window-stride", 2
    _, report = evaluate(tmp_path / "report.json", *folders, "--networks", files, *windows)
    clips = {
        kind: np.stack(
            [
                [np.asarray(Image.open(p)) for p in sorted(clip.iterdir())]
                for clip in sorted((directory / kind).iterdir())
            ]
        )
        / 255
        for kind in ("predicted", "truth")
    }
    pictures = [clip.mean((2, 3)).reshape(-1, 3) for clip in clips.values()]
    found = report["distances"]["fid"]
    assert found["samples"] == 36
    assert abs(found["value"] / frechet_distance(*pictures) - 1) < 1e-4
    whole = [clip.mean((1, 2, 3)) * np.arange(1, 4) for clip in clips.values()]
    found = report["distances"]["fvd"]
    assert found["samples"] == 4
    assert abs(found["value"] / frechet_distance(*whole) - 1) < 1e-3
    assert set(report["left_out"]) >= {"fid_vid", "lpips_alex"}
    assert jnp.asarray(found["value"]) > 0 and "fvd" in table(report)
    # Windows that are longer than the clips leave none.
    _, report = evaluate(tmp_path / "more.json", *folders, "--networks", files)
    assert list(report["distances"]) == ["fid"]
    assert report["left_out"]["fvd"] == "needs at least two windows of 16 frames"


def test_only_skeletons_of_others_are_retargeted(puppets, tmp_path, monkeypatch):
    driven = []

    def generate(reference, own, points):
        driven.append((own, points))
        return reference[None].repeat(len(points), 0)

    monkeypatch.setattr("animate_jax.commands.evaluate.warp_reference", generate)
    line = {"reference": "000001", "reference_frame": 4, "frames": 5, "stride": 2}
    pairs = [
        line | {"name": "itself", "driving": "000003", "truth": "000003"},
        line | {"name": "other", "driving": "000000", "truth": "000001"},
    ]
    (tmp_path / "pairs.json").write_text(json.dumps({"pairs": pairs}))
    options = "--baseline", "warp", "--data", puppets, "--pairs-file", tmp_path / "pairs.json"
    code, report = evaluate(tmp_path / "report.json", *options)
    assert code == 0 and report["clips"][0]["first"] == 1
    clips = open_clips(puppets, "validation")
    numbers = [4, *range(1, 10, 2)]
    poses = {n: clip_frames(clips[n].load(), numbers, (96, 128))[1] for n in clips}
    own = poses["000001"][0]
    for reference, _ in driven:
        np.testing.assert_array_equal(reference, own)
    np.testing.assert_array_equal(driven[0][1], poses["000003"][1:])
    sizes = dict.fromkeys(("driving_size", "target_size", "reference_size"), (96, 128))
    anchored = retarget(poses["000000"], own, "scale", **sizes, anchored=True)
    np.testing.assert_array_equal(driven[1][1], anchored[1:])
    assert "retarget" not in report["clips"][1]


def test_a_reference_that_nothing_fits_costs_no_report(puppets, tmp_path, monkeypatch, capsys):
    def unfit(points, own, mode, **sizes):
        if mode == "none":
            return retarget(points, own, mode, **sizes)
        raise UserError("the reference shows nobody")

    monkeypatch.setattr("animate_jax.commands.evaluate.retarget", unfit)
    line = {"name": "other", "reference": "000001", "driving": "000000", "truth": "000001"}
    (tmp_path / "pairs.json").write_text(json.dumps({"pairs": [line | {"frames": 2}]}))
    options = "--baseline", "copy", "--data", puppets, "--pairs-file", tmp_path / "pairs.json"
    code, report = evaluate(tmp_path / "report.json", *options)
    assert code == 0 and report["clips"][0]["retarget"] == "none"
    assert "other: the reference shows nobody; its skeletons" in capsys.readouterr().err


def test_protocols_are_complete_and_apply(puppets, tmp_path, capsys):
    assert PROTOCOLS == ("tiktok", "ubc_fashion")
    for name in PROTOCOLS:
        protocol = read_protocol(name)
        assert set(protocol["settings"]) == set(SETTINGS)
        assert protocol["sources"] and protocol["split"]["train"] and protocol["notes"]
    options = "--baseline", "copy", "--data", puppets, "--pairs", 1, "--frames", 2
    ubc = "--protocol", "ubc_fashion"
    _, report = evaluate(tmp_path / "ubc.json", *options, *ubc, "--width", 64, "--height", 64)
    assert report["settings"]["windows"] == {"frames": 16, "stride": 16}
    assert report["settings"]["sizes"] == [[64, 64]]
    assert report["settings"]["protocol"] == "ubc_fashion"
    code, _ = evaluate(tmp_path / "no.json", *options, "--protocol", "tiktok")
    assert code == 2 and "00335 to 00339" in capsys.readouterr().err


def test_bad_options_are_one_line_and_leave_nothing(puppets, tmp_path, capsys):
    data, copy = ("--data", puppets), ("--baseline", "copy")
    (tmp_path / "there.json").write_text("{}")
    cases = [
        ((*copy,), "need --data"),
        ((*data,), "give one of --model, --baseline"),
        ((*copy, *data, "--model", tmp_path), "give one of --model, --baseline"),
        ((*data, "--model", tmp_path / "nowhere"), "no such model directory"),
        (("--predicted", tmp_path), "go together"),
        ((*copy, "--data", tmp_path), "holds no records"),
        ((*copy, *data, "--i3d", tmp_path / "no.pt"), "no.pt"),
        ((*copy, *data, "--networks", tmp_path / "none"), "no such directory"),
        ((*copy, *data, "--pairs-file", tmp_path / "none"), "cannot be read"),
        ((*copy, *data, "--seed", -1), "--seed is -1"),
        ((*copy, *data, "--autoencoder-only"), "--autoencoder-only needs --model"),
        ((*copy, *data, "--pairs-file", tmp_path / "p", "--stride", 2), "leave --frames and --str"),
        (("--predicted", data[1], "--truth", data[1], "--cross"), "leave --pairs-file, --cross"),
        ((*copy, *data, "--pictures", tmp_path / "there.json"), "is a file"),
        ((*copy, *data, "--pictures", tmp_path / "out"), "is, or holds, "),
        ((*copy, *data, "--pictures", Path(puppets).parent), "is, or holds, "),
    ]
    for options, message in cases:
        code, report = evaluate(tmp_path / "out" / "no.json", *options)
        lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert code == 2 and report is None and len(lines) == 1 and message in lines[0], options
    assert not (tmp_path / "out").exists()
    assert evaluate(tmp_path / "there.json", *copy, *data)[0] == 2
    assert "--overwrite" in capsys.readouterr().err
    (tmp_path / "folder.json").mkdir()
    told = ("--out", str(tmp_path / "folder.json"), *copy, "--data", str(puppets), "--overwrite")
    assert main(["evaluate", *told]) == 2
    assert "folder.json: is a directory" in capsys.readouterr().err
    assert main(["evaluate", "--out", str(tmp_path / "a.txt"), *copy, "--data", "x"]) == 2
    assert ".json" in capsys.readouterr().err


def test_intervals_and_numbers_that_are_none(tmp_path):
    values = np.random.default_rng(0).normal(20, 3, 50)
    found = mean_interval(values)
    width = 1.96 * values.std(ddof=1) / np.sqrt(50)
    assert abs(found["mean"] - values.mean()) < 1e-12
    np.testing.assert_allclose(
        found["interval"], [values.mean() - width, values.mean() + width], atol=0.15 * width
    )
    assert found == mean_interval(values)
    write_report(tmp_path / "r.json", {"a": np.float32("nan"), "b": [np.inf, np.int64(3)]})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": None, "b": [None, 3]}


def test_means_as_disco_takes_them_are_over_frames():
    rows = [{"name": "a", "frames": 9, "ssim_disco": 0.2, "ssim": 0.2}]
    rows += [{"name": "b", "frames": 1, "ssim_disco": 0.8, "ssim": 0.8}]
    means = make_report({}, rows, {}, {})["means"]
    assert abs(means["ssim"]["mean"] - 0.5) < 1e-12
    assert abs(means["ssim_disco"]["mean"] - 0.26) < 1e-12
    assert means["ssim_disco"]["interval"] == means["ssim"]["interval"] == [0.2, 0.8]


def test_one_side_leaves_the_other_to_the_clips(puppets, tmp_path):
    """Of 96x128 pixels; also under a protocol that would have both."""
    options = "--baseline", "copy", "--data", puppets, "--pairs", 1, "--frames", 2
    for number, (more, size) in enumerate(
        ((("--width", 48), [48, 64]), (("--height", 64), [48, 64]), (("--width", 96), [96, 128]))
    ):
        _, report = evaluate(tmp_path / f"{number}.json", *options, *more)
        assert report["settings"]["sizes"] == [size], more


def test_a_protocol_says_which_of_its_videos_are_missing(puppets, tmp_path, capsys, monkeypatch):
    protocol = read_protocol("tiktok")
    clips = open_clips(puppets, "validation")
    ids = protocol["split"]["ids"]
    clips = {n: dataclasses.replace(clip, source=i) for (n, clip), i in zip(clips.items(), ids)}
    monkeypatch.setattr("animate_jax.commands.evaluate.open_clips", lambda *_: clips)
    options = "--baseline", "copy", "--data", puppets, "--protocol", "tiktok", "--frames", 2
    code, report = evaluate(tmp_path / "report.json", *options, "--width", 48)
    assert code == 0 and report["settings"]["sizes"] == [[48, 64]]
    assert report["settings"]["videos"] == 4 and report["settings"]["missing_videos"] == ["00339"]
    assert "lacks 00339" in capsys.readouterr().err


def test_a_picture_beside_videos_is_no_folder_of_pictures(copied, tmp_path, capsys):
    directory, _ = copied
    for name in ("predicted", "truth"):
        write_video(tmp_path / name / "a.mp4", np.zeros((2, 64, 64, 3), np.uint8), 8)
        Image.new("RGB", (64, 64)).save(tmp_path / name / "grid.png")
    folders = "--predicted", tmp_path / "predicted", "--truth", tmp_path / "truth"
    assert evaluate(tmp_path / "no.json", *folders) == (2, None)
    assert "holds the picture grid.png beside videos" in capsys.readouterr().err
