import errno
import io
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from PIL import Image, ImageCms

from animate_jax.errors import UnreadableError, UserError, UserNote
from animate_jax.video.reading import image_to_rgb, probe_video, read_frames, read_image
from animate_jax.video.writing import SHORT_GROUPS, write_video

QUADRANTS = np.zeros((32, 64, 3), np.uint8)
QUADRANTS[:16, :32], QUADRANTS[:16, 32:] = (220, 30, 30), (30, 220, 30)
QUADRANTS[16:, :32], QUADRANTS[16:, 32:] = (30, 30, 220), (240, 240, 240)


def encode(path, pictures, *, rate=25, rotation=0, hflip=False, aspect=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation or hflip:
            stream.set_display_rotation(rotation, hflip=hflip)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def encode_at(path, pictures, milliseconds):
    """Each picture with its own time."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "10", "bf": "2"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        for picture, time in zip(pictures, milliseconds, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def counting_clip(frames=10, height=32, width=48):
    return np.stack([np.full((height, width, 3), 20 * i, np.uint8) for i in range(frames)])


def grey_levels(frames):
    return [round(float(frame.mean()) / 20) for frame in frames]


def test_image_modes_become_rgb():
    grey16 = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert image_to_rgb(grey16)[0, :, 0].tolist() == [0, 128, 255]
    unit = Image.fromarray(np.array([[0, 0.5, 1]], np.float32))
    assert image_to_rgb(unit)[0, :, 1].tolist() == [0, 128, 255]
    half_red = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert image_to_rgb(half_red).tolist() == [[[255, 127, 127]]]
    assert image_to_rgb(Image.new("LA", (1, 1), (0, 0))).tolist() == [[[255, 255, 255]]]
    assert image_to_rgb(Image.new("1", (2, 1), 1)).tolist() == [[[255] * 3] * 2]
    assert image_to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).tolist() == [[[255, 0, 0]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    assert image_to_rgb(palette).tolist() == [[[10, 20, 30], [200, 0, 0]]]
    palette.info["transparency"] = 1
    assert image_to_rgb(palette).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_sixteen_bit_and_palette_files(tmp_path):
    Image.fromarray(np.full((2, 3), 40000, np.uint16)).save(tmp_path / "grey.png")
    assert np.all(read_image(tmp_path / "grey.png") == round(40000 / 257))
    Image.fromarray(QUADRANTS).quantize(4).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), QUADRANTS)


@pytest.mark.parametrize(
    "orientation, upright",
    [(2, lambda a: a[:, ::-1]), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1))],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(QUADRANTS).save(tmp_path / "phone.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "phone.png"), upright(QUADRANTS))


def profile_bytes(*changes):
    """The sRGB profile with other bytes in place of some."""
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in changes:
        assert old in content
        content = content.replace(old, new)
    return content


def test_colour_profiles_are_applied(tmp_path):
    swapped = profile_bytes((b"rXYZ", b"xXYZ"), (b"gXYZ", b"rXYZ"), (b"xXYZ", b"gXYZ"))
    gamma = (0x26666).to_bytes(4, "big"), (0x18000).to_bytes(4, "big")  # 2.4 becomes 1.5
    light = profile_bytes((b"RGB XYZ ", b"GRAYXYZ "), (b"rTRC", b"kTRC"), gamma)

    def read(picture, profile):
        suffix = "tif" if picture.mode == "CMYK" else "png"
        picture.save(tmp_path / f"a.{suffix}", icc_profile=profile)
        return read_image(tmp_path / f"a.{suffix}")[0, 0].astype(int)

    colour = Image.new("RGB", (2, 2), (200, 60, 40))
    assert np.abs(read(colour, swapped) - (60, 200, 40)).max() <= 2
    assert np.abs(read(colour.quantize(2), swapped) - (60, 200, 40)).max() <= 2
    colour.putalpha(0)
    assert read(colour, swapped).tolist() == [255] * 3
    colour.putalpha(128)
    assert np.abs(read(colour, swapped) - (157, 227, 147)).max() <= 2
    grey = Image.new("L", (2, 2), 100)
    assert np.abs(read(grey, profile_bytes()) - 100).max() <= 1
    lighter = read(grey, light)
    assert lighter.min() > 120
    grey.putalpha(255)
    assert read(grey, light).tolist() == lighter.tolist()
    grey = grey.convert("L")
    ink = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    for picture, unfit in ((ink, swapped), (colour.convert("RGB"), light), (grey, b"broken")):
        assert read(picture, unfit).tolist() == image_to_rgb(picture)[0, 0].tolist()


def test_unreadable_pictures_are_named(tmp_path):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:4000])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    for name, words in {
        "cut.png": "not a readable picture",
        "text.png": "not a readable picture",
        "empty.png": "0 bytes",
        "missing.png": "no such picture",
        ".": "not a file",
    }.items():
        with pytest.raises(UserError, match=words):
            read_image(tmp_path / name)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotated_phone_video_is_shown_upright(tmp_path, turns):
    encode(tmp_path / "phone.mp4", [QUADRANTS] * 3, rotation=90 * turns)
    frames = list(read_frames(tmp_path / "phone.mp4"))
    expected = np.rot90(QUADRANTS, turns)
    assert len(frames) == 3 and frames[0].shape == expected.shape
    assert np.abs(frames[1].astype(int) - expected)[4:-4, 4:-4].mean() < 4
    info = probe_video(tmp_path / "phone.mp4")
    assert (info.width, info.height) == (expected.shape[1], expected.shape[0])


def test_mirrored_video_is_unmirrored(tmp_path):
    encode(tmp_path / "mirror.mp4", [QUADRANTS], hflip=True)
    (frame,) = read_frames(tmp_path / "mirror.mp4")
    assert np.abs(frame.astype(int) - QUADRANTS[:, ::-1]).mean() < 6


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    encode(tmp_path / "wide.mp4", [QUADRANTS], aspect=Fraction(3, 2))
    (frame,) = read_frames(tmp_path / "wide.mp4")
    assert frame.shape == (32, 96, 3)


def test_stride_and_limit(tmp_path):
    write_video(tmp_path / "count.mp4", counting_clip(), 25)
    path = tmp_path / "count.mp4"
    assert grey_levels(read_frames(path)) == list(range(10))
    assert grey_levels(read_frames(path, stride=3)) == [0, 3, 6, 9]
    assert grey_levels(read_frames(path, stride=4, limit=2)) == [0, 4]
    with pytest.raises(UserError, match="stride"):
        next(read_frames(path, stride=0))
    with pytest.raises(UserError, match="limit"):
        next(read_frames(path, limit=0))


@pytest.mark.parametrize("name", ["one.mp4", "one.webm", "one.gif", "one"])
def test_one_frame_is_a_video(tmp_path, name):
    write_video(tmp_path / name, counting_clip(1), 10)
    assert len(list(read_frames(tmp_path / name))) == 1
    assert probe_video(tmp_path / name).frames_hint == 1


def test_matroska_is_read(tmp_path):
    encode(tmp_path / "clip.mkv", list(counting_clip(6)), rate=Fraction(24000, 1001))
    assert grey_levels(read_frames(tmp_path / "clip.mkv")) == list(range(6))
    assert abs(probe_video(tmp_path / "clip.mkv").fps - 23.976) < 0.01


def test_directory_of_pictures_is_in_natural_order(tmp_path):
    for i in (10, 9, 100, 1):
        Image.new("RGB", (6, 4), (i, i, i)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("ignored")
    assert [int(frame[0, 0, 0]) for frame in read_frames(tmp_path)] == [1, 9, 10, 100]
    info = probe_video(tmp_path, default_fps=12)
    assert (info.width, info.height, info.fps, info.frames_hint) == (6, 4, 12.0, 4)
    assert probe_video(tmp_path).fps == 8.0
    Image.new("RGB", (7, 4)).save(tmp_path / "frame200.png")
    with pytest.raises(UserError, match="frame200.png: 7x4"):
        list(read_frames(tmp_path))


def test_directory_without_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match="contains no pictures"):
        list(read_frames(tmp_path))


def test_drawn_skeletons_lie_on_black_where_they_are_transparent(tmp_path):
    picture = np.zeros((32, 48, 4), np.uint8)
    picture[10:20, 10:20] = 255, 85, 0, 255
    Image.fromarray(picture).save(tmp_path / "000.png")
    for drawn, below in ((True, 0), (False, 255)):
        (frame,) = read_frames(tmp_path, drawn=drawn)
        assert (frame[0, 0] == below).all() and (frame[15, 15] == (255, 85, 0)).all()


def test_transparent_gif_is_laid_over_white(tmp_path):
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([0, 0, 0, 200, 0, 0])
    picture.paste(1, (0, 0, 4, 8))
    picture.save(tmp_path / "logo.gif", transparency=0)
    (frame,) = read_frames(tmp_path / "logo.gif")
    assert frame[0, 0].tolist() == [200, 0, 0] and frame[0, 7].tolist() == [255, 255, 255]


def test_transparent_webm_is_laid_over_white(tmp_path):
    with av.open(tmp_path / "sticker.webm", "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuva420p"
        for number in range(5):
            rgba = np.zeros((48, 64, 4), np.uint8)
            rgba[10:30, 10 + 4 * number : 50] = 255, 0, 0, 255
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="yuva420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = np.stack(list(read_frames(tmp_path / "sticker.webm"))).astype(int)
    assert len(frames) == 5
    assert np.abs(frames[:, :8] - 255).max() <= 2  # white
    assert np.abs(frames[:, 15:25, 30:45] - [255, 0, 0]).max() <= 6
    assert frames[4, 20, 14].min() > 250 and frames[0, 20, 14, 1] < 60


def test_truncated_video_yields_what_decodes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8)
    write_video(tmp_path / "whole.mp4", noise, 25)
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    decoded = len(list(read_frames(tmp_path / "cut.mp4")))
    assert 5 <= decoded <= 11
    index_only = content.index(b"mdat") + 8
    (tmp_path / "nothing.mp4").write_bytes(content[:index_only])
    with pytest.raises(UserError, match="nothing.mp4: no frame"):
        list(read_frames(tmp_path / "nothing.mp4"))


def test_a_damaged_part_costs_no_more_than_itself(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), np.uint8)
    write_video(tmp_path / "whole.mp4", noise, 25, options=SHORT_GROUPS)
    with av.open(str(tmp_path / "whole.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        place = packets[25].pos
    content = bytearray((tmp_path / "whole.mp4").read_bytes())
    content[place : place + 4] = b"\xff\xff\xff\xff"  # the length of what follows
    (tmp_path / "damaged.mp4").write_bytes(content)
    with pytest.warns(UserNote, match="damaged.mp4: damaged; .* left out: 1 "):
        frames = list(read_frames(tmp_path / "damaged.mp4"))
    assert len(frames) == 59
    whole = list(read_frames(tmp_path / "whole.mp4"))
    np.testing.assert_array_equal(frames[:25], whole[:25])
    np.testing.assert_array_equal(frames[-30:], whole[-30:])


@pytest.mark.parametrize(
    "height, width, matrix, drawn",
    [
        (720, 1280, Colorspace.ITU709, False),
        (240, 320, Colorspace.ITU601, False),
        (768, 512, Colorspace.ITU601, True),  # a pose tool's
    ],
)
def test_colours_of_a_video_that_does_not_tell_its_matrix(tmp_path, height, width, matrix, drawn):
    colour = np.full((height, width, 3), (200, 60, 40), np.uint8)
    frame = av.VideoFrame.from_ndarray(colour, "rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=matrix)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        planes = av.VideoFrame.from_ndarray(frame.to_ndarray(), "yuv420p")  # without a tag
        container.mux(stream.encode(planes))
        container.mux(stream.encode())
    (read,) = read_frames(tmp_path / "a.mp4", drawn=drawn)
    assert np.abs(read.reshape(-1, 3).mean(0) - (200, 60, 40)).max() < 3


def test_high_dynamic_range_is_noted(tmp_path):
    with av.open(str(tmp_path / "phone.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p10le"
        stream.codec_context.color_trc = 18
        picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), "rgb24")
        container.mux(stream.encode(picture.reformat(format="yuv420p10le")))
        container.mux(stream.encode())
    with pytest.warns(UserNote, match=r"phone.mp4: HDR video \(HLG\)"):
        assert len(list(read_frames(tmp_path / "phone.mp4"))) == 1


def test_files_that_are_no_videos_are_named(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 50)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://192.0.2.1/clip.ts\n")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    for name, words in {
        "empty.mp4": "0 bytes",
        "text.mp4": "not a readable video",
        "list.mp4": "list.mp4",
        "sound.mp4": "has no pictures",
        "missing.mp4": "no such video",
    }.items():
        with pytest.raises(UserError, match=words):
            next(read_frames(tmp_path / name))
        with pytest.raises(UserError, match=words):
            probe_video(tmp_path / name)


def test_damage_is_told_from_trouble_of_the_disk(tmp_path, monkeypatch):
    """FFmpeg says "Input/output error" of both."""
    write_video(tmp_path / "whole.webm", counting_clip(), 25)
    content = (tmp_path / "whole.webm").read_bytes()
    (tmp_path / "cut.webm").write_bytes(content[:100])
    with pytest.raises(UnreadableError, match="cut.webm: not a readable video.*Input/output"):
        next(read_frames(tmp_path / "cut.webm"))

    def gone(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("animate_jax.video.reading.open", gone, raising=False)
    with pytest.raises(UserError, match="cut.webm: cannot be read now.*try again"):
        next(read_frames(tmp_path / "cut.webm"))


def test_animated_pictures_are_to_be_converted(tmp_path):
    first, *rest = (Image.fromarray(frame) for frame in counting_clip(3))
    first.save(tmp_path / "a.webp", save_all=True, append_images=rest)
    if int(av.__version__.split(".")[0]) >= 19:  # it reads them
        assert grey_levels(read_frames(tmp_path / "a.webp")) == [0, 1, 2]
        return
    with pytest.raises(UnreadableError, match="a.webp: an animated picture.*convert it to .mp4"):
        next(read_frames(tmp_path / "a.webp"))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("name", ["photo.jpg", "photo.mjpg"])  # a picture, and as FFmpeg reads it
def test_photos_are_videos_of_one_frame(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = Image.fromarray(QUADRANTS)
    photo.save(tmp_path / name, format="jpeg", exif=exif, quality=95, subsampling=0)
    (frame,) = read_frames(tmp_path / name)
    expected = read_image(tmp_path / name)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 3
    info = probe_video(tmp_path / name)
    assert (info.height, info.width) == frame.shape[:2]


@pytest.mark.parametrize("name", ["a.webm", "a.mkv", "a.flv"])
def test_a_rate_in_the_head_does_not_hide_uneven_frames(tmp_path, name):
    """25 a second, it says, but one frame stays for 0.4 s."""
    times = [*range(0, 200, 40), *range(560, 760, 40)]
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(counting_clip(), times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(tmp_path / name)) as container:
        assert container.streams.video[0].average_rate == 25
    with pytest.warns(UserNote, match="not evenly spaced"):
        shown = grey_levels(read_frames(tmp_path / name))
    assert shown == [0, 1, 2, 3, *[4] * 10, 5, 6, 7, 8, 9]


def test_hidden_frames_of_vp8_are_not_counted(tmp_path):
    """Two-pass encoders add frames that others refer to and nobody sees, a moment later."""
    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=30)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        pictures = np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), np.uint8)
        packets = []
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = round(1000 * number / 30), Fraction(1, 1000)
            packets += stream.encode(frame)
        for number, packet in enumerate([*packets, *stream.encode()]):
            data, time, base = bytearray(bytes(packet)), packet.pts, packet.time_base
            container.mux(packet)
            if number % 8 == 7 and not packet.is_keyframe:
                data[0] &= ~0x10
                hidden = av.Packet(bytes(data))
                hidden.stream, hidden.time_base = stream, base
                hidden.pts = hidden.dts = time + round(Fraction(1, 1000) / base)
                container.mux(hidden)
    with av.open(str(tmp_path / "a.webm")) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        assert len(packets) == 45
    assert probe_video(tmp_path / "a.webm").fps == 30
    assert len(list(read_frames(tmp_path / "a.webm"))) == 40


@pytest.mark.parametrize("name", ["a.webm", "a.mkv", "a.flv"])
def test_an_exact_rate_in_the_head_stays_exact(tmp_path, name):
    with av.open(str(tmp_path / name), "w") as container:
        codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
        stream = container.add_stream(codec, rate=Fraction(24000, 1001))
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for picture in counting_clip():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    assert probe_video(tmp_path / name).fps == pytest.approx(24000 / 1001, abs=1e-3)
    assert grey_levels(read_frames(tmp_path / name)) == [*range(10)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_uneven_frames_are_read_as_they_are_shown(tmp_path, suffix):
    """Five frames at 25 a second, one that stays for 0.2 s, four more; before, all lasted alike."""
    path = tmp_path / f"phone.{suffix}"
    times = [0, 40, 80, 120, 160, 360, 400, 440, 480, 520]
    encode_at(path, counting_clip(), times)
    with pytest.warns(UserNote, match="not evenly spaced in time; read as 25 a second"):
        shown = grey_levels(read_frames(path))
    assert shown == [0, 1, 2, 3, 4, 4, 4, 4, 4, 5, 6, 7, 8, 9]
    assert probe_video(path).fps == 25 and abs(probe_video(path).frames_hint - 14) <= 1
    assert grey_levels(read_frames(path, stride=4)) == [0, 4, 4, 8]


@pytest.mark.parametrize(
    "durations, fps, shown",
    [
        ([50] * 9 + [3000], 20, list(range(10))),
        ([50] * 4 + [300] + [50] * 5, 20, [0, 1, 2, 3] + [4] * 6 + [5, 6, 7, 8, 9]),
        ([70, 60, 70] * 3, 15, list(range(9))),
        ([400, 600], 2, [0, 1]),
        ([30, 30, 40] * 3 + [2000], 30, list(range(10))),
        ([500], 2, [0]),
    ],
)
def test_a_held_frame_does_not_slow_a_gif_down(tmp_path, durations, fps, shown):
    first, *rest = (Image.fromarray(frame) for frame in counting_clip(len(durations)))
    path = tmp_path / "a.gif"
    first.save(path, save_all=True, append_images=rest, duration=durations)
    assert probe_video(path).fps == pytest.approx(fps, abs=0.01)
    assert grey_levels(read_frames(path)) == shown


def test_a_held_frame_does_not_slow_a_short_video_down(tmp_path):
    path = tmp_path / "a.mkv"
    encode_at(path, counting_clip(6), [0, 100, 200, 400, 500, 600])
    assert probe_video(path).fps == 10
    assert grey_levels(read_frames(path)) == [0, 1, 2, 2, 3, 4, 5]


@pytest.mark.parametrize("times, fps", [([0, 150_000, 300_000], 0.1), ([0, 1], 1000)])
def test_rates_are_possible(tmp_path, times, fps):
    path = tmp_path / "lapse.mkv"
    encode_at(path, counting_clip(len(times)), times)
    assert probe_video(path).fps == fps
    assert grey_levels(read_frames(path)) == list(range(len(times)))


def test_a_rate_that_is_not_declared_is_that_of_the_frames(tmp_path):
    """Browsers write such: times in whole milliseconds and no rate. Small jitter is left alone."""
    path = tmp_path / "browser.mkv"
    encode_at(path, counting_clip(12), [round(1000 * i / 30) + i % 2 for i in range(12)])
    assert grey_levels(read_frames(path)) == list(range(12))
    assert abs(probe_video(path).fps - 30) < 0.2


def test_webcams_may_jitter(tmp_path):
    """15 a second, each up to 40 ms early or late: every frame is taken once."""
    late = np.random.default_rng(0).normal(0, 12, 60).clip(-40, 40)
    times = np.maximum(0, np.round(np.arange(60) * 1000 / 15 + late)).astype(int)
    encode_at(tmp_path / "webcam.mkv", np.tile(counting_clip(12), (5, 1, 1, 1)), times.tolist())
    assert abs(probe_video(tmp_path / "webcam.mkv").fps - 15) < 0.2
    assert len(grey_levels(read_frames(tmp_path / "webcam.mkv"))) == 60


def test_frames_that_are_missing_are_filled(tmp_path):
    """Of thirty a second, in whole milliseconds: the rate stays, the one before is shown on."""
    times = [round(1000 * i / 30) for i in range(40) if i not in (5, 6, 7, 8)]
    encode_at(tmp_path / "a.mkv", np.tile(counting_clip(12), (3, 1, 1, 1)), times)
    with pytest.warns(UserNote, match="not evenly spaced"):
        shown = list(read_frames(tmp_path / "a.mkv"))
    assert abs(probe_video(tmp_path / "a.mkv").fps - 30) < 0.05
    assert len(shown) == 40 and all(np.array_equal(shown[4], shown[i]) for i in range(5, 9))


def test_a_long_pause_is_cut(tmp_path):
    """A broken clock must not make a video endless."""
    path = tmp_path / "pause.mkv"
    times = [0, 40, 80, 120, 160, 3_600_000, 3_600_040, 3_600_080, 3_600_120, 3_600_160]
    encode_at(path, counting_clip(), times)
    assert len(grey_levels(read_frames(path))) == 4 + 10 * 25 + 5


def test_rare_greyscale_is_not_black(tmp_path):
    over = Image.fromarray(np.array([[0, 0.5, 1.2, np.nan]], np.float32))
    assert image_to_rgb(over)[0, :, 0].tolist() == [0, 128, 255, 0]
    see_through = Image.fromarray(np.array([[0, 32896]], np.uint16))
    see_through.save(tmp_path / "grey.png", transparency=0)
    assert read_image(tmp_path / "grey.png")[0, :, 0].tolist() == [255, 128]
