"""What each part of the method is worth: trains configs/ablations and compares them.

    python benchmarks/ablations.py DIR [--model MODEL] [--only full joint ...]

draws puppets, trains every model with the autoencoder of MODEL (the bundled one), and compares them
as held_out.py does: DIR/table.md, DIR/sheet.png. The model without motion modules is there twice,
its frames from noise of their own and from noise in common. What is there already is not made
again, so the same command goes on where it was stopped.
"""

import argparse
from pathlib import Path

from held_out import animate_jax, compare
from motion_modules import single

from animate_jax.commands.train import puppet_records
from animate_jax.files import directory_path
from animate_jax.training.config import load_config
from animate_jax.weights.model_directory import BUNDLED

CONFIGS = Path(__file__).parents[1] / "configs" / "ablations"
MODELS = {
    "full": "full",
    "noise_apart": "full, noise apart",
    "image_token": "image token only",
    "added": "reference added",
    "no_motion": "no motion modules",
    "joint": "both stages at once",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model", default=BUNDLED, help="whose autoencoder is used")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    config = load_config(CONFIGS / "full.py")
    records = puppet_records(config.puppets, directory_path(options.directory))
    models = {}
    for name in options.only:
        workdir = trained(name, options.directory, records, options.model)
        models[name] = ["--model", workdir / "model"], MODELS[name]
        if name == "no_motion":
            share = config.schedule["shared_noise"]
            common = single(workdir / "model", options.directory, share)
            models["in_common"] = ["--model", common], "no motion modules, noise in common"
    compare(options.directory, models, config.data.width)


def trained(name: str, directory: Path, records, source) -> Path:
    """The workdir of a config, trained now unless it is finished; its first stage before it."""
    workdir, after = directory / name, load_config(CONFIGS / f"{name}.py").after
    if not (workdir / "model").exists():
        start = trained(Path(after).stem, directory, records, source) if after else source
        told = [f"--config.init_from={start}", f"--config.data.path={records}"]
        animate_jax("train", "--config", CONFIGS / f"{name}.py", "--workdir", workdir, *told)
    return workdir


if __name__ == "__main__":
    main()
