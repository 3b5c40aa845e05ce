"""Single frames out of an encoded clip, without decoding the rest of it.

A clip is short and lies in memory, so all its packets are read; they tell which frame is which.
Only the groups of pictures that hold wanted frames are decoded, each no further than its last
wanted frame, and frames that nothing else refers to only where they are wanted.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator

import av

from animate_jax.errors import UserError

# Opening must not decode: FFmpeg would decode the first frame to learn its pixel format.
_OPEN_OPTIONS = {"skip_frame": "all", "probesize": "32"}


def decode_frames(clip: bytes, wanted: Collection[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields (number, frame) for each wanted frame once, ascending; frames count from 0 as shown.

    clip: an .mp4 file. Runs in one thread: those who want more decode several clips at a time.
    Raises UserError where the clip cannot be decoded or has no such frame.
    """
    try:
        with av.open(io.BytesIO(clip), format="mp4", options=_OPEN_OPTIONS) as container:
            if not container.streams.video:
                raise UserError("the clip has no pictures")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            packets = [packet for packet in container.demux(stream) if packet.pts is not None]
            times = sorted(packet.pts for packet in packets if not packet.is_discard)
            if not times or not 0 <= min(wanted) <= max(wanted) < len(times):
                raise UserError(f"the clip has {len(times)} frames, none with number {max(wanted)}")
            numbers = {times[number]: number for number in wanted}
            yield from _decode(stream.codec_context, packets, numbers)
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"the clip cannot be decoded ({error})") from error


def _decode(codec, packets, numbers):
    """Frames whose times are keys of `numbers`."""
    missing = set(numbers)
    for run in _runs(packets, numbers):
        for packet in (*run, None):  # None: the decoder gives what it holds back
            skipped = packet is not None and packet.pts not in numbers
            codec.skip_frame = "NONREF" if skipped else "DEFAULT"
            for frame in codec.decode(packet):
                if frame.pts in missing:
                    missing.remove(frame.pts)
                    yield numbers[frame.pts], frame
        codec.flush_buffers()
    if missing:
        raise UserError(f"frame {numbers[min(missing)]} of the clip cannot be decoded")


def _runs(packets, numbers):
    """The packets to decode, as lists that each start at a keyframe."""
    keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
    ranges = []
    for group, first in enumerate(keys):
        following = keys[group + 1] if group + 1 < len(keys) else len(packets)
        places = [p for p in range(first, following) if packets[p].pts in numbers]
        if not places:
            continue
        if group and min(packets[p].pts for p in places) < packets[first].pts:
            first = keys[group - 1]  # an open group: frames shown before its keyframe need more
        if ranges and first <= ranges[-1][1]:
            first = ranges.pop()[0]
        ranges.append((first, places[-1] + 1))
    return [packets[first:last] for first, last in ranges]
