"""Pictures and videos into RGB arrays: Pillow decodes pictures, PyAV (FFmpeg) decodes videos.

What is returned is what a viewer would show: EXIF and display-matrix rotations are applied,
transparency is laid over white (over black in drawn skeletons), non-square pixels are stretched to
square ones, and ICC profiles of pictures are converted to sRGB.
"""

import errno
import io
import itertools
import os
import re
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image, ImageCms, ImageOps

from animate_jax.errors import OF_THE_MACHINE, UnreadableError, UserError, UserNote
from animate_jax.video.timing import evenly, frame_rate

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
WHITE, BLACK = 255, 0  # what lies below transparent pixels; skeletons are drawn on black
_OF_EITHER = {errno.EIO, errno.ENOMEM}  # FFmpeg says these of damaged files too
_UNSAID = 2  # FFmpeg's number for a colour space that a file does not tell
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders that read transparency too
# Degrees against the clock -> as of `_turn`.
_TURNS = {90: (True, False, True), 180: (False, True, True), 270: (True, True, False)}
_HDR = {16: "PQ", 18: "HLG"}  # FFmpeg's numbers of the transfer curves of high dynamic range
# Colour space of an ICC profile -> modes of pictures that it can describe, the first of them as
# which they are converted.
_PROFILED = {
    "RGB ": ("RGB", "RGBA", "RGBa", "P", "PA", "L", "LA", "La"),
    "GRAY": ("L", "LA", "La"),
    "CMYK": ("CMYK",),
}


@dataclass(frozen=True)
class VideoInfo:
    """Size in pixels as shown (after rotation), frames per second, and the number of frames the
    container declares: 0 when it does not say, and not to be relied on for a damaged file."""

    width: int
    height: int
    fps: float
    frames_hint: int


def image_to_rgb(image: Image.Image, background: int = WHITE) -> np.ndarray:
    """A Pillow picture of any mode -> uint8 (height, width, 3) sRGB, upright, alpha over a grey of
    `background`."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        values = np.nan_to_num(np.asarray(image, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        # Greyscale beyond 8 bits: floats are in [0, 1], or a little above, or in [0, 255];
        # integers fill 8 or 16 bits.
        if image.mode == "F":
            scale = 255.0 if values.max(initial=0) <= 2 else 1.0
        elif image.mode == "I" and values.max(initial=0) <= 255:
            scale = 1.0
        else:
            scale = 255.0 / 65535.0
        grey = np.clip(np.round(values * scale), 0, 255).astype(np.uint8)
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            grey[values == clear] = background
        return np.repeat(grey[..., None], 3, axis=2)
    clear = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    mode, profile = image.mode, image.info.get("icc_profile")
    image = _in_srgb(image.convert("RGBA") if clear else image, mode, profile)
    if clear:
        below = Image.new("RGBA", image.size, (*[background] * 3, 255))
        image = Image.alpha_composite(below, image)
    return np.array(image.convert("RGB"))


def _in_srgb(image, mode, profile):
    """The picture, which was of `mode`, in the colours that its ICC profile means; as it is where
    there is none, or one that is broken or of another kind of pictures."""
    if not profile:
        return image
    try:
        meant = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        modes = _PROFILED.get(meant.profile.xcolor_space, ())
        if mode not in modes:
            return image
        flat = ImageCms.profileToProfile(
            image.convert(modes[0]), meant, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError):
        return image
    if image.mode == "RGBA":
        flat.putalpha(image.getchannel("A"))
    return flat


def read_image(path: str | os.PathLike, background: int = WHITE) -> np.ndarray:
    """The picture file at `path` -> uint8 (height, width, 3) sRGB, see `image_to_rgb`.

    Raises UnreadableError when the file is missing, or no picture that Pillow decodes completely.
    """
    path = Path(path)
    _require_file(path, "picture")
    try:
        with Image.open(path) as image:
            return image_to_rgb(image, background)
    except Image.DecompressionBombError as error:
        raise UnreadableError(f"{path}: more pixels than are read; make it smaller") from error
    except (OSError, ValueError, SyntaxError) as error:
        _require_disk(path, error)
        raise UnreadableError(
            f"{path}: not a readable picture ({error}); save it again as PNG or JPEG"
        ) from error


def probe_video(path: str | os.PathLike, *, default_fps: float = 8.0) -> VideoInfo:
    """Size, rate and declared length of a video file or of a directory of pictures.

    Pictures carry no rate: a directory reports `default_fps`. Raises UserError as read_frames does.
    """
    path = Path(path)
    if path.is_dir():
        pictures = _pictures(path)
        height, width = read_image(pictures[0]).shape[:2]
        return VideoInfo(width, height, float(default_fps), len(pictures))
    first = next(read_frames(path, limit=1))
    with _open(path) as container:
        stream = container.streams.video[0]
        seconds = 0.0
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration:
            seconds = container.duration / av.time_base
        declared = stream.frames
        fps, even = frame_rate(container, stream)
        frames = declared if declared and even else round(seconds * fps)
    return VideoInfo(first.shape[1], first.shape[0], fps, max(int(frames), 1))


def read_frames(
    path: str | os.PathLike,
    *,
    stride: int = 1,
    limit: int | None = None,
    drawn: bool = False,
    from_rgb: bool = False,
) -> Iterator[np.ndarray]:
    """Yields uint8 (height, width, 3) RGB frames 0, stride, 2 * stride, ... and at most `limit`.

    `path` is a video file, a picture, or a directory of pictures in natural order (frame2 before
    frame10), which must all have one size. Of a video whose frames are not evenly spaced in time
    they are those of an even rate, that of `probe_video`. Frames are decoded as they are asked for.
    A file that breaks off yields the frames before the break. from_rgb: a video that does not say
    how it codes colours was written by FFmpeg (BT.601), not by a camera (BT.709 if large). drawn:
    likewise, and what is transparent lies on black, not on white. Raises UserError when the path is
    missing, when it holds no picture stream, or when not a single frame can be decoded.
    """
    path = Path(path)
    if stride < 1:
        raise UserError(f"frame stride {stride} is not possible; use 1 or more")
    if limit is not None and limit < 1:
        raise UserError(f"frame limit {limit} is not possible; use 1 or more")
    from_rgb |= drawn
    background = BLACK if drawn else WHITE
    if path.is_dir():
        frames = _read_directory(path, stride, background)
    elif path.suffix.lower() in PICTURE_SUFFIXES and not _is_animated(path):
        frames = (read_image(one, background) for one in [path])
    else:
        frames = _read_file(path, stride, background, from_rgb)
    try:
        for number, frame in enumerate(frames, 1):
            yield frame
            if number == limit:
                break
    finally:
        frames.close()


def _read_directory(path, stride, background):
    size = None
    for picture in _pictures(path)[::stride]:
        frame = read_image(picture, background)
        if size is not None and frame.shape != size:
            raise UnreadableError(
                f"{picture}: {frame.shape[1]}x{frame.shape[0]} pixels, but the pictures before it"
                f" have {size[1]}x{size[0]}; give all pictures of {path} one size"
            )
        size = frame.shape
        yield frame


def _read_file(path, stride, background, from_rgb):
    _require_file(path, "video")
    decoded, failures = 0, []
    with _open(path) as container:
        if not container.streams.video:
            raise UnreadableError(f"{path}: has no pictures, only other streams; choose a video")
        fps, even = frame_rate(container, container.streams.video[0])
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames = _decoded(path, container, stream, failures)
        if not even:
            note = f"{path}: frames are not evenly spaced in time; read as {fps:g} a second"
            warnings.warn(note, UserNote, stacklevel=2)
            frames = evenly(frames, fps)
        size = turn = None
        for frame in itertools.islice(frames, 0, None, stride):
            try:
                if size is None:
                    size, turn = _square_pixel_size(frame, stream), _turn(frame)
                    _note_hdr(path, frame)
                picture = _upright(_to_rgb(frame, *size, background, from_rgb), *turn)
            except (av.FFmpegError, ValueError) as error:
                failures.append(error)
                continue
            decoded += 1
            yield picture
    if not decoded and _is_animated(path):
        raise UnreadableError(
            f"{path}: an animated picture of a kind that is not read; convert it to .mp4 or .gif"
        )
    if not decoded:
        reason = f" ({failures[0]})" if failures else ""
        raise UnreadableError(
            f"{path}: no frame of this video can be decoded{reason}; it is damaged or incomplete"
        )
    if failures:
        note = f"damaged; parts that cannot be decoded are left out: {len(failures)}"
        warnings.warn(f"{path}: {note} ({failures[0]})", UserNote, stacklevel=2)


def _is_animated(path):
    try:
        with Image.open(path) as image:
            return getattr(image, "is_animated", False)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _decoded(path, container, stream, failures):
    """The frames that can be decoded; what goes wrong in between, or where a file breaks off, is
    added to `failures`."""
    packets = container.demux(stream)
    # FFmpeg's own decoders of VP8 and VP9 leave transparency out.
    known, apart = stream.codec_context, None  # a damaged file may not tell what it is coded as
    other = _WITH_ALPHA.get(known.name) if known else None
    if stream.metadata.get("alpha_mode") == "1" and other in av.codecs_available:
        apart = av.CodecContext.create(other, "r")
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.FFmpegError, ValueError) as error:
            _require_disk(path, error)
            failures.append(error)
            return
        try:
            frames = apart.decode(packet) if apart else packet.decode()
        except (av.FFmpegError, ValueError) as error:
            if not failures:  # it may read the whole file
                _require_disk(path, error)
            failures.append(error)
            continue
        yield from frames


def _open(path):
    # An absolute path and only the file protocol: neither a name such as "http:x" nor a playlist
    # in disguise makes FFmpeg reach for the network.
    try:
        return av.open(str(path.resolve()), options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as error:
        _require_disk(path, error)
        raise UnreadableError(
            f"{path}: not a readable video ({error}); if it plays elsewhere, convert it to H.264 in"
            " an .mp4 file; else it is damaged or incomplete"
        ) from error


def _require_disk(path, error):
    """Raises UserError where an error is not the file's fault."""
    number = getattr(error, "errno", None)
    either = isinstance(error, av.FFmpegError) and number in _OF_EITHER
    if number in OF_THE_MACHINE and not (either and _reads_through(path)):
        raise UserError(f"{path}: cannot be read now ({error}); try again") from error


def _reads_through(path):
    try:
        with open(path, "rb") as file:
            while file.read(2**20):
                pass
    except OSError:
        return False
    return True


def _require_file(path, kind):
    if not path.exists():
        raise UnreadableError(f"{path}: there is no such {kind}; check the path")
    if not path.is_file():
        raise UnreadableError(f"{path}: is not a file; give the path of a {kind}")
    if path.stat().st_size == 0:
        raise UnreadableError(
            f"{path}: the file is empty (0 bytes); copy or download the {kind} again"
        )


def _pictures(directory):
    pictures = [p for p in directory.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES]
    pictures = [p for p in pictures if p.is_file() and not p.name.startswith(".")]
    if not pictures:
        raise UnreadableError(
            f"{directory}: contains no pictures; name a video or a folder of PNG files"
        )
    return sorted(pictures, key=lambda p: natural_key(p.name))


def natural_key(name: str) -> tuple:
    """Sorts names as people count: frame2 before frame10."""
    parts = re.split(r"(\d+)", name.lower())
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts], name


def _square_pixel_size(frame, stream):
    aspect = float(stream.sample_aspect_ratio or 1)
    if not 0.1 < aspect < 10:
        aspect = 1.0
    return max(1, round(frame.width * aspect)), frame.height


def _to_rgb(frame, width, height, background, from_rgb):
    if any(component.is_alpha for component in frame.format.components):
        rgba = frame.to_ndarray(format="rgba", width=width, height=height)
        return image_to_rgb(Image.fromarray(rgba), background)
    # As players do, where a file does not say: FFmpeg takes all for BT.601, and writes them so.
    high = (frame.width >= 1280 or frame.height > 576) and not from_rgb
    matrix = {"src_colorspace": Colorspace.ITU709} if high and not _tells_matrix(frame) else {}
    return frame.to_ndarray(format="rgb24", width=width, height=height, **matrix)


def _tells_matrix(frame):
    return frame.colorspace != _UNSAID or frame.format.is_rgb


def tells_colours(path: str | os.PathLike) -> bool:
    """Whether a video says how it codes colours, see `read_frames`; pictures need not."""
    path = Path(path)
    if path.is_dir() or path.suffix.lower() in PICTURE_SUFFIXES:
        return True
    _require_file(path, "video")
    with _open(path) as container:
        try:
            return all(_tells_matrix(f) for f in itertools.islice(container.decode(video=0), 1))
        except (av.FFmpegError, ValueError, IndexError):
            return True  # reading it will say what is wrong


def _note_hdr(path, frame):
    if curve := _HDR.get(int(frame.color_trc)):
        note = (
            f"{path}: HDR video ({curve}), read without tone mapping: its colours are pale or dark;"
            " where they matter, export it as SDR first"
        )
        warnings.warn(note, UserNote, stacklevel=2)


def _turn(frame):
    """(transpose, mirror x, mirror y) that bring the frame upright.

    The display matrix maps x to a x + c y and y to b x + d y, in 16.16 fixed point.
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV before 19 does not know all there is beside it, such as EXIF
        return _TURNS.get(frame.rotation % 360, (False, False, False))
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    transpose = abs(b) > abs(a)
    return (True, c < 0, b < 0) if transpose else (False, a < 0, d < 0)


def _upright(picture, transpose, mirror_x, mirror_y):
    if transpose:
        picture = picture.transpose(1, 0, 2)
    if mirror_x:
        picture = picture[:, ::-1]
    if mirror_y:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)
