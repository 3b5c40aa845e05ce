"""The subcommands that make a training set of videos: `build`, its steps `clips` and `poses`."""

from __future__ import annotations

import argparse
from pathlib import Path

from animate_jax.commands.run import Help


def add_commands(commands, common) -> None:
    """Adds the subcommands to the parsers of `python -m data_prep`."""
    summary = "videos to a training set: clips, poses, records and a report"
    parser = _command(commands, common, "build", _build, summary)
    _add_videos(parser)
    _add_cutting(parser)
    _add_posing(parser)
    group = parser.add_argument_group("records")
    group.add_argument("--validation", type=float, default=0.1, help="share of the videos")
    group.add_argument("--seed", type=int, default=0, help="of which videos validate")
    _add_running(parser)
    summary = "the first step of build: videos to clips"
    parser = _command(commands, common, "clips", _clips, summary)
    _add_videos(parser)
    _add_cutting(parser)
    _add_running(parser)
    summary = "the second step of build: keypoints of the clips"
    parser = _command(commands, common, "poses", _poses, summary)
    parser.add_argument("out", metavar="DIR", help="where the step clips put its clips")
    _add_posing(parser)
    _add_running(parser)


def _command(commands, common, name, function, summary):
    options = dict(help=summary, description=summary, parents=[common], formatter_class=Help)
    parser = commands.add_parser(name, **options)
    parser.set_defaults(run=function)
    return parser


def _add_videos(parser):
    add = parser.add_argument
    add("--videos", required=True, metavar="DIR", help="the collection, local or gs://")
    add("--out", required=True, metavar="DIR", help="a new directory, or one to continue")
    add(
        "--layout",
        default="folder",
        choices=["folder", "meta-json", "ubc-fashion", "tiktok"],
        help="folder: all videos below DIR; meta-json: DIR is the JSON file of the PyTorch"
        " reproductions; ubc-fashion: train/, test/; tiktok: 00001/images/",
    )
    add("--licence", default="unknown", help="of the videos; kept in every record")
    add("--overwrite", action="store_true", help="remove an earlier build in --out")


def _add_cutting(parser):
    add = parser.add_argument_group("clips").add_argument
    add("--max-seconds", type=float, default=10.0, help="longer scenes are cut evenly")
    add("--min-seconds", type=float, default=2.0, help="shorter scenes are dropped")
    add("--min-size", type=int, default=256, help="shorter side of a video, in pixels")
    add("--size", type=int, default=1024, help="longer side of the clips at most, in pixels")
    add("--max-fps", type=float, default=30.0, help="of faster videos every kth frame is kept")


def _add_posing(parser):
    add = parser.add_argument_group("poses").add_argument
    add("--backend", default="blazepose", choices=["blazepose", "dwpose"], help="networks")
    add("--detector", metavar="FILE", help="the backend's network that finds people")
    add("--pose-network", metavar="FILE", help="the one that finds their points")
    add("--no-smooth", dest="smooth", action="store_false", default=True, help="keep the jitter")
    add("--min-person", type=float, default=0.8, help="share of frames with the person")
    add("--max-second", type=float, default=0.1, help="share of frames with a second person")
    add("--min-keypoints", type=float, default=0.5, help="share of confident body points")


def _add_running(parser):
    add = parser.add_argument_group("running").add_argument
    add("--workers", type=int, metavar="N", help="processes; by default one for each core")
    add("--runner", default="local", choices=["local", "beam"], help="beam: Apache Beam")
    add("--work", metavar="DIR", help="of working files; by default OUT/work; may be gs://")
    add(
        "--beam-args",
        nargs=argparse.REMAINDER,
        default=[],
        help="options of the pipeline, such as --runner=DataflowRunner; must come last",
    )


def _build(options):
    from data_prep.build import make_clips, make_poses
    from data_prep.clips import load_cut
    from data_prep.poses import load_pose
    from data_prep.records import check_share
    from data_prep.shards import record_writers

    running, posing = _running(options), _posing(options)
    check_share(options.validation)
    # Packages and networks that are missing should be known before the long work.
    load_cut(_cutting(options)), load_pose(posing), record_writers()
    videos, work = _open(options)
    make_clips(videos, work, _cutting(options), running, options.licence)
    make_poses(work, posing, running)
    _assemble(options.out, work, poses=True)
    from data_prep.records import write_records
    from data_prep.report import write_report

    out = Path(options.out)
    records = dict(validation=options.validation, seed=options.seed, overwrite=True)
    written = write_records(out, out / "records", **records)
    counts = f"{written.train} train, {written.validation} validation"
    print(f"wrote {out / 'records'}: {counts}; dropped: {len(written.drops)} near duplicates")
    print(f"wrote {write_report(out)}")


def _clips(options):
    from data_prep.build import make_clips
    from data_prep.clips import load_cut

    running, cutting = _running(options), _cutting(options)
    load_cut(cutting)
    videos, work = _open(options)
    make_clips(videos, work, cutting, running, options.licence)
    _assemble(options.out, work, poses=False)


def _poses(options):
    from data_prep.build import make_poses

    work = options.work or str(Path(options.out) / "work")
    make_poses(work, _posing(options), _running(options))
    _assemble(options.out, work, poses=True)


def _open(options):
    from data_prep.build import open_build
    from data_prep.layouts import find_videos

    videos = find_videos(options.videos, options.layout, without=options.out)
    return videos, open_build(options.out, options.work, options.overwrite)


def _assemble(out, work, *, poses):
    from data_prep.build import assemble

    clips, drops, noted = assemble(out, work, poses=poses)
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(drops.items()))
    print(f"wrote {out}: {clips} clips; dropped: {dropped or 'nothing'}")
    if noted:
        print(f"{noted} videos could not be read as they are, see {Path(out) / 'notes.jsonl'}")


def _cutting(options):
    from data_prep.clips import CutSettings

    names = "max_seconds", "min_seconds", "min_size", "size", "max_fps"
    return CutSettings(**{name: getattr(options, name) for name in names})


def _posing(options):
    from data_prep.poses import PoseSettings

    names = "backend", "smooth", "min_person", "max_second", "min_keypoints", "detector"
    names = *names, "pose_network"
    return PoseSettings(**{name: getattr(options, name) for name in names})


def _running(options):
    from data_prep.runners import Running

    return Running(options.runner, options.workers, tuple(options.beam_args))
