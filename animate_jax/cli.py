"""`animate-jax`: one subcommand for each thing a user does.

What a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import sys

from animate_jax.commands.run import Help, run
from animate_jax.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = make_parser()
    arguments, overrides = list(sys.argv[1:] if arguments is None else arguments), []
    if any(argument.startswith("--config.") for argument in arguments):
        from animate_jax.training.config import split_overrides

        try:
            overrides, arguments = split_overrides(arguments)
        except UserError as error:
            parser.error(str(error))
    options = parser.parse_args(arguments)
    if overrides and not hasattr(options, "config"):
        parser.error("this command takes no --config values")
    options.overrides = overrides
    return run(options, "animate-jax")


def make_parser():
    parser = argparse.ArgumentParser(
        prog="animate-jax", description="Animate Anyone in JAX: a picture and a motion to a video."
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, function, summary, group=commands):
        added = group.add_parser(
            name,
            help=summary,
            description=summary,
            parents=[common],
            formatter_class=Help,
        )
        added.set_defaults(run=function)
        return added

    _add_animate(command)
    _add_pose(command)
    _add_convert(command, commands)
    _add_export(command, commands)
    _add_train(command)
    _add_plan(command)
    _add_data_preview(command)
    _add_evaluate(command)
    new = command("new", _new, "a model with random weights, for tests and training from scratch")
    new.add_argument("preset", choices=["sd15", "tiny"])
    new.add_argument("out", metavar="OUT")
    new.add_argument("--seed", type=int, default=0, help="of the weights")
    _add_overwrite(new)
    copy = command("copy", _copy, "a model directory again, in another place or precision")
    copy.add_argument("model", metavar="MODEL", help="a model directory or a training's workdir")
    copy.add_argument("out", metavar="OUT")
    copy.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="of every weight; else as they are"
    )
    _add_overwrite(copy)
    inspect = command("inspect", _inspect, "say what a model directory holds")
    inspect.add_argument("model", metavar="MODEL")
    fetch = commands.add_parser("fetch", help="get files that some commands need")
    fetch = fetch.add_subparsers(required=True, metavar="WHAT")
    summary = "the networks of --backend blazepose"
    models = command("pose-models", _fetch_pose_models, summary, fetch)
    models.add_argument("--source", metavar="WHEEL|DIR", help="instead of the package index")
    return parser


def _add_overwrite(parser):
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def _add_compiled(parser):
    summary = "of compiled programs, from `plan --serialize` or earlier runs; new ones are added"
    parser.add_argument("--compiled", metavar="DIR", help=summary)


def _add_pose_backend(parser):
    group = parser.add_argument_group("finding poses")
    group.add_argument(
        "--backend", default="blazepose", choices=["blazepose", "dwpose"], help="networks"
    )
    person = "0: most seen (default), 1: next"
    group.add_argument("--person", type=_at_least_0, metavar="N", help=person)
    group.add_argument(
        "--no-smooth", dest="smooth", action="store_false", default=True, help="keep the jitter"
    )
    group.add_argument("--detector", metavar="FILE", help="the backend's network that finds people")
    group.add_argument("--pose-network", metavar="FILE", help="the one that finds their points")


def _add_animate(command):
    parser = command("animate", _animate, "make a picture perform a motion")
    add = parser.add_argument
    add("--model", metavar="DIR", help="a model directory or a finished training's, local or gs://;"
        " by default the small one that comes along")  # fmt: skip
    add("--reference", required=True, metavar="IMAGE", help="the character")
    motion = parser.add_mutually_exclusive_group(required=True)
    motion.add_argument("--driving", metavar="VIDEO", help="a video of someone moving")
    motion.add_argument("--keypoints", metavar="NPZ", help="from `animate-jax pose`")
    motion.add_argument("--pose-video", metavar="VIDEO", help="skeletons already drawn")
    add("--pose-fit", default="keep", choices=["keep", "stretch"], help="drawn skeletons of"
        " other proportions than the reference's: fitted on black, or stretched")  # fmt: skip
    add("--out", required=True, nargs="+", help=".mp4, .webm, .gif, .npy, or a directory for PNG"
        " frames; several, too")  # fmt: skip
    add("--width", type=_positive, help="in pixels; by default from the model and the picture")
    add("--height", type=_positive, help="likewise; both are rounded down to multiples of what"
        " the autoencoder shrinks by, usually 8")  # fmt: skip
    add("--steps", type=_positive, default=20, help="denoising steps")
    add("--guidance", type=float, help="strength of the reference; 1 is none; else the model's")
    add("--seed", type=int, default=0, help="of the initial noise")
    add("--frames", type=_positive, help="at most so many frames")
    add("--stride", type=_positive, default=1, help="take every so manyth frame of the motion")
    add("--fps", type=float, help="of the result; by default the motion's, over the stride")
    add("--sampler", default="ddim", choices=["ddim", "dpm++"], help="how steps are taken")
    add("--eta", type=float, default=0.0, help="noise that DDIM adds in each step, 0 to 1")
    add("--retarget", choices=["none", "scale", "bones"], help="to the reference's body: by default"
        " scale, and none for --pose-video")  # fmt: skip
    add("--reference-keypoints", metavar="FILE", help="the reference's pose, where none is found:"
        " .npz, or .json written by hand")  # fmt: skip
    add("--window", type=_positive, help="frames that are denoised together; else 24, or the most")
    add("--overlap", type=int, help="frames that neighbouring windows share; else 4")
    add("--windows", default="tapered", choices=["tapered", "moore"], help="how windows join")
    add("--initial-noise", metavar="NPY", help="(frames, height, width, channels) of latents")
    add("--dtype", choices=["float32", "bfloat16"], help="by default float32 on CPU, else bfloat16")
    summary = "reference | skeleton | result, in place of the result or in a file of its own"
    add("--side-by-side", nargs="?", const=True, metavar="FILE", help=summary)
    _add_compiled(parser)
    _add_pose_backend(parser)
    _add_overwrite(parser)


def _at_least_0(text):
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 on")
    return int(text)


def _positive(text):
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return number


def _animate(options):
    from animate_jax.commands.animate import animate

    animate(options)


def _add_pose(command):
    parser = command("pose", _pose, "find the keypoints of one person in a video")
    parser.add_argument("video", metavar="VIDEO")
    parser.add_argument("out", metavar="OUT.npz")
    parser.add_argument("--frames", type=_positive, help="at most so many frames")
    parser.add_argument("--stride", type=_positive, default=1, help="take every so manyth frame")
    parser.add_argument(
        "--fps", type=float, help="of the video, before the stride; pictures do not say theirs"
    )
    _add_pose_backend(parser)
    _add_overwrite(parser)


def _pose(options):
    from animate_jax.commands.motion import pose

    pose(options)


def _add_convert(command, commands):
    convert = commands.add_parser("convert", help="PyTorch weights to a model directory")
    convert = convert.add_subparsers(required=True, metavar="LAYOUT")
    place = "a path, or hf:owner/name[@revision][:folder]"

    def layout(name, run, summary):
        parser = command(name, run, summary, convert)
        parser.add_argument("source", metavar="SOURCE", help=place)
        parser.add_argument("out", metavar="OUT")
        parser.add_argument("--vae", metavar="P", help=f"another autoencoder: {place}")
        parser.add_argument("--image-encoder", metavar="P", help=f"CLIP vision tower: {place}")
        parser.add_argument(
            "--dtype", choices=["float32", "float16", "bfloat16"], help="by default the source's"
        )
        _add_overwrite(parser)
        return parser

    moore = layout("moore", _convert_moore, "the released Animate Anyone reproduction")
    moore.add_argument("--base", metavar="P", help=f"Stable Diffusion, for its sizes: {place}")
    moore.add_argument(
        "--motion-heads", type=_positive, metavar="N", help="8, unless an export says"
    )
    moore.add_argument(
        "--betas",
        choices=["linear", "scaled_linear"],
        help="of the noise: linear, unless an export says; MusePose's are scaled_linear",
    )
    moore.add_argument("--no-motion", action="store_true", help="a model of single pictures")
    sd15 = layout("sd15", _convert_sd15, "Stable Diffusion 1.5, as a start for training")
    sd15.add_argument("--controlnet", metavar="P", help=f"openpose ControlNet: {place}")
    sd15.add_argument("--motion", metavar="P", help=f"AnimateDiff motion modules: {place}; or new")
    sd15.add_argument("--motion-heads", type=_positive, default=8, help="of files that do not say")
    sd15.add_argument(
        "--pose-guider", default="feature", choices=["feature", "latent"], help="kind"
    )
    sd15.add_argument("--seed", type=int, default=0, help="of what is drawn at random")


def _shared_conversion(options):
    names = "vae", "image_encoder", "motion_heads", "dtype", "overwrite"
    return {name: getattr(options, name) for name in names}


def _convert_moore(options):
    from animate_jax.weights.convert import convert_moore

    shared = _shared_conversion(options)
    extra = dict(base=options.base, motion=not options.no_motion, betas=options.betas)
    convert_moore(options.source, options.out, **extra, **shared)


def _convert_sd15(options):
    from animate_jax.weights.convert import convert_sd15

    shared = _shared_conversion(options)
    names = "controlnet", "motion", "pose_guider", "seed"
    extra = {name: getattr(options, name) for name in names}
    convert_sd15(options.source, options.out, **extra, **shared)


def _add_export(command, commands):
    export = commands.add_parser("export", help="a model directory to PyTorch files")
    export = export.add_subparsers(required=True, metavar="LAYOUT")
    moore = command("moore", _export_moore, "the released reproduction's files", export)
    moore.add_argument("model", metavar="MODEL")
    moore.add_argument("out", metavar="OUT")
    _add_overwrite(moore)


def _export_moore(options):
    from animate_jax.weights.export import export_moore

    export_moore(options.model, options.out, overwrite=options.overwrite)


def _add_train(command):
    parser = command("train", _train, "train a stage, or go on with it; --config.KEY=VALUE too")
    add = parser.add_argument
    add("--config", metavar="CONFIG", help="a file of configs/ (not needed to go on)")
    add("--workdir", required=True, metavar="DIR", help="of checkpoints, logs and the model")
    add("--write-model", action="store_true", help="only write the latest checkpoint as a model")
    _add_compiled(parser)
    add("--distributed", action="store_true", help="on every worker of a pod")
    processes = parser.add_argument_group("several processes outside a pod")
    add = processes.add_argument
    add("--coordinator", metavar="HOST:PORT", help="address of process 0")
    add("--processes", type=_positive, metavar="N")
    add("--process", type=int, metavar="I", help="number of this one, from 0")


def _train(options):
    from animate_jax.commands.train import train

    train(options)


def _add_plan(command):
    parser = command("plan", _plan, "what a step takes on a TPU that is not there; needs libtpu")
    add = parser.add_argument
    add("what", nargs="?", choices=["train", "animate"], default="train", help="by default train")
    add("--topology", required=True, metavar="T", help="v5litepod-16, v4-32, or like v5e:4x4")
    add("--slices", type=_positive, default=1, help="how many of these are joined")
    add("--config", metavar="CONFIG", help="train: a file of configs/; --config.KEY=VALUE too")
    add("--sweep", action="store_true", help="train: try meshes, remat, accumulation; takes long")
    add("--serialize", metavar="DIR", help="keep the program, for --compiled of other commands")
    add("--model", metavar="DIR", help="animate: by default one of Stable Diffusion's size")
    add("--frames", type=_positive, default=24, help="animate: of a window")
    add("--width", type=_positive, default=512, help="animate: in pixels")
    add("--height", type=_positive, default=512, help="animate: in pixels")
    add("--steps", type=_positive, default=20, help="animate: denoising steps")
    add("--guidance", type=float, default=3.5, help="animate: 1 is none, and half the work")


def _plan(options):
    from animate_jax.commands.plan import plan

    plan(options)


def _add_data_preview(command):
    parser = command("data-preview", _data_preview, "show training samples as the model sees them")
    help = "a file of configs/; then, what is to differ: --config.data.seed=1"
    parser.add_argument("config", metavar="CONFIG", help=help)
    parser.add_argument("out", metavar="OUT.png")
    _add_overwrite(parser)


def _data_preview(options):
    from animate_jax.commands.data_preview import data_preview

    data_preview(options)


def _add_evaluate(command):
    from animate_jax.evaluation.protocol import PROTOCOLS

    summary = "measure how good a model's videos are, or a baseline's, or those in a folder"
    parser = command("evaluate", _evaluate, summary)
    add = parser.add_argument
    add("--out", required=True, metavar="REPORT.json", help="the report")
    add("--pictures", metavar="DIR", help="videos: reference, skeleton, result, truth")
    add("--frames-detail", action="store_true", help="metrics of every frame in the report, too")
    _add_overwrite(parser)
    add = parser.add_argument_group("what is measured").add_argument
    add("--model", metavar="DIR", help="a model directory or a finished training's")
    add("--baseline", choices=["copy", "warp"], help="reference held still; its limbs moved")
    add("--autoencoder-only", action="store_true", help="the truth, encoded and decoded by"
        " the model: what a denoiser without error would make")  # fmt: skip
    add("--data", metavar="DIR", help="records, or a clip directory, that hold the truth")
    add("--predicted", metavar="DIR", help="videos or folders of pictures that somebody made")
    add("--truth", metavar="DIR", help="the same names, as they should be")
    add = parser.add_argument_group("which videos").add_argument
    add("--protocol", choices=PROTOCOLS, help="settings of the literature")
    add("--split", choices=["train", "validation", "all"], help="of the data; else validation")
    add("--pairs", type=_positive, metavar="N", help="at most so many videos")
    add("--pairs-file", metavar="JSON", help="references, motions and truths, by names of clips")
    add(
        "--cross", action="store_true", help="motions of other characters, where the truth is known"
    )
    add("--retarget", default="scale", choices=["none", "scale", "bones"], help="of others'"
        " motions to the reference's body")  # fmt: skip
    add("--frames", type=_positive, metavar="F", help="at most so many of each video")
    add("--stride", type=_positive, metavar="S", help="take every so manyth frame")
    add("--width", type=_positive, help="of what is compared; else from the model and the clips")
    add("--height", type=_positive)
    add = parser.add_argument_group("sampling").add_argument
    add("--steps", type=_positive, default=20, help="denoising steps")
    add("--guidance", type=float, help="strength of the reference; 1 is none; else the model's")
    add("--seed", type=int, default=0, help="of the first video's noise; the next has the next")
    add("--window", type=_positive, help="frames that are denoised together; else 24, or the most")
    add("--overlap", type=int, help="frames that neighbouring windows share; else 4")
    add("--dtype", choices=["float32", "bfloat16"], help="by default float32 on CPU, else bfloat16")
    add = parser.add_argument_group("networks of metrics", "see docs/evaluation.md").add_argument
    add("--networks", metavar="DIR", help="holds files with their usual names")
    add("--lpips", nargs="+", metavar="FILE", help="AlexNet or VGG-16, and LPIPS's layers")
    add("--inception", metavar="FILE", help="of FID")
    add("--i3d", metavar="FILE", help="of FVD")
    add("--resnet3d", metavar="FILE", help="of FID-VID")
    add("--window-frames", type=_positive, metavar="F", help="that FVD and FID-VID see at once")
    add("--window-stride", type=_positive, metavar="S", help="from one such window to the next")


def _evaluate(options):
    from animate_jax.commands.evaluate import evaluate

    evaluate(options)


def _new(options):
    from animate_jax.config import PRESETS
    from animate_jax.models.animate_anyone import COMPONENTS, AnimateAnyone
    from animate_jax.weights.model_directory import save_model

    config = PRESETS[options.preset]()
    model = AnimateAnyone(config)
    parts = ((name, model.init(options.seed, (name,))[name]) for name in COMPONENTS)
    save_model(options.out, config, parts, overwrite=options.overwrite)
    print(f"wrote {options.out}: {options.preset}, random weights")


def _copy(options):
    from animate_jax.files import directory_path, is_local
    from animate_jax.models.animate_anyone import COMPONENTS
    from animate_jax.weights.model_directory import (
        load_model,
        model_directory,
        read_config,
        save_model,
    )

    source, out = model_directory(options.model), directory_path(options.out)
    if not is_local(out) and (source == out or out in source.parents):
        # A bucket's old model goes before the new one comes.
        raise UserError(f"{out}: is what is copied, or holds it; choose another place")

    def component(name):
        return load_model(source, components=(name,), dtype=options.dtype)[1][name]

    parts = ((name, lambda name=name: component(name)) for name in COMPONENTS)
    save_model(out, read_config(source), parts, overwrite=options.overwrite)
    print(f"wrote {options.out}")


def _inspect(options):
    from animate_jax.weights.inspect import describe_model

    print(describe_model(options.model))


def _fetch_pose_models(options):
    from animate_jax.pose.models import fetch_pose_models

    for path in fetch_pose_models(options.source):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
