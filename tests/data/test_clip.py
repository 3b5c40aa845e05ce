"""Frames out of the middle of a clip are those of the whole clip."""

import io

import av
import numpy as np
import pytest

from animate_jax.data.clip import decode_frames
from animate_jax.errors import UserError
from animate_jax.video.reading import read_frames
from animate_jax.video.writing import write_video

COUNT = 33
ENCODINGS = {
    "as data_prep writes": {"g": "10", "bf": "0", "x264-params": "open-gop=0:scenecut=0"},
    "one group": {"g": "250", "bf": "3"},
    "closed groups": {"g": "8", "bf": "3", "x264-params": "b-pyramid=normal:b-adapt=0"},
    "open groups": {"g": "8", "bf": "3", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"},
}


@pytest.fixture(scope="module", params=ENCODINGS)
def clip(request, tmp_path_factory):
    """The clip's bytes and all its frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (12, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    frames = [np.roll(blocks, (3 * i, 5 * i), (0, 1)) for i in range(COUNT)]
    write_video(path, frames, 30, options={"crf": "23", **ENCODINGS[request.param]})
    return path.read_bytes(), np.stack(list(read_frames(path)))


def rgb(frame):
    return frame.to_ndarray(format="rgb24")


def test_every_frame_alone(clip):
    data, frames = clip
    for wanted in range(COUNT):
        ((number, frame),) = decode_frames(data, [wanted])
        assert number == wanted
        np.testing.assert_array_equal(rgb(frame), frames[wanted])


def test_frames_together(clip):
    data, frames = clip
    rng = np.random.default_rng(1)
    for size in (2, 3, 8, COUNT):
        wanted = sorted(rng.choice(COUNT, size, replace=False).tolist())
        decoded = dict(decode_frames(data, wanted))
        assert list(decoded) == wanted
        for number, frame in decoded.items():
            np.testing.assert_array_equal(rgb(frame), frames[number])


def test_nothing_else_is_decoded(tmp_path):
    """Bytes of other groups may be anything."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), np.uint8)
    write_video(tmp_path / "a.mp4", noise, 30, options={"g": "10", "bf": "0"})
    data = (tmp_path / "a.mp4").read_bytes()
    whole = [rgb(frame) for _, frame in decode_frames(data, range(30))]
    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    damaged = bytearray(data)
    for packet in [*packets[:10], *packets[16:]]:
        damaged[packet.pos + 8 : packet.pos + packet.size] = bytes(packet.size - 8)
    ((_, frame),) = decode_frames(bytes(damaged), [15])
    np.testing.assert_array_equal(rgb(frame), whole[15])
    with pytest.raises(UserError, match="cannot be decoded"):  # the damage is real
        list(decode_frames(bytes(damaged), [9]))


def test_what_is_no_clip(clip):
    data, _ = clip
    for bad, wanted, message in [
        (b"not a video", [0], "cannot be decoded"),
        (b"", [0], "cannot be decoded"),
        (data[: len(data) // 20], [0], "cannot be decoded"),
        (data, [COUNT], f"{COUNT} frames, none with number {COUNT}"),
        (data, [-1], f"{COUNT} frames"),
    ]:
        with pytest.raises(UserError, match=message):
            list(decode_frames(bad, wanted))
