"""When a video's frames are shown: phones and screen recorders do not space them evenly."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator

import av
import numpy as np

FALLBACK_FPS = 30.0  # for a video file that declares no usable rate
FASTEST = 120.0  # frames a second that an uneven video is read at, at most
MOST_PLAUSIBLE = 1000.0  # frames a second; what is faster has damaged times
STRAY = 0.03  # seconds by which the times of an even rate may leave it where a frame is held
HELD = 1.8  # times as long as usual
LONGEST_STILL = 10.0  # seconds that one frame is shown, at most

LOOKED_AT = 2000  # frames, where nothing but the times could speak against a rate
_VP8_SHOWN = 0x10  # of a frame's first byte; others are there for frames to refer to
_RATE_IN_HEAD = "matroska,webm", "flv"  # formats that tell a rate whatever their frames' times are


def frame_rate(container, stream) -> tuple[float, bool]:
    """Frames per second, and whether frames are spaced evenly; reads a file's packets if in doubt.

    Of an uneven video it is the rate of most of its frames. How long the last frame is shown counts
    in a GIF only, and not where it is held.
    """
    average, base = (rate and float(rate) for rate in (stream.average_rate, stream.base_rate))
    usable = bool(average) and 0.1 <= average <= 300  # 1000 says milliseconds, not frames
    gif = container.format.name == "gif"  # its rates are those of the first few frames
    agreeing = not gif and usable and bool(base) and abs(average / base - 1) < 0.002
    if agreeing and container.format.name not in _RATE_IN_HEAD:
        return average, True
    times = _shown(container, stream, LOOKED_AT if agreeing else None)
    if gif and stream.duration:
        end = float(stream.duration * stream.time_base)
        if rate := _even_rate(np.append(times, end)):
            return rate, True
    if rate := _even_rate(times):
        return average if agreeing and abs(rate / average - 1) < 0.02 else rate, True
    if len(times) < 2:
        return average if usable else FALLBACK_FPS, True
    intervals = np.diff(times)
    usual = intervals[intervals < 1.5 * np.median(intervals)]  # not held, and none left out
    return _plausible(min(FASTEST, 1 / usual.mean())), False


def _even_rate(times):
    """The rate that evenly spaced times have; None for others, and where there are too few."""
    if len(times) < 2:
        return None
    rate = (len(times) - 1) / (times[-1] - times[0])
    stray = np.abs(times - np.linspace(times[0], times[-1], len(times))).max()
    intervals = np.diff(times)
    held = intervals.max() > HELD * np.median(intervals)
    # Others may jitter by a frame, as those of webcams do.
    return _plausible(rate) if stray <= (min(STRAY, 1 / rate) if held else 1 / rate) else None


def _plausible(rate):
    return round(float(np.clip(rate, 1 / LONGEST_STILL, MOST_PLAUSIBLE)), 3)


def _shown(container, stream, most=None):
    """Seconds at which frames are shown, each once, in order; of the first `most` of a file."""
    times, vp8 = set(), stream.codec_context is not None and stream.codec_context.name == "vp8"
    with contextlib.suppress(av.FFmpegError, ValueError):  # where it breaks off, decoding says so
        for packet in itertools.islice(container.demux(stream), most):
            if not packet.size or packet.pts is None:
                continue
            if vp8 and not bytes(packet)[0] & _VP8_SHOWN:
                continue
            times.add(float(packet.pts * stream.time_base))
    return np.array(sorted(times))


def evenly(frames: Iterable[av.VideoFrame], fps: float) -> Iterator[av.VideoFrame]:
    """Each frame as often as it is on show at an even rate: again, or left out."""
    start, given, last = 0.0, 0, None
    for frame in frames:
        if last is None:
            start = frame.time or 0.0
        elif frame.time is not None:
            start += max(0.0, frame.time - start - given / fps - LONGEST_STILL)
            until = round((frame.time - start) * fps)
            while given < until:
                yield last
                given += 1
        last = frame
    if last is not None:
        yield last
