"""The `evaluate` command: generate what the truth is known of, or take two folders, and measure."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from animate_jax.errors import UnreadableError, UserError, UserNote
from animate_jax.evaluation.baselines import copy_reference, warp_reference
from animate_jax.evaluation.clips import Entry, clip_frames, clip_masks, open_clips
from animate_jax.evaluation.folders import LengthsDiffer, match_folders, read_pair
from animate_jax.evaluation.i3d import LEAST_FRAMES
from animate_jax.evaluation.networks import NETWORKS, find_files, load_lpips, load_network
from animate_jax.evaluation.pairs import (
    Pair,
    cross_pairs,
    file_name,
    own_pairs,
    read_pairs,
    video_pairs,
)
from animate_jax.evaluation.protocol import SETTINGS, read_protocol
from animate_jax.evaluation.report import make_report, table, write_report
from animate_jax.evaluation.score import (
    Networks,
    Windows,
    clip_features,
    clip_scores,
    frame_scores,
    left_out,
    set_distances,
)
from animate_jax.files import check_file, check_kept, check_place
from animate_jax.inference.pipeline import (
    AnimateAnyonePipeline,
    default_window,
    fitted_size,
)
from animate_jax.inference.windows import default_overlap
from animate_jax.pose.render import draw_skeletons
from animate_jax.pose.retarget import retarget
from animate_jax.video.writing import side_by_side, write_video
from animate_jax.weights.model_directory import read_config

BASELINE_MULTIPLE = 8  # of which sizes are, as those of most models
PICTURES_FPS = 8.0
# Of a video and its truth: what tells it, both clips, the character's pixels, and what is shown.
# Nothing but the first, with the reason as "left_out", where they do not fit.
Case = tuple[dict, np.ndarray, np.ndarray, np.ndarray | None, list[np.ndarray]] | tuple[dict]
# (reference picture, its keypoints, keypoints of the frames, seed, truth) to frames, uint8. Only
# what measures the autoencoder looks at the truth.
Generator = Callable[[np.ndarray, np.ndarray, np.ndarray, int, np.ndarray], np.ndarray]


def evaluate(options) -> None:
    """Runs `animate-jax evaluate`; options as its parser gives them.

    What can be refused is refused before the long work begins.
    """
    _check_mode(options)
    protocol = read_protocol(options.protocol) if options.protocol else {}
    sides = "width", "height"
    told = [name for name in SETTINGS if getattr(options, name) is not None]
    for name in SETTINGS:
        # One side that is asked for leaves the other to the clips' proportions.
        if name not in told and not (name in sides and set(sides) & set(told)):
            setattr(options, name, protocol.get("settings", {}).get(name))
    options.stride = options.stride or 1
    usual = Windows()
    windows = Windows(options.window_frames or usual.frames, options.window_stride or usual.stride)
    networks = _load_networks(options)
    if "i3d" in networks.features and windows.frames < LEAST_FRAMES:
        raise UserError(f"--window-frames is {windows.frames}; FVD needs at least {LEAST_FRAMES}")
    if options.predicted:
        settings, count, cases = _folders(options)
    else:
        settings, count, cases = _pairs(options, protocol)
    settings |= {"protocol": options.protocol, "windows": asdict(windows)}
    report = _measure(
        options, settings, tqdm(cases, "clips", count, unit="clip"), networks, windows
    )
    write_report(options.out, report)
    print(table(report))
    print(f"wrote {options.out}")


def _check_mode(options):
    out = Path(options.out)
    if out.suffix != ".json":
        raise UserError(f"{out}: reports are JSON; end the name in .json")
    check_file(out, options.overwrite)
    read = [options.pairs_file, options.data, options.predicted, options.truth, options.model]
    check_kept([out], read)
    if options.pictures:
        check_place(options.pictures)
        check_kept([options.pictures], [*read, out])
        if Path(options.pictures).is_file():
            raise UserError(f"{options.pictures}: is a file; --pictures names a directory")
        if Path(options.pictures).exists() and not options.overwrite:
            raise UserError(f"{options.pictures}: exists; choose another or add --overwrite")
    if bool(options.predicted) != bool(options.truth):
        raise UserError("--predicted and --truth go together")
    ways = [bool(way) for way in (options.model, options.baseline, options.predicted)]
    if sum(ways) != 1:
        raise UserError("give one of --model, --baseline, and --predicted with --truth")
    if bool(options.data) == bool(options.predicted):
        raise UserError("--model and --baseline need --data, --predicted takes none")
    if options.autoencoder_only and not options.model:
        raise UserError("--autoencoder-only needs --model, whose autoencoder is measured")
    if options.cross and options.pairs_file:
        raise UserError("--cross makes pairs of its own; leave --pairs-file out")
    if options.pairs_file and (options.frames or options.stride):
        raise UserError("a --pairs-file says itself which frames; leave --frames and --stride out")
    if options.predicted and (options.pairs_file or options.cross or options.split):
        raise UserError(
            "--predicted takes what the folders hold; leave --pairs-file, --cross and --split out"
        )
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed is {options.seed}; give one from 0 to {2**32 - 1}")


def _load_networks(options) -> Networks:
    files = find_files(options.networks) if options.networks else {}
    given = {name: getattr(options, name) for name in NETWORKS}
    given = {name: path or next(iter(files.get(name, [])), None) for name, path in given.items()}
    return Networks(
        # Of a directory, what is whole; of what is named, all.
        load_lpips(options.lpips or files.get("lpips", []), halves=not options.lpips),
        {name: load_network(name, path) for name, path in given.items() if path},
    )


def _measure(options, settings, cases: Iterator[Case], networks, windows) -> dict:
    """The report of all cases; memory holds one clip at a time, and features."""
    rows, unfit, features, sizes = [], [], ([], []), set()
    for told, *clips in cases:
        if not clips:
            unfit.append(told)
            continue
        predicted, truth, mask, shown = clips
        frames = frame_scores(predicted, truth, mask, networks)
        row = {**told, "frames": len(truth), **clip_scores(frames, predicted, truth)}
        if options.frames_detail:
            row["per_frame"] = frames
        rows.append(row)
        for clip, found in zip((predicted, truth), features):
            found.append(clip_features(clip, networks, windows))
        sizes.add(truth.shape[2:0:-1])
        if options.pictures:
            name = file_name(told["name"])
            joined = side_by_side(*shown, predicted, truth)
            place = Path(options.pictures) / f"{name}.mp4"
            write_video(place, joined, PICTURES_FPS, overwrite=options.overwrite)
    if not rows:
        raise UserError(unfit[0]["left_out"])
    distances = set_distances(*features, networks)
    settings = {**settings, "sizes": sorted(sizes)}
    reasons = left_out(networks, rows, windows, distances)
    return make_report(settings, [*rows, *unfit], distances, reasons)


def _folders(options) -> tuple[dict, int, Iterator[Case]]:
    size = (options.width, options.height) if options.width and options.height else None
    if (options.width or options.height) and not size:
        raise UserError("give --width and --height, or neither")
    videos = match_folders(options.predicted, options.truth)
    reading = dict(size=size, frames=options.frames, stride=options.stride)

    def cases():
        for name, *paths in videos[: options.pairs]:
            try:
                clips = read_pair(*paths, **reading)
            except (UnreadableError, LengthsDiffer) as error:
                # No reason to lose what was measured before.
                warnings.warn(f"{name} is left out: {error}", UserNote, stacklevel=2)
                yield ({"name": name, "left_out": str(error)},)
            else:
                yield {"name": name}, *clips, None, []

    settings = {"predicted": str(options.predicted), "truth": str(options.truth), **reading}
    return settings, len(videos[: options.pairs]), cases()


def _pairs(options, protocol) -> tuple[dict, int, Iterator[Case]]:
    split = protocol.get("split", {})
    options.split = options.split or split.get("records_split") or "validation"
    clips, missing = _named(open_clips(options.data, options.split), split.get("ids"), options)
    if options.pairs_file:
        pairs = read_pairs(options.pairs_file, clips)
    else:
        make = cross_pairs if options.cross else video_pairs if protocol else own_pairs
        pairs = make(clips, options.frames, options.stride)
    pairs = pairs[: options.pairs]
    config = read_config(options.model) if options.model else None
    size = _size(options, clips[pairs[0].truth], config)
    generate, how = _generator(options, config, size)

    def cases():
        for number, pair in enumerate(pairs):
            # Noise differs between clips, and a clip's does not depend on how many there are.
            seed = (options.seed + number) % 2**32
            yield _case(pair, clips, size, generate, seed, options)

    names = "data", "split", "cross", "pairs_file", "seed", "retarget"
    settings = {name: getattr(options, name) for name in names} | how
    settings["pairs"] = len(pairs)
    if protocol:
        settings["videos"] = len({clips[pair.truth].source for pair in pairs})
        settings["missing_videos"] = missing
    return settings, len(pairs), cases()


def _named(clips: dict[str, Entry], ids, options) -> tuple[dict[str, Entry], list[str]]:
    """The clips of a protocol's test videos, by the last part of their sources, and which of these
    videos are not there."""
    if not ids:
        return clips, []
    kept = {n: clip for n, clip in clips.items() if Path(clip.source).stem in ids}
    if not kept:
        raise UserError(
            f"{options.data}: {options.split} holds none of the videos of the protocol"
            f" {options.protocol}, {ids[0]} to {ids[-1]}; try --split all"
        )
    missing = sorted(set(ids) - {Path(clip.source).stem for clip in kept.values()})
    if missing:
        warnings.warn(
            f"{options.data}: of the videos of the protocol {options.protocol}, {options.split}"
            f" lacks {', '.join(missing)}; drops.jsonl of the build may say why",
            UserNote,
            stacklevel=3,
        )
    return kept, missing


def _size(options, clip: Entry, config) -> tuple[int, int]:
    """(width, height) as asked for, one of them or both; else at the model's resolution. What is
    not asked for is by the first clip's proportions."""
    multiple = config.autoencoder.downscale if config else BASELINE_MULTIPLE
    own = clip.width, clip.height
    shorter = min(*own, config.resolution) if config else min(own)
    return fitted_size(options.width, options.height, own, shorter, multiple)


def _generator(options, config, size) -> tuple[Generator, dict]:
    """What makes frames, and what a report says of it."""
    if options.baseline == "copy":
        return lambda picture, _, points, *__: copy_reference(picture, len(points)), {
            "baseline": "copy"
        }
    if options.baseline == "warp":
        return lambda picture, own, points, *_: warp_reference(picture, own, points), {
            "baseline": "warp"
        }
    print(f"loading {options.model}")
    pipeline = AnimateAnyonePipeline.from_pretrained(options.model, options.dtype)
    told = {"model": str(options.model), "dtype": pipeline.model.dtype.name}
    told["resolution"] = config.resolution
    if options.autoencoder_only:
        return lambda *given: _to_bytes(pipeline.reconstruct(given[-1])), told | {
            "autoencoder_only": True
        }
    sampling = {
        "steps": options.steps,
        "guidance": config.guidance if options.guidance is None else options.guidance,
        "window": (window := options.window or default_window(config)),
        "overlap": default_overlap(window) if options.overlap is None else options.overlap,
    }
    generate = functools.partial(
        pipeline, width=size[0], height=size[1], progress=False, **sampling
    )

    def frames(picture, own, points, seed, _):
        return _to_bytes(generate(picture, points, reference_keypoints=own, seed=seed))

    return frames, told | sampling


def _to_bytes(video: np.ndarray) -> np.ndarray:
    return np.round(video * 255).astype(np.uint8)


def _case(pair: Pair, clips, size, generate: Generator, seed: int, options) -> Case:
    records = {name: clips[name].load() for name in {pair.reference, pair.driving, pair.truth}}
    (reference,), (own,) = clip_frames(records[pair.reference], [pair.reference_frame], size)
    truth, points = clip_frames(records[pair.truth], pair.numbers, size)
    mask = clip_masks(records[pair.truth], pair.numbers, size)
    row = {**asdict(pair), "seed": seed}
    if pair.driving != pair.truth:
        # Another body's skeleton; the truth's own is where it should be already.
        # What the reference shows of the truth's motion, the driving clip shows at the same time.
        there = pair.reference_frame < clips[pair.driving].frames
        anchored = there and pair.reference == pair.truth
        numbers = [pair.reference_frame] * anchored + [*pair.numbers]
        points = clip_frames(records[pair.driving], numbers, size)[1]
        sizes = dict.fromkeys(("driving_size", "target_size", "reference_size"), size)
        try:
            points = retarget(points, own, options.retarget, **sizes, anchored=anchored)
        except UserError as error:  # no reason to lose what was made before
            points = retarget(points, None, "none", **sizes)
            note = f"{pair.name}: {error}; its skeletons are left as they are"
            warnings.warn(note, UserNote, stacklevel=2)
            row["retarget"] = "none"
        points = points[anchored:]
    predicted = generate(reference, own, points, seed, truth)
    shown = []
    if options.pictures:
        shown = [reference, np.asarray(draw_skeletons(points, size[1], size[0]))]
    return row, predicted, truth, mask, shown
