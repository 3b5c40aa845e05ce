"""`python -m data_prep`: one subcommand for each way to training data."""

from __future__ import annotations

import argparse
import sys

from animate_jax.commands.run import run
from data_prep.commands import add_commands


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run(_parser().parse_args(arguments), "data_prep")


def _parser():
    parser = argparse.ArgumentParser(prog="data_prep", description="Training data.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_puppets(commands, common)
    _add_records(commands, common)
    _add_report(commands, common)
    add_commands(commands, common)
    return parser


def _add_puppets(commands, common):
    summary = "draw clips of people with exact keypoints, free of anyone's rights"
    parser = commands.add_parser("puppets", help=summary, description=summary, parents=[common])
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="a new directory")
    add("--clips", required=True, type=int, metavar="N")
    add("--size", required=True, type=int, metavar="PIXELS", help="width, and height without it")
    add("--height", type=int, metavar="PIXELS")
    add("--seed", required=True, type=int, help="the same seed gives the same files")
    add("--frames", type=int, default=48, help="per clip (48)")
    add("--fps", type=float, default=15.0, help="of random motions (15)")
    add(
        "--pairs",
        type=int,
        nargs="?",
        const=2,
        default=1,
        metavar="K",
        help="each motion by K characters (2) before the same camera",
    )
    add("--motion", nargs="+", default=[], metavar="F.npz", help="from `animate-jax pose`")
    add("--overwrite", action="store_true", help="replace an earlier set")
    parser.set_defaults(run=_puppets)


def _add_records(commands, common):
    summary = "clip directories to records for training, split by source, without near duplicates"
    parser = commands.add_parser("records", help=summary, description=summary, parents=[common])
    add = parser.add_argument
    add("--clips", required=True, nargs="+", action="extend", metavar="DIR", help="may be several")
    add("--out", required=True, metavar="DIR", help="a new directory")
    add("--validation", type=float, default=0.1, help="share of the sources (0.1)")
    add("--seed", type=int, default=0, help="decides which sources validate (0)")
    add("--overwrite", action="store_true", help="replace earlier records")
    parser.set_defaults(run=_records)


def _add_report(commands, common):
    summary = "a page with numbers and pictures of a clip directory or a build"
    parser = commands.add_parser("report", help=summary, description=summary, parents=[common])
    parser.add_argument("directory", metavar="DIR")
    parser.set_defaults(run=_report)


def _records(options):
    from data_prep.records import write_records

    written = write_records(
        options.clips,
        options.out,
        validation=options.validation,
        seed=options.seed,
        overwrite=options.overwrite,
    )
    print(
        f"wrote {options.out}: {written.train} clips for training, {written.validation} for"
        f" validation; {len(written.drops)} near duplicates left out"
    )


def _report(options):
    from data_prep.report import write_report

    print(f"wrote {write_report(options.directory)}")


def _puppets(options):
    from data_prep.puppets.generate import PuppetSet, generate

    puppets = PuppetSet(
        clips=options.clips,
        width=options.size,
        height=options.height or options.size,
        seed=options.seed,
        frames=options.frames,
        fps=options.fps,
        group=options.pairs,
        motions=options.motion,
    )
    generate(puppets, options.out, overwrite=options.overwrite)
    print(f"wrote {options.out}: {puppets.clips} clips of {puppets.width}x{puppets.height} pixels")


if __name__ == "__main__":
    sys.exit(main())
