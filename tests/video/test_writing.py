import av
import numpy as np
import pytest
from PIL import Image

from animate_jax.errors import UserError
from animate_jax.video.reading import probe_video, read_frames
from animate_jax.video.writing import check_output, exact_rate, side_by_side, write_video


def moving_clip(frames=12, height=64, width=96):
    """Smooth colours that move: float32 (frames, height, width, 3) in [0, 1]."""
    y, x = np.mgrid[:height, :width]
    rows = [
        [0.5 + 0.5 * np.sin(x / 15 + i / 5), 0.5 + 0.5 * np.cos(y / 12), (x + y) / (height + width)]
        for i in range(frames)
    ]
    return np.stack([np.stack(channels, axis=-1) for channels in rows]).astype(np.float32)


def psnr(a, b):
    return -10 * np.log10(np.mean((np.asarray(a, np.float64) - b) ** 2))


def decoded(path):
    return np.stack(list(read_frames(path))) / np.float32(255)


@pytest.mark.parametrize("suffix, quality", [(".mp4", 36), (".webm", 36), (".gif", 22)])
def test_round_trip_keeps_the_picture(tmp_path, suffix, quality):
    clip = moving_clip()
    write_video(tmp_path / f"clip{suffix}", clip, 25)
    back = decoded(tmp_path / f"clip{suffix}")
    assert back.shape == clip.shape
    assert psnr(back, clip) > quality
    # Frames are in order: each is nearer to its own original than to the neighbours.
    assert psnr(back[5], clip[5]) > psnr(back[5], clip[4]) + 1
    assert psnr(back[5], clip[5]) > psnr(back[5], clip[6]) + 1


def test_names_may_have_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("20:15.mp4", moving_clip(), 25)
    assert len(decoded(tmp_path / "20:15.mp4")) == len(moving_clip())


def test_png_and_npy_are_exact(tmp_path):
    clip = moving_clip(3, 5, 7)
    bytes_ = np.round(clip * 255).astype(np.uint8)
    write_video(tmp_path / "frames", clip, 8)
    assert sorted(p.name for p in (tmp_path / "frames").iterdir()) == [
        f"{i:06d}.png" for i in range(3)
    ]
    np.testing.assert_array_equal(np.stack(list(read_frames(tmp_path / "frames"))), bytes_)
    write_video(tmp_path / "clip.npy", clip, 8)
    stored = np.load(tmp_path / "clip.npy")
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, clip)
    write_video(f"{tmp_path}/dotted.name/", bytes_, 8)
    np.testing.assert_array_equal(np.stack(list(read_frames(tmp_path / "dotted.name"))), bytes_)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("fps", [29.97, 12.5, 59.94, 23.976, 8, 60])
def test_frame_rates_are_stored(tmp_path, suffix, fps):
    write_video(tmp_path / f"clip{suffix}", moving_clip(24, 32, 32), fps)
    info = probe_video(tmp_path / f"clip{suffix}")
    assert abs(info.fps - float(exact_rate(fps))) < 2e-5 * fps
    assert info.frames_hint == 24


def test_rates_become_the_fractions_that_are_meant():
    assert [str(exact_rate(f)) for f in (29.97, 59.94, 23.976, 30, 12.5, 10 / 3, 7.3)] == [
        *("30000/1001", "60000/1001", "24000/1001", "30", "25/2", "10/3", "73/10")
    ]
    for bad in (0, -5, float("nan"), float("inf")):
        with pytest.raises(UserError, match="frames per second"):
            exact_rate(bad)


def test_gif_durations_add_up(tmp_path):
    for fps, frames, expected in ((8, 16, 2000), (12.5, 16, 1280), (29.97, 30, 1000)):
        write_video(tmp_path / "clip.gif", moving_clip(frames, 32, 32), fps, overwrite=True)
        durations = []
        with Image.open(tmp_path / "clip.gif") as picture:
            assert picture.n_frames == frames and picture.info["loop"] == 0
            for i in range(frames):
                picture.seek(i)
                durations.append(picture.info["duration"])
        assert abs(sum(durations) - expected) <= 10
        assert abs(probe_video(tmp_path / "clip.gif").fps - fps) < 0.1


def test_fast_gif_leaves_frames_out(tmp_path):
    write_video(tmp_path / "fast.gif", moving_clip(60, 32, 32), 60)
    with Image.open(tmp_path / "fast.gif") as picture:
        durations = []
        for i in range(picture.n_frames):
            picture.seek(i)
            durations.append(picture.info["duration"])
    assert min(durations) >= 20 and sum(durations) == 1000


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_odd_sizes_are_padded_with_the_edge(tmp_path, suffix):
    clip = moving_clip(4, 63, 95)
    write_video(tmp_path / f"odd{suffix}", clip, 8)
    back = decoded(tmp_path / f"odd{suffix}")
    assert back.shape == (4, 64, 96, 3)
    assert psnr(back[:, :63, :95], clip) > 36
    assert np.abs(back[:, 63, :95] - clip[:, 62]).mean() < 0.03


def test_mp4_plays_everywhere_and_says_its_colours(tmp_path):
    red = np.full((2, 64, 64, 3), (200, 30, 40), np.uint8)
    write_video(tmp_path / "red.mp4", red, 8)
    with av.open(str(tmp_path / "red.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        frame = next(container.decode(stream))
        assert frame.colorspace == 1 and frame.color_primaries == 1  # BT.709
    content = (tmp_path / "red.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # starts while it is downloaded
    assert np.abs(decoded(tmp_path / "red.mp4") * 255 - red).max() < 4


def test_bytes_floats_and_generators_give_the_same_file(tmp_path):
    clip = np.round(moving_clip(6) * 255).astype(np.uint8)
    write_video(tmp_path / "a.mp4", (frame for frame in clip), 8)
    first = (tmp_path / "a.mp4").read_bytes()
    for _ in range(10):
        write_video(tmp_path / "b.mp4", clip.astype(np.float32) / 255, 8, overwrite=True)
        assert (tmp_path / "b.mp4").read_bytes() == first


def test_existing_targets_are_refused_before_any_work(tmp_path):
    def never():
        raise AssertionError("a frame was computed")
        yield

    for name in ("clip.mp4", "clip.gif", "clip.npy"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(UserError, match="already exists"):
            write_video(tmp_path / name, never(), 8)
        check_output(tmp_path / name, overwrite=True)
        assert (tmp_path / name).read_text() == "precious"
    write_video(tmp_path / "frames", moving_clip(3, 8, 8), 8)
    with pytest.raises(UserError, match="already holds frames"):
        write_video(tmp_path / "frames", never(), 8)
    write_video(tmp_path / "frames", moving_clip(2, 8, 8), 8, overwrite=True)
    assert len(list((tmp_path / "frames").iterdir())) == 2
    (tmp_path / "frames" / "diary.txt").write_text("precious")
    with pytest.raises(UserError, match="other files"):
        write_video(tmp_path / "frames", never(), 8, overwrite=True)
    with pytest.raises(UserError, match="cannot write .avi"):
        check_output(tmp_path / "clip.avi")
    with pytest.raises(UserError, match="has a suffix and no name"):
        check_output(tmp_path / ".mp4")
    with pytest.raises(UserError, match="longer than 255 bytes"):
        check_output(tmp_path / f"{'踊' * 84}.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        check_output(tmp_path / "folder.mp4", overwrite=True)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif", "clip.npy", "clip"])
def test_a_failure_leaves_nothing_behind(tmp_path, name):
    def breaks():
        yield from moving_clip(3, 16, 16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "new" / name, breaks(), 8)
    assert list((tmp_path / "new").iterdir()) == []
    write_video(tmp_path / "new" / name, moving_clip(2, 16, 16), 8)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [name]
    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "new" / name, breaks(), 8, overwrite=True)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [name]


def test_bad_frames_are_refused(tmp_path):
    good = moving_clip(2, 16, 16)
    poisoned = good.copy()
    poisoned[1, 3, 3, 0] = np.nan
    for frames, words in (
        ([], "no frames"),
        ([good[0], good[1][:8]], "frame 1 is 16x8"),
        (poisoned, "frame 1 contains"),
        (good[..., :1], "shape"),
        ((good * 255).astype(np.int32), "int32"),
        (good * 255, r"outside \[0, 1\]"),
        (good - 0.5, r"outside \[0, 1\]"),
    ):
        with pytest.raises(UserError, match=words):
            write_video(tmp_path / "bad.mp4", frames, 8)
    assert list(tmp_path.iterdir()) == []


def test_side_by_side():
    clip = moving_clip(3, 8, 10)
    picture = np.full((8, 4, 3), 255, np.uint8)
    joined = side_by_side(picture, clip, clip[:1])
    assert joined.shape == (3, 8, 24, 3) and joined.dtype == np.float32
    assert np.all(joined[:, :, :4] == 1)
    np.testing.assert_array_equal(joined[:, :, 4:14], clip)
    np.testing.assert_array_equal(joined[2, :, 14:], clip[0])
    rounded = side_by_side(clip * 1.0005, picture)  # what bfloat16 may make of 1
    assert rounded.max() == 1
    for wrong in (clip * 255, clip - 1, (clip * 255).astype(int), clip > 0.5, clip * np.nan):
        with pytest.raises(UserError, match="clip 1"):
            side_by_side(picture, wrong)
    with pytest.raises(UserError, match="equal frame counts"):
        side_by_side(clip, clip[:2])
    with pytest.raises(UserError, match="heights"):
        side_by_side(clip, clip[:, :4])
