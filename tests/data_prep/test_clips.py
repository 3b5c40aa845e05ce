import errno
import json
import os
import sys

import av
import numpy as np
import pytest
from PIL import Image

from animate_jax.errors import UserError, UserNote
from animate_jax.video.reading import probe_video, read_frames
from animate_jax.video.writing import write_video
from data_prep.clips import CutSettings, clip_size, cut_video, load_cut, resized
from data_prep.layouts import Video, find_videos

SETTINGS = CutSettings(min_seconds=0.5, max_seconds=2.0, min_size=32, size=96)


def moving(frames, height=80, width=120, hue=0.0):
    """A bright disc that goes round before a slope of colour: no two frames alike."""
    y, x = np.mgrid[:height, :width]
    clip = []
    for index in range(frames):
        angle = 2 * np.pi * index / 40
        disc = (
            np.hypot(
                x - width * (0.5 + 0.3 * np.cos(angle)), y - height * (0.5 + 0.3 * np.sin(angle))
            )
            < height / 6
        )
        back = np.stack([x / width, y / height, np.full(x.shape, hue)], axis=-1)
        clip.append(np.round(255 * np.where(disc[..., None], [1.0, 1.0, 1 - hue], 0.8 * back)))
    return [frame.astype(np.uint8) for frame in clip]


def cut(path, settings=SETTINGS, **video):
    files = cut_video(Video("a film.mp4", str(path), **video), settings)
    result = json.loads(files.pop("result.json"))
    assert sorted(files) == [f"{clip['name']}.mp4" for clip in result["clips"]]
    return result, files


def decoded(tmp_path, content):
    (tmp_path / "decoded.mp4").write_bytes(content)
    return np.stack(list(read_frames(tmp_path / "decoded.mp4"))).astype(float)


def test_notes_on_a_video_are_kept(tmp_path, recwarn):
    with av.open(tmp_path / "phone.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.color_trc = 18
        for picture in moving(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    result, _ = cut(tmp_path / "phone.mp4")
    (note,) = result["notes"]
    assert note.startswith("a film.mp4: HDR video (HLG), read without tone mapping")
    assert not [warning for warning in recwarn if issubclass(warning.category, UserNote)]


def test_scenes_become_clips_of_the_right_frames(tmp_path):
    film = moving(26) + moving(8, hue=1.0) + moving(50, hue=0.5)
    write_video(tmp_path / "a.mp4", film, 20)
    result, files = cut(tmp_path / "a.mp4", size=7)
    assert [clip.pop("name")[-4:] for clip in result["clips"]] == ["-000", "-001", "-002"]
    same = {"fps": 20.0, "width": 96, "height": 64}
    assert result["clips"] == [
        {"frames": 26, **same, "start": 0.0, "end": 1.3},
        {"frames": 25, **same, "start": 1.7, "end": 2.95},
        {"frames": 25, **same, "start": 2.95, "end": 4.2},
    ]
    assert result["drops"] == [
        {
            "scene": [1.3, 1.7],
            "reason": "too short",
            "detail": "0.40 seconds, at least 0.5 are asked for",
        }
    ]
    assert result["size"] == 7
    for clip, name, begin in zip(result["clips"], sorted(files), (0, 34, 59), strict=True):
        shown = decoded(tmp_path, files[name])
        assert len(shown) == clip["frames"]
        wanted = np.stack([resized(f, 96, 64) for f in film[begin : begin + len(shown)]])
        assert np.abs(shown - wanted).mean() < 4
        assert np.abs(shown[:-1] - wanted[1:]).mean() > 1.2 * np.abs(shown - wanted).mean()


def test_any_frame_of_a_clip_decodes_from_a_keyframe_nearby(tmp_path):
    write_video(tmp_path / "a.mp4", moving(36), 20)
    _, files = cut(tmp_path / "a.mp4")
    (content,) = files.values()
    (tmp_path / "clip.mp4").write_bytes(content)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 10, 20, 30]
        assert all(packet.pts == packet.dts for packet in packets)  # no B-frames


def test_the_same_video_gives_the_same_bytes(tmp_path):
    write_video(tmp_path / "a.mp4", moving(20, 400, 600), 20)
    settings = CutSettings(min_seconds=0.5)
    one = cut_video(Video("a.mp4", str(tmp_path / "a.mp4")), settings)
    assert cut_video(Video("a.mp4", str(tmp_path / "a.mp4")), settings) == one
    # x264 says what it was told: nothing that depends on the machine, such as its cores.
    clip = max(one.values(), key=len)
    assert b" threads=1 " in clip and b"crf=20.0" in clip


@pytest.mark.parametrize("fps, kept", [
    (30, 30.0), (29.97, 30000 / 1001), (50, 25.0), (59.94, 30000 / 1001), (60, 30.0), (90, 30.0),
    (12, 12.0), (30.3, 30.3),
])  # fmt: skip
def test_fast_videos_lose_frames(tmp_path, fps, kept):
    write_video(tmp_path / "a.mp4", moving(60, 40, 60), fps)
    settings = CutSettings(min_seconds=0.1, min_size=32)
    (clip,) = cut(tmp_path / "a.mp4", settings)[0]["clips"]
    assert clip["fps"] == pytest.approx(kept, abs=1e-9)
    assert clip["frames"] == 60 / round(fps / kept)


@pytest.mark.parametrize("size, longer, expected", [
    ((1920, 1080), 1024, (1024, 576)), ((1080, 1920), 1024, (576, 1024)),
    ((640, 360), 1024, (640, 360)), ((641, 361), 1024, (640, 360)), ((1000, 3), 100, (100, 2)),
    ((603, 1081), 1024, (572, 1024)), ((1024, 1024), 1024, (1024, 1024)),
    ((999, 500), 101, (100, 50)),
])  # fmt: skip
def test_clip_sizes(size, longer, expected):
    assert clip_size(*size, longer) == expected


def test_an_odd_edge_is_cut_and_not_blurred():
    frame = np.random.default_rng(0).integers(0, 255, (33, 41, 3)).astype(np.uint8)
    np.testing.assert_array_equal(resized(frame, 40, 32), frame[:32, :40])
    assert resized(frame, 20, 16).shape == (16, 20, 3)


def test_static_and_small_videos_are_dropped(tmp_path):
    write_video(tmp_path / "still.mp4", moving(1) * 40, 20)
    result, _ = cut(tmp_path / "still.mp4")
    assert result["clips"] == []
    assert [(d["reason"], d["scene"]) for d in result["drops"]] == [("static", [0.0, 2.0])]
    write_video(tmp_path / "small.mp4", moving(40, 30, 60), 20)
    result, _ = cut(tmp_path / "small.mp4")
    assert result["drops"] == [
        {"scene": None, "reason": "too small", "detail": "60x30 pixels, at least 32 are asked for"}
    ]


def test_frames_of_a_time_lapse_are_no_clips(tmp_path):
    write_video(tmp_path / "a.mp4", moving(3), 0.02)
    result, _ = cut(tmp_path / "a.mp4", CutSettings(min_size=32))
    assert result["clips"] == []
    assert [drop["reason"] for drop in result["drops"]] == ["static"] * 3


def test_a_directory_of_pictures_is_a_video(tmp_path):
    (tmp_path / "00001").mkdir()
    for index, frame in enumerate(moving(40)):
        Image.fromarray(frame).save(tmp_path / "00001" / f"{index + 1:04d}.png")
    result, files = cut(tmp_path / "00001", fps=30.0)
    (clip,) = result["clips"]
    assert (clip["frames"], clip["fps"]) == (40, 30.0)
    assert np.abs(decoded(tmp_path, *files.values())[7] - resized(moving(8)[7], 96, 64)).mean() < 4


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_what_is_no_video_is_a_drop(tmp_path):
    write_video(tmp_path / "whole.mp4", moving(40), 20)
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "header.mp4").write_bytes(whole[:300])
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "folder.mp4").mkdir()
    audio_only(tmp_path / "sound.mp4")
    write_video(tmp_path / "a.webm", moving(2), 20)
    (tmp_path / "webm.mp4").write_bytes((tmp_path / "a.webm").read_bytes()[:100])
    for name in ("webm", "noise", "empty", "header", "text", "folder", "sound", "gone"):
        result, files = cut(tmp_path / f"{name}.mp4")
        (drop,) = result["drops"]
        assert drop["reason"] == "unreadable" and drop["scene"] is None, name
        assert drop["detail"].startswith("a film.mp4: "), name
        assert str(tmp_path) not in drop["detail"]
        assert result["clips"] == [] and files == {}


def test_names_that_are_not_unicode(tmp_path):
    whole, broken = (tmp_path / os.fsdecode(name) for name in (b"\xe9.mp4", b"\xe8.mp4"))
    write_video(tmp_path / "a.mp4", moving(40), 20)
    os.rename(tmp_path / "a.mp4", whole)
    broken.write_bytes(whole.read_bytes()[:300])
    lost, found = (cut_video(v, SETTINGS) for v in find_videos(tmp_path))
    assert len(found) == 2
    (drop,) = json.loads(lost["result.json"])["drops"]
    assert drop["detail"].startswith(r"\udce8.mp4: ") and drop["detail"].isascii()


def test_a_video_that_breaks_off_gives_what_is_there(tmp_path):
    write_video(tmp_path / "a.mp4", moving(80, 200, 300), 20)
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(content[: len(content) // 2])
    result, _ = cut(tmp_path / "half.mp4")
    assert 10 < sum(clip["frames"] for clip in result["clips"]) < 80


@pytest.mark.parametrize("bad", [
    {"min_seconds": 0.0}, {"min_seconds": 3.0, "max_seconds": 2.0}, {"size": 8}, {"min_size": 0},
    {"max_fps": 0.0}, {"max_seconds": float("inf")},
])  # fmt: skip
def test_impossible_settings(bad):
    with pytest.raises(UserError):
        CutSettings(**bad)


def test_probe_agrees(tmp_path):
    write_video(tmp_path / "a.mp4", moving(40), 20)
    _, files = cut(tmp_path / "a.mp4")
    (tmp_path / "clip.mp4").write_bytes(*files.values())
    info = probe_video(tmp_path / "clip.mp4")
    assert (info.width, info.height, info.fps, info.frames_hint) == (96, 64, 20.0, 40)


def test_trouble_of_the_machine_is_no_drop(tmp_path, monkeypatch):
    """It would be written down as the video's own, and never tried again."""
    write_video(tmp_path / "a.mp4", moving(40), 20)

    def full(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("animate_jax.video.reading.av.open", full)
        with pytest.raises(UserError, match="Too many open files.*try again"):
            cut(tmp_path / "a.mp4")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "scenedetect", None)
        with pytest.raises(UserError, match="PySceneDetect"):
            load_cut(SETTINGS)
        with pytest.raises(UserError, match="PySceneDetect"):
            cut(tmp_path / "a.mp4")
    assert cut(tmp_path / "a.mp4")[0]["drops"] == []
