"""Random motions: walks, waves, squats, kicks, dances, jumping jacks, idling, turns.

Each is a handful of sines over joint angles of a standing person, turned into bone directions.
"""

import numpy as np

from animate_jax.errors import UserError
from data_prep.puppets.character import generator
from data_prep.puppets.motion import BONES, Motion, angles_of

KINDS = ("walk", "wave", "squat", "kick", "dance", "jacks", "idle", "turn")
CAMERA_PITCH = 0.12  # the camera looks slightly down, so that feet towards it are lower


def random_motion(seed: int, frames: int, fps: float, kind: str | None = None) -> Motion:
    """A motion of one of KINDS, drawn from the seed. Raises UserError for bad arguments."""
    if frames < 1 or not np.isfinite(fps) or fps <= 0:
        raise UserError(f"{frames} frames at {fps} per second are not a motion")
    rng = generator(seed, "motion")
    drawn = KINDS[rng.choice(len(KINDS), p=[0.2, 0.12, 0.1, 0.12, 0.22, 0.08, 0.06, 0.1])]
    kind = kind or drawn
    if kind not in KINDS:
        raise UserError(f"there is no motion {kind!r}; choose from {', '.join(KINDS)}")
    time = np.arange(frames) / fps
    pose = _standing(rng, time)
    _ADD[kind](rng, time, pose)
    blink = (np.mod(time + rng.uniform(0, 3), rng.uniform(1.8, 3.5)) < 0.14).astype(float)
    talk = np.clip(wave_of(rng, time, 2.2, rng.choice([0.0, 0.0, 0.6])), 0, 1)
    root = np.stack([pose["x"], pose["lift"]], -1)
    face = np.stack([blink, talk], -1)
    return Motion(kind, float(fps), angles_of(_directions(pose)), root, face)


def wave_of(rng, time, frequency, amplitude):
    """A sine with a random phase."""
    return amplitude * np.sin(2 * np.pi * (frequency * time + rng.random()))


def _standing(rng, time):
    """Angles in radians of someone who stands at ease; each an array over time.

    Keys of limbs end in "_r" or "_l". swing is forwards, raise sideways; the elbow bends towards
    `aim` (0 forwards, pi/2 upwards) and `inward`; knees bend backwards.
    """
    zero = np.zeros_like(time)
    breath = wave_of(rng, time, rng.uniform(0.25, 0.4), 0.025)
    pose = dict(
        yaw=zero + np.clip(rng.normal(0, 0.35), -0.9, 0.9),
        lean=zero + rng.uniform(0.0, 0.06),
        sway=wave_of(rng, time, rng.uniform(0.15, 0.4), rng.uniform(0, 0.04)),
        twist=wave_of(rng, time, rng.uniform(0.15, 0.4), rng.uniform(0, 0.08)),
        look=wave_of(rng, time, rng.uniform(0.1, 0.4), rng.uniform(0.05, 0.35)),
        nod=wave_of(rng, time, rng.uniform(0.2, 0.6), rng.uniform(0, 0.1)) - 0.05,
        tip=wave_of(rng, time, rng.uniform(0.2, 0.5), rng.uniform(0, 0.1)),
        x=zero,
        lift=zero,
    )
    out, elbow = rng.uniform(0.12, 0.3), rng.uniform(0.15, 0.5)
    stance = rng.uniform(0.03, 0.16)
    for side in "rl":
        pose |= {
            f"swing_{side}": zero + rng.normal(0, 0.08),
            f"raise_{side}": zero + out + breath,
            f"elbow_{side}": zero + elbow,
            f"aim_{side}": zero,
            f"inward_{side}": zero + 0.3,
            f"hand_{side}": zero + rng.uniform(-0.1, 0.2),
            f"thigh_{side}": zero + 0.02,
            f"spread_{side}": zero + stance,
            f"knee_{side}": zero + 0.05,
            f"toes_{side}": zero,
        }
    return pose


def _walk(rng, time, pose):
    rate, stride = rng.uniform(0.7, 1.25), rng.uniform(0.3, 0.55)
    phase = 2 * np.pi * (rate * time + rng.random())
    yaw = rng.choice([0.0, rng.uniform(0.7, 1.57), -rng.uniform(0.7, 1.57)])
    pose["yaw"] = pose["yaw"] * 0.4 + yaw
    arms = rng.uniform(0.3, 0.8)
    for side, shift in (("r", 0.0), ("l", np.pi)):
        swing = np.sin(phase + shift)
        pose[f"thigh_{side}"] = 0.08 + stride * swing
        pose[f"knee_{side}"] = 0.12 + 0.75 * stride * (1 + np.cos(phase + shift)) ** 1.5
        pose[f"toes_{side}"] = 0.35 * np.clip(-swing, 0, 1)
        pose[f"swing_{side}"] = -arms * swing
        pose[f"elbow_{side}"] = 0.3 + arms * 0.6 * (1 - swing) / 2
        pose[f"spread_{side}"] = pose[f"spread_{side}"] * 0.4
        pose[f"inward_{side}"] = np.zeros_like(time)
    pose["twist"] = 0.15 * np.sin(phase)
    if rng.random() < 0.6:  # else on the spot
        centred = time - time.mean()
        pose["x"] = np.clip(2.2 * stride * rate, 0, 0.9) * np.sin(pose["yaw"]) * centred


def _wave(rng, time, pose):
    sides = str(rng.choice(["r", "l", "rl"]))
    for side in sides:
        pose[f"raise_{side}"] = rng.uniform(1.2, 1.9) + wave_of(rng, time, 0.4, 0.15)
        elbow = rng.uniform(0.7, 1.1)
        pose[f"elbow_{side}"] = elbow + wave_of(rng, time, rng.uniform(1, 2), 0.45)
        pose[f"aim_{side}"] = np.full_like(time, 1.45)
        pose[f"inward_{side}"] = np.full_like(time, 0.3)
    pose["tip"] = pose["tip"] + 0.08


def _squat(rng, time, pose):
    depth = rng.uniform(0.6, 1.35)
    down = depth * (1 - np.cos(2 * np.pi * (rng.uniform(0.4, 0.7) * time + rng.random()))) / 2
    reach, spread = rng.uniform(0.6, 1.2), rng.uniform(0.2, 0.4)
    pose["lean"] = pose["lean"] + 0.35 * down
    for side in "rl":
        pose[f"thigh_{side}"] = down
        pose[f"knee_{side}"] = 0.05 + 1.75 * down
        pose[f"spread_{side}"] = 0.1 + spread * down
        pose[f"swing_{side}"] = reach * down
        pose[f"elbow_{side}"] = 0.2 + 0.3 * down


def _kick(rng, time, pose):
    rate, height = rng.uniform(0.4, 0.7), rng.uniform(0.7, 1.5)
    pose["yaw"] = pose["yaw"] + rng.choice([-1, 1]) * rng.uniform(0.2, 1.2)
    phase = rate * time + rng.random()
    sideways = rng.random() < 0.4
    for side, shift in (("r", 0.0), ("l", 0.5)):
        up = np.clip(np.sin(2 * np.pi * (phase + shift)), 0, 1) ** 2
        pose[f"spread_{side}" if sideways else f"thigh_{side}"] = 0.05 + height * up
        pose[f"knee_{side}"] = 0.1 + 1.1 * up * (1 - up)
        other = "l" if side == "r" else "r"
        pose[f"swing_{other}"] = 0.7 * up
        pose[f"raise_{side}"] = 0.3 + 0.5 * up
        pose[f"elbow_{side}"] = np.full_like(time, 0.7)
        pose[f"toes_{side}"] = 0.5 * up
        pose["lean"] = pose["lean"] - 0.12 * up


def _dance(rng, time, pose):
    beat = rng.uniform(0.8, 1.3)
    step = 2 * np.pi * (beat * time / 2 + rng.random())
    pose["sway"] = rng.uniform(0.05, 0.2) * np.sin(step)
    pose["twist"] = rng.uniform(0.1, 0.4) * np.sin(step + rng.uniform(0, 6))
    pose["yaw"] = pose["yaw"] + rng.uniform(0, 0.5) * np.sin(step / 2)
    pose["tip"] = 0.15 * np.sin(step + 1)
    pose["x"] = rng.uniform(0, 0.25) * np.sin(step)
    bounce = rng.uniform(0.1, 0.35) * (1 - np.cos(2 * step)) / 2
    hop = rng.choice([0.0, 0.12])
    pose["lift"] = hop * np.clip(np.sin(2 * step), 0, 1)
    lifted = rng.uniform(0, 0.8)
    mirrored = rng.random() < 0.5
    arms = [_dancing_arm(rng, time, beat) for _ in "rl"]
    for index, side in enumerate("rl"):
        sign = 1 if side == "r" else -1
        up = lifted * np.clip(sign * np.sin(step), 0, 1)
        pose[f"thigh_{side}"] = bounce + up
        pose[f"knee_{side}"] = 2 * bounce + 1.6 * up
        pose[f"spread_{side}"] = rng.uniform(0.1, 0.3) + 0.1 * np.sin(step) * sign
        for name, values in arms[0 if mirrored else index].items():
            pose[f"{name}_{side}"] = values


def _dancing_arm(rng, time, beat):
    rate = beat * rng.choice([0.25, 0.5, 1.0])
    return {
        "raise": rng.uniform(0.4, 1.8) + wave_of(rng, time, rate, rng.uniform(0.2, 0.8)),
        "swing": wave_of(rng, time, rate, rng.uniform(0, 0.6)),
        "elbow": rng.uniform(0.5, 1.3) + wave_of(rng, time, beat / 2, rng.uniform(0.1, 0.5)),
        "aim": rng.uniform(-0.3, 1.5) + wave_of(rng, time, beat / 4, 0.5),
        "hand": wave_of(rng, time, beat, 0.3),
    }


def _jacks(rng, time, pose):
    phase = 2 * np.pi * (rng.uniform(0.6, 1.0) * time + rng.random())
    out = (1 - np.cos(phase)) / 2
    top, spread = rng.uniform(1.8, 2.8), rng.uniform(0.3, 0.5)
    pose["lift"] = 0.16 * np.abs(np.sin(phase))
    for side in "rl":
        pose[f"raise_{side}"] = 0.15 + top * out
        pose[f"elbow_{side}"] = np.full_like(time, 0.25)
        pose[f"aim_{side}"] = 1.3 * out
        pose[f"spread_{side}"] = 0.05 + spread * out
        pose[f"knee_{side}"] = 0.1 + 0.25 * np.sin(phase) ** 2
        pose[f"thigh_{side}"] = 0.05 + 0.1 * np.sin(phase) ** 2


def _idle(rng, time, pose):
    if rng.random() < 0.6:  # a hand on the hip
        side = str(rng.choice(["r", "l"]))
        pose[f"raise_{side}"] = pose[f"raise_{side}"] + 0.55
        pose[f"elbow_{side}"] = np.full_like(time, 1.75)
        pose[f"inward_{side}"] = np.full_like(time, 3.0)
        pose[f"aim_{side}"] = np.full_like(time, -0.3)
        pose[f"hand_{side}"] = np.full_like(time, 0.4)
    shift = wave_of(rng, time, 0.2, 0.06)
    pose["sway"] = pose["sway"] + shift
    pose["knee_r"], pose["knee_l"] = 0.05 + np.clip(shift, 0, 1), 0.05 + np.clip(-shift, 0, 1)


def _turn(rng, time, pose):
    rate = rng.choice([-1, 1]) * rng.uniform(0.15, 0.35)
    if rng.random() < 0.5:  # all the way round
        pose["yaw"] = pose["yaw"] + 2 * np.pi * rate * time
    else:
        pose["yaw"] = pose["yaw"] + 1.3 * np.sin(2 * np.pi * rate * time)
    phase = 2 * np.pi * (1.2 * time + rng.random())
    for side, shift in (("r", 0.0), ("l", np.pi)):
        pose[f"knee_{side}"] = 0.1 + 0.25 * np.clip(np.sin(phase + shift), 0, 1)
        pose[f"thigh_{side}"] = 0.05 + 0.12 * np.clip(np.sin(phase + shift), 0, 1)
        pose[f"raise_{side}"] = pose[f"raise_{side}"] + 0.2


_ADD = dict(
    walk=_walk,
    wave=_wave,
    squat=_squat,
    kick=_kick,
    dance=_dance,
    jacks=_jacks,
    idle=_idle,
    turn=_turn,
)


def _directions(pose):
    """Angles of _standing -> directions (frames, 17, 3) of BONES in the camera's frame."""
    hip_frame = _yawed(pose["yaw"])
    chest_frame = _yawed(pose["yaw"] + pose["twist"])
    head_frame = _yawed(pose["yaw"] + pose["twist"] / 2 + pose["look"])
    zero, one = np.zeros_like(pose["yaw"]), np.ones_like(pose["yaw"])
    lean, sway = pose["lean"], pose["sway"]
    spine = _vector(np.sin(sway), np.cos(sway) * np.cos(lean), np.cos(sway) * np.sin(lean))
    nod, tip = pose["nod"], pose["tip"]
    head_up = _vector(np.sin(tip), np.cos(tip) * np.cos(nod), np.cos(tip) * np.sin(nod))
    head_forward = _vector(zero, -np.sin(nod), np.cos(nod))
    result = {
        "spine": _turned(hip_frame, spine),
        "hips": _turned(hip_frame, _vector(np.cos(sway / 2), -np.sin(sway / 2), zero)),
        "shoulders": _turned(chest_frame, _vector(np.cos(sway), -np.sin(sway), zero)),
        "head_up": _turned(head_frame, head_up),
        "head_forward": _turned(head_frame, _away(head_forward, head_up)),
    }
    for side, name, sign in (("r", "right", -1.0), ("l", "left", 1.0)):
        get = {key[:-2]: value for key, value in pose.items() if key.endswith(f"_{side}")}
        upper = _swung(get["swing"] + lean, get["raise"], sign)
        aim, inward = get["aim"], get["inward"]
        hint = _vector(-sign * inward, np.sin(aim), np.cos(aim))
        forearm = _bent(upper, hint, get["elbow"])
        hand = _bent(forearm, hint, get["hand"])
        thigh = _swung(get["thigh"], get["spread"], sign)
        shin = _bent(thigh, _vector(zero, zero, -one), get["knee"])
        forward = _away(_vector(sign * 0.35 * one, zero, one), shin)
        foot = _bent(forward, shin, get["toes"])
        for bone, direction, frame in (
            ("upper_arm", upper, chest_frame),
            ("forearm", forearm, chest_frame),
            ("hand", hand, chest_frame),
            ("thigh", thigh, hip_frame),
            ("shin", shin, hip_frame),
            ("foot", foot, hip_frame),
        ):
            result[f"{name}_{bone}"] = _turned(frame, direction)
    directions = np.stack([result[name] for name in BONES], 1)
    cos, sin = np.cos(CAMERA_PITCH), np.sin(CAMERA_PITCH)
    x, y, z = np.moveaxis(directions, -1, 0)
    return np.stack([x, cos * y + sin * z, cos * z - sin * y], -1)


def _vector(left, up, forward):
    return np.stack(np.broadcast_arrays(left, up, forward), -1)


def _yawed(yaw):
    """Rows: the person's left, up and forward (frames, 3, 3) in the camera's frame."""
    zero = np.zeros_like(yaw)
    left = np.stack([np.cos(yaw), zero, -np.sin(yaw)], -1)
    up = np.stack([zero, zero - 1, zero], -1)
    forward = np.stack([np.sin(yaw), zero, np.cos(yaw)], -1)
    return np.stack([left, up, forward], 1)


def _turned(frame, vector):
    return np.einsum("fi,fij->fj", vector, frame)


def _swung(swing, raised, sign):
    """A limb that hangs down, swung forwards and raised sideways."""
    down = np.cos(raised)
    return _vector(sign * np.sin(raised), -down * np.cos(swing), down * np.sin(swing))


def _bent(direction, hint, angle):
    """direction turned by the angle towards the hint."""
    angle = angle[:, None]
    return np.cos(angle) * direction + np.sin(angle) * _away(hint, direction)


def _away(vector, direction):
    """The unit vector along the part of `vector` that is perpendicular to `direction`."""
    rest = vector - (vector * direction).sum(-1, keepdims=True) * direction
    return rest / np.maximum(np.linalg.norm(rest, axis=-1, keepdims=True), 1e-9)
