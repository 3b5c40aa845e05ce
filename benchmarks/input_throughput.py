"""What a training sample costs beside decoding its frames and nothing else.

    python benchmarks/input_throughput.py [RECORDS ...] [--size 512] [--samples 40]

Without records, puppets are drawn into a temporary directory. One thread makes the samples, so the
figures are per core, in CPU time of that thread: other work on the machine hardly disturbs them.

"Decoding" is the least that plain PyAV needs to have the same frames as RGB arrays: open the clip,
seek to the keyframe before the first frame that the sample takes, decode from there to the last
one and convert the taken frames at the clip's own size; then the same for the reference unless it
is one of them. A sample is that with keypoints, crop, mirroring and scaling to the size asked for.
"""

import argparse
import io
import tempfile
import time

import av
import numpy as np
from tqdm import tqdm

from animate_jax.data.config import DataConfig, SetConfig
from animate_jax.data.records import open_records
from animate_jax.data.sample import choose_frames, make_sample
from data_prep.puppets.generate import PuppetSet, generate
from data_prep.records import write_records

KINDS = {
    "picture": dict(frames=1),
    "24 frames, every one": dict(frames=24, stride=1),
    "24 frames, every 2nd": dict(frames=24, stride=2),
    "24 frames, every 4th": dict(frames=24, stride=4),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("records", nargs="*", help="as `python -m data_prep records` writes")
    parser.add_argument("--size", type=int, default=512, help="of the samples, in pixels (512)")
    parser.add_argument("--samples", type=int, default=40, help="of each kind (40)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for path in options.records or [_puppets(directory)]:
            records = open_records(path, "train")
            records = [records[index] for index in range(min(len(records), 8))]
            sizes = sorted({f"{record['width']}x{record['height']}" for record in records})
            lengths = sorted({len(record["keypoints"]) for record in records})
            print(f"{path}: clips of {', '.join(sizes)} pixels, {lengths} frames")
            _measure(records, options.size, options.samples)


def _puppets(directory):
    puppets = PuppetSet(clips=8, width=512, height=512, seed=0, frames=96)
    generate(puppets, f"{directory}/puppets")
    write_records(f"{directory}/puppets", f"{directory}/records", validation=0, progress=False)
    return f"{directory}/records"


def _measure(records, size, samples):
    times = [_frame_times(record["clip"]) for record in records]
    for kind, settings in KINDS.items():
        config = DataConfig(sets=(SetConfig("benchmark"),), height=size, width=size, **settings)
        spent = np.zeros((2, samples))
        # Taking turns, so that the machine's moods meet both alike.
        for number in tqdm(range(-2, samples), desc=kind, leave=False):
            which = number % len(records)
            record = records[which]
            rng = np.random.default_rng(abs(number))
            reference, taken = choose_frames(np.ones(len(times[which]), bool), config, rng)
            begin = time.thread_time()
            _decode(record, times[which], reference, taken)
            between = time.thread_time()
            make_sample(record, config, np.random.default_rng(abs(number)))
            spent[:, max(number, 0)] = between - begin, time.thread_time() - between
        decoding, sample = np.median(spent, axis=1) * 1e3
        ratio = np.median(spent[1] / spent[0])
        print(
            f"  {kind:22} decoding {decoding:6.1f} ms, sample {sample:6.1f} ms"
            f" ({1e3 / sample:5.1f} a second): {ratio:.2f} times decoding"
        )


def _frame_times(clip):
    with av.open(io.BytesIO(clip)) as container:
        return sorted(p.pts for p in container.demux(video=0) if p.pts is not None)


def _decode(record, times, reference, taken):
    wanted = {times[number] for number in taken}
    with av.open(io.BytesIO(record["clip"])) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        pictures = _decode_range(container, wanted)
        if times[reference] not in wanted:
            pictures += _decode_range(container, {times[reference]})
    return pictures


def _decode_range(container, wanted):
    stream = container.streams.video[0]
    container.seek(min(wanted), stream=stream)
    pictures, last = [], max(wanted)
    for frame in container.decode(stream):
        if frame.pts in wanted:
            pictures.append(frame.reformat(format="rgb24", threads=1).to_ndarray())
        if frame.pts >= last:
            break
    return pictures


if __name__ == "__main__":
    main()
