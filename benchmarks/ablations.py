"""What each part of the method is worth: trains configs/ablations and compares them.

    python benchmarks/ablations.py DIR [--model MODEL] [--only full joint ...]

draws puppets for training and the pairs of held_out.py for the comparison, trains every model with
the autoencoder of MODEL (the bundled one), evaluates them and the two baselines, and writes
DIR/table.md and DIR/sheet.png. What is there already is not made again, so the same command goes on
where it was stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from held_out import write_held_out
from PIL import Image

from animate_jax.commands.train import puppet_records
from animate_jax.training.config import load_config
from animate_jax.video.reading import read_frames
from animate_jax.weights.model_directory import BUNDLED, directory_path

CONFIGS = Path(__file__).parents[1] / "configs" / "ablations"
MODELS = {
    "full": "full",
    "image_token": "image token only",
    "added": "reference added",
    "no_motion": "no motion modules",
    "joint": "both stages at once",
}
BASELINES = {"copy": "reference copied", "warp": "reference warped"}
METRICS = ("psnr_character", "ssim", "psnr", "l1", "flicker", "flicker_ratio")
SHOWN_PAIRS, SHOWN_FRAME, SHOWN_HEIGHT = 6, 8, 96


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model", default=BUNDLED, help="whose autoencoder is used")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--pairs", type=int, help="compare on the first so many only")
    options = parser.parse_args()
    directory = options.directory
    config = load_config(CONFIGS / "full.py")
    records = puppet_records(config.puppets, directory_path(directory))
    if not (directory / "held_out").exists():
        write_held_out(directory / "held_out")
    reports = {}
    for name in options.only:
        model = trained(name, directory, records, options.model)
        how = ["--model", model / "model"]
        reports[MODELS[name]] = evaluated(name, how, directory, config.data, options.pairs)
    for name, label in BASELINES.items():
        how = ["--baseline", name]
        reports[label] = evaluated(name, how, directory, config.data, options.pairs)
    (directory / "table.md").write_text(table(reports))
    names = [*options.only, *BASELINES]
    sheet(directory, names, config.data).save(directory / "sheet.png")
    print(table(reports))


def trained(name: str, directory: Path, records, source) -> Path:
    """The workdir of a config, trained now unless it is finished; its first stage before it."""
    workdir, after = directory / name, load_config(CONFIGS / f"{name}.py").after
    if not (workdir / "model").exists():
        start = trained(Path(after).stem, directory, records, source) if after else source
        told = [f"--config.init_from={start}", f"--config.data.path={records}"]
        config = ["--config", CONFIGS / f"{name}.py", "--workdir", workdir]
        animate_jax("train", *config, *told)
    return workdir


def evaluated(name: str, how: list, directory: Path, data, pairs: int | None) -> dict:
    """The report of a model or baseline, made now unless it is there."""
    report = directory / f"{name}.json"
    if not report.exists():
        held_out = directory / "held_out"
        size = ["--width", data.width, "--height", data.height]
        chosen = ["--split", "all", "--pairs-file", held_out / "pairs.json"]
        chosen += ["--pairs", pairs] if pairs else []
        pictures = ["--pictures", directory / "pictures" / name]
        told = ["--data", held_out / "puppets", *chosen, *size, *pictures, "--overwrite"]
        animate_jax("evaluate", *how, *told, "--out", report)
    return json.loads(report.read_text())


def animate_jax(*arguments):
    command = [sys.executable, "-m", "animate_jax.cli", *map(str, arguments)]
    subprocess.run(command, check=True)


def table(reports: dict[str, dict]) -> str:
    """Markdown: a row for every report, means with intervals."""
    lines = [f"| | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 1) + "|"]
    for label, report in reports.items():
        cells = []
        for metric in METRICS:
            found = report["means"][metric]
            low, high = found["interval"]
            digits = 2 if "psnr" in metric else 4
            cells.append(f"{found['mean']:.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sheet(directory: Path, names: list[str], data) -> Image.Image:
    """Rows of pairs: reference, skeleton, truth, and what each of `names` made of them."""
    pairs = sorted(path.name for path in (directory / "pictures" / names[0]).glob("*.mp4"))
    chosen = [
        pairs[i] for i in np.linspace(0, len(pairs) - 1, min(SHOWN_PAIRS, len(pairs))).astype(int)
    ]
    rows = []
    for pair in chosen:
        panels = [_panels(directory / "pictures" / name / pair, data.width) for name in names]
        reference, skeleton, _, truth = panels[0]
        rows.append(np.concatenate([reference, skeleton, truth, *(p[2] for p in panels)], 1))
    picture = Image.fromarray(np.concatenate(rows))
    scale = SHOWN_HEIGHT / data.height
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), 0)


def _panels(video: Path, width: int):
    frame = list(read_frames(video))[SHOWN_FRAME]
    return [frame[:, i * width : (i + 1) * width] for i in range(4)]


if __name__ == "__main__":
    main()
