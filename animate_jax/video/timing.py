"""When a video's frames are shown: phones and screen recorders do not space them evenly."""

import contextlib
from collections.abc import Iterable, Iterator

import av
import numpy as np

FALLBACK_FPS = 30.0  # for a video file that declares no usable rate
FASTEST = 120.0  # frames a second that an uneven video is read at, at most
STRAY = 1.0  # frames by which times may leave an even rate
LONGEST_STILL = 10.0  # seconds that one frame is shown, at most


def frame_rate(container, stream) -> tuple[float, bool]:
    """Frames per second, and whether frames are spaced evenly; reads a file's packets if in doubt.

    Of an uneven video it is the rate of most of its frames.
    """
    if container.format.name == "gif" and stream.frames and stream.duration:
        # Durations of GIF frames vary to meet a rate on average; FFmpeg looks at the first few.
        return float(stream.frames / (stream.duration * stream.time_base)), True
    average, base = (rate and float(rate) for rate in (stream.average_rate, stream.base_rate))
    usable = bool(average) and 0.1 <= average <= 300  # 1000 says milliseconds, not frames
    if usable and base and abs(average / base - 1) < 0.002:
        return average, True
    times = _shown(container, stream)
    if len(times) < 2:
        return average if usable else FALLBACK_FPS, True
    mean = (len(times) - 1) / (times[-1] - times[0])
    stray = np.abs(times - np.linspace(times[0], times[-1], len(times))).max()
    if stray * mean <= STRAY:
        return round(float(mean), 3), True
    return round(min(FASTEST, float(1 / np.median(np.diff(times)))), 3), False


def _shown(container, stream):
    """Seconds at which frames are shown, each once, in order."""
    times = set()
    with contextlib.suppress(av.FFmpegError, ValueError):  # where it breaks off, decoding says so
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None:
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
