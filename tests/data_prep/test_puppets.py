"""Puppets: deterministic, varied, and drawn exactly where their keypoints say."""

import dataclasses
import hashlib
import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from animate_jax.errors import UserError
from animate_jax.pose import skeleton as sk
from animate_jax.pose.keypoints import Keypoints, load_keypoints
from animate_jax.video.reading import read_frames
from data_prep.__main__ import main
from data_prep.puppets.body import GROUPS, HIDDEN_SCORE, Camera, place_body, pose_body, project_body
from data_prep.puppets.character import Garment, random_character
from data_prep.puppets.draw import draw_frames, draw_part_maps, enlargement
from data_prep.puppets.generate import PuppetSet, generate
from data_prep.puppets.motion import BONE
from data_prep.puppets.moves import KINDS, random_motion
from data_prep.puppets.recorded import motion_from_keypoints
from data_prep.puppets.scene import Backdrop, random_backdrop, random_camera

# Limbs whose two ends are joints: part name -> keypoints.
LIMBS = {
    "right_upper_arm": (sk.RIGHT_SHOULDER, sk.RIGHT_ELBOW),
    "right_forearm": (sk.RIGHT_ELBOW, sk.RIGHT_WRIST),
    "left_upper_arm": (sk.LEFT_SHOULDER, sk.LEFT_ELBOW),
    "left_forearm": (sk.LEFT_ELBOW, sk.LEFT_WRIST),
    "right_thigh": (sk.RIGHT_HIP, sk.RIGHT_KNEE),
    "right_shin": (sk.RIGHT_KNEE, sk.RIGHT_ANKLE),
    "left_thigh": (sk.LEFT_HIP, sk.LEFT_KNEE),
    "left_shin": (sk.LEFT_KNEE, sk.LEFT_ANKLE),
}


def render(character, motion, size=128, scene=0):
    body = place_body(character, motion)
    camera = random_camera(scene, [body], size, size)
    backdrop = random_backdrop(scene, camera, enlargement(camera))
    return np.stack(list(draw_frames(body, camera, backdrop))), body, camera


def bare(character, thin=1.0):
    """The character without clothes and things that cover limbs, with limbs of other widths."""
    build = character.build
    build = dataclasses.replace(
        build, arm_width=build.arm_width * thin, leg_width=build.leg_width * thin
    )
    return dataclasses.replace(
        character,
        build=build,
        sleeves=(0.0, 0.0),
        open_jacket=None,
        bottom_kind="shorts",
        hem=0.02,
        socks=None,
        boots=False,
        bag="none",
        patch=None,
        wristband=None,
    )


def digest(size=128):
    frames, body, camera = render(random_character(3), random_motion(5, 6, 15), size)
    return hashlib.sha256(frames.tobytes() + project_body(body, camera).tobytes()).hexdigest()


def test_same_seed_same_bytes_in_another_process():
    code = "import test_puppets; print(test_puppets.digest())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join([*sys.path, __file__.rpartition("/")[0]])},
    )
    assert run.stdout.strip() == digest() == digest(), run.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_keypoints_agree_with_the_drawn_limbs(kind):
    """With limbs a few pixels thin, the ends of each limb's pixels are its joints."""
    size, worst, checked = 512, 0.0, 0
    for seed in range(3):
        motion = random_motion(seed, 12, 15, kind)
        body = place_body(bare(random_character(seed), thin=0.1), motion)
        camera = random_camera(seed, [body], size, size)
        points = project_body(body, camera)
        for name, ends in LIMBS.items():
            maps = draw_part_maps(body, camera, [name])
            for number, (frame, parts) in enumerate(zip(points, maps)):
                if (frame[list(ends), 2] < 1).any():
                    continue
                start, end = frame[list(ends), :2].astype(float)
                length = np.linalg.norm(end - start)
                pixels = np.argwhere(parts == 1)[:, ::-1]
                if length < 8 or len(pixels) < 8:  # hidden by what a score does not count
                    continue
                along = (end - start) / length
                across = np.array([-along[1], along[0]])
                assert np.abs((pixels - start) @ across).max() < 0.01 * size
                reach = (pixels - start) @ along
                # Torso and shoes may lie over shoulders, hips and ankles; all others are seen.
                if name.endswith(("forearm", "shin")):
                    worst = max(worst, abs(reach.min()))
                    checked += 1
                if name.endswith(("arm", "thigh")):
                    worst = max(worst, abs(reach.max() - length))
                    checked += 1
                if name.endswith("upper_arm") and body.order[number].tolist().index(
                    GROUPS.index(name[: -len("_upper_arm")] + "_arm")
                ) > body.order[number].tolist().index(GROUPS.index("torso")):
                    worst = max(worst, abs(reach.min()))
                    checked += 1
    print(f"{kind}: {checked} joints, the worst {100 * worst / size:.2f} % of the height away")
    assert checked > 20
    assert worst < 0.01 * size


def test_clothed_joints_lie_on_the_person():
    """No body point with full score is seen on the background, clothes and all."""
    for seed in range(12):
        body = place_body(random_character(seed), random_motion(seed, 12, 15))
        camera = random_camera(seed, [body], 256, 256)
        for frame, parts in zip(project_body(body, camera), draw_part_maps(body, camera, [])):
            seen = frame[frame[:, 2] == 1][:, :2].round().astype(int)
            padded = np.pad(parts, 2)
            near = [padded[y + 2 - 2 : y + 5, x : x + 5].any() for x, y in seen]
            assert np.mean(near) == 1


def test_faces_are_drawn_at_their_points():
    """Eyes, in a colour of their own, have their middle at the eye keypoints."""
    character = random_character(1)
    face = dataclasses.replace(character.face, glasses="none", iris=(0, 255, 0), blush=False)
    character = dataclasses.replace(character, face=face, hat="none", hair_style="bald")
    motion = random_motion(2, 30, 15, "idle")
    motion = dataclasses.replace(motion, face=np.zeros_like(motion.face))
    body = place_body(character, motion)
    camera = random_camera(0, [body], 768, 768)
    backdrop = random_backdrop(1, camera, 2)
    errors = []
    for picture, points in zip(draw_frames(body, camera, backdrop), project_body(body, camera)):
        green = (picture[..., 1] > 180) & (picture[..., 0] < 90) & (picture[..., 2] < 90)
        for eye in (sk.RIGHT_EYE, sk.LEFT_EYE):
            x, y, score = points[eye]
            box = green[int(y) - 10 : int(y) + 11, int(x) - 10 : int(x) + 11]
            if score == 1 and box.sum() > 8:
                middle = np.argwhere(box).mean(0) - 10
                errors.append(np.abs(middle - [y % 1, x % 1]).max())
    print(f"{len(errors)} eyes, the worst {max(errors) / 7.68:.2f} % of the height away")
    assert len(errors) >= 10
    assert max(errors) < 0.01 * 768


def test_hidden_points_keep_a_score_and_absent_ones_none():
    body = place_body(random_character(4), random_motion(1, 60, 15, "turn"))
    camera = Camera(80.0, 64.0, 120.0, 128, 128)
    points = project_body(body, camera)
    assert set(np.unique(points[..., 2])) <= {0.0, HIDDEN_SCORE, 1.0}
    limbs = points[:, 1:14]
    assert (limbs[..., 2] >= HIDDEN_SCORE).all()
    away = body.head_axes[:, 2, 2] < -0.03
    assert (points[away, sk.FACE_START + 30, 2] == 0).all()
    shifted = Camera(80.0, 164.0, 120.0, 128, 128)
    outside = project_body(body, shifted)
    assert (outside[outside[..., 0] > 127][:, 2] == 0).all()


def test_characters_differ_visibly():
    motion = random_motion(0, 1, 15, "idle")
    bodies = [place_body(random_character(seed), motion) for seed in range(8)]
    camera = random_camera(0, bodies, 128, 128)
    backdrop = random_backdrop(0, camera, 4)
    pictures = [next(draw_frames(body, camera, backdrop)).astype(int) for body in bodies]
    for a, b in itertools.combinations(pictures, 2):
        person = (np.abs(a - b).max(-1) > 0).sum()
        assert (np.abs(a - b).max(-1) > 40).sum() > 300, person


def test_same_motion_same_joint_angles():
    motion = random_motion(7, 20, 15, "dance")
    camera = Camera(200.0, 200.0, 300.0, 400, 400)
    for a, b in LIMBS.values():
        angles = []
        for seed in (1, 2, 3):
            points = pose_body(random_character(seed), motion, camera).astype(float)
            flat = points[:, b, :2] - points[:, a, :2]
            angles.append(flat / np.linalg.norm(flat, axis=-1, keepdims=True))
        assert np.abs(angles[0] - angles[1]).max() < 1e-3
        assert np.abs(angles[0] - angles[2]).max() < 1e-3


@pytest.mark.parametrize("kind", ["dance", "walk", "squat"])
def test_recorded_motion_repeats_the_picture(kind):
    """Read from keypoints and performed by the same body, limbs point where they did."""
    character, motion = random_character(6), random_motion(3, 48, 15, kind)
    motion = dataclasses.replace(motion, root=np.zeros_like(motion.root))
    camera = Camera(200.0, 200.0, 380.0, 400, 400)
    truth = pose_body(character, motion, camera)
    truth[10:14, sk.LEFT_WRIST, 2] = 0
    again = motion_from_keypoints(Keypoints(truth, 15.0, 400, 400))
    repeated = pose_body(character, again, camera)
    for a, b in LIMBS.values():
        flat = truth[:, b, :2] - truth[:, a, :2]
        back = repeated[:, b, :2] - repeated[:, a, :2]
        error = np.linalg.norm(flat - back, axis=-1)
        error[9:15] = 0
        assert error.mean() < 0.02 * 200, (a, b)
    angle, tilt = np.moveaxis(again.angles[:, BONE["left_thigh"]], -1, 0)
    assert np.isfinite(angle).all() and np.isfinite(tilt).all()


def test_edges_are_smooth():
    """Along the contour of a white person before black there are many levels of grey."""
    white = (255, 255, 255)
    plain = Garment(white, white)
    character = dataclasses.replace(
        bare(random_character(2)), skin=white, top=plain, bottom=plain, logo="none"
    )
    body = place_body(character, random_motion(2, 1, 15, "idle"))
    camera = random_camera(0, [body], 128, 128)
    black = Backdrop(Image.new("RGB", (512, 512)), 4, 0.0)
    picture = next(draw_frames(body, camera, black))
    assert len(np.unique(picture[..., 0])) > 12


def test_patterns_move_with_the_limb():
    """In limb coordinates the pattern stays where it was; in the picture it does not."""
    character = random_character(0)
    stripes = Garment((255, 0, 0), (0, 0, 255), "stripes", 0.06)
    character = dataclasses.replace(
        bare(character), sleeves=(2.0, 2.0), top=stripes, odd_sleeve=False, logo="none", belt=None
    )
    motion = random_motion(4, 8, 4, "jacks")
    frames, body, camera = render(character, motion, 512)
    points = project_body(body, camera)
    elbow, shoulder = points[:, sk.LEFT_ELBOW, :2], points[:, sk.LEFT_SHOULDER, :2]
    assert np.ptp(elbow[:, 1]) > 50
    shares = np.linspace(0.45, 0.9, 24)
    rows = []
    for frame, a, b in zip(frames, shoulder, elbow):
        x, y = (a + shares[:, None] * (b - a)).round().astype(int).T
        rows.append(frame[y, x, 0] > frame[y, x, 2])
    rows = np.stack(rows)
    assert 0.2 < rows.mean() < 0.8
    assert (rows == rows[0]).mean() > 0.85


def test_drawing_is_fast():
    """CPU time of everything, from seeds to frames and keypoints."""
    start, count = time.process_time(), 0
    for seed in range(4):
        frames, body, camera = render(random_character(seed), random_motion(seed, 48, 15))
        project_body(body, camera)
        count += len(frames)
    rate = count / (time.process_time() - start)
    print(f"{rate:.0f} frames/s at 128x128 on one core")
    assert rate >= 60


def test_command_line(tmp_path, capsys):
    out = tmp_path / "set"
    arguments = f"puppets --out {out} --clips 2 --size 128 --height 160 --seed 1 --frames 6".split()
    assert main(arguments) == 0
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        frames = np.stack(list(read_frames(out / line["clip"])))
        keypoints = load_keypoints(out / line["keypoints"])
        assert frames.shape == (6, 160, 128, 3)
        assert keypoints.points.shape == (6, 134, 3)
        assert (keypoints.width, keypoints.height, keypoints.fps) == (128, 160, 15.0)
        assert line["licence"] == "CC0-1.0"
    assert lines[0]["character_seed"] != lines[1]["character_seed"]
    assert main(arguments) == 2
    assert "add --overwrite" in capsys.readouterr().err
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert main([*arguments, "--overwrite"]) == 0
    assert before == {path: path.read_bytes() for path in out.rglob("*.*")}


def test_pairs_share_motion_and_camera(tmp_path):
    out = tmp_path / "pairs"
    arguments = f"puppets --out {out} --clips 4 --size 128 --seed 2 --frames 5 --pairs".split()
    assert main(arguments) == 0
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["group"] for line in lines] == [0, 0, 1, 1]
    sources = ["puppets-2/000000"] * 2 + ["puppets-2/000001"] * 2
    assert [line["source"] for line in lines] == sources
    for a, b in (lines[:2], lines[2:]):
        assert a["motion_seed"] == b["motion_seed"]
        assert a["camera_seed"] == b["camera_seed"]
        assert a["character_seed"] != b["character_seed"]
    first, second = (load_keypoints(out / line["keypoints"]).points for line in lines[:2])
    bone = [p[:, sk.LEFT_KNEE, :2] - p[:, sk.LEFT_HIP, :2] for p in (first, second)]
    angle = [np.arctan2(b[:, 1], b[:, 0]) for b in bone]
    assert np.abs(angle[0] - angle[1]).max() < 1e-3


def test_motion_files(tmp_path):
    source = tmp_path / "set"
    generate(PuppetSet(1, 128, 128, 3, frames=12), source, progress=False)
    recorded = source / "keypoints" / "000000.npz"
    out = tmp_path / "again"
    generate(PuppetSet(2, 128, 128, 4, frames=8, motions=[recorded]), out, progress=False)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["motion_file"] for line in lines] == ["000000.npz"] * 2
    assert load_keypoints(out / lines[1]["keypoints"]).points.shape == (8, 134, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--clips 0 --size 128 --seed 1", "clips is 0"),
        ("--clips 1 --size 8 --seed 1", "sides from"),
        ("--clips 1 --size 4096 --seed 1", "sides from"),
        ("--clips 1 --size 65 --seed 1", "65x65 pixels: videos have even sides"),
        ("--clips 1 --size 64 --height 67 --seed 1", "64x67 pixels: videos have even sides"),
        ("--clips 3 --size 128 --seed 1 --pairs", "give a multiple"),
        ("--clips 1 --size 128 --seed -1", "seed -1"),
        ("--clips 1 --size 128 --seed 1 --fps 0", "frames per second"),
        ("--clips 1 --size 128 --seed 1 --fps nan", "frames per second"),
        ("--clips 1 --size 128 --seed 1 --frames 0", "frames is 0"),
        ("--clips 1 --size 128 --seed 1 --motion missing.npz", "no such keypoint file"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    assert main(["puppets", "--out", str(out), *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_other_directories_are_never_replaced(tmp_path):
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        generate(PuppetSet(1, 128, 128, 1), tmp_path, overwrite=True)
    assert (tmp_path / "letters.txt").read_text() == "mine"


def test_a_motion_without_a_body_is_refused():
    points = np.zeros((4, 134, 3), np.float32)
    with pytest.raises(UserError, match="shoulders are never seen"):
        motion_from_keypoints(Keypoints(points, 15.0, 64, 64))
    with pytest.raises(UserError, match="no motion 'fly'"):
        random_motion(0, 4, 15, "fly")
    with pytest.raises(UserError, match="not a motion"):
        random_motion(0, 0, 15)
