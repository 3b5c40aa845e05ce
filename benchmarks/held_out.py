"""How good models are on puppets and motions that no training has seen.

    python benchmarks/held_out.py DIR [--model MODEL]

draws 32 motions, each by two characters, and compares on 64 pairs: 32 characters with their own
motion, and 32 with the skeleton of another body, retargeted to theirs. The reference is a clip's
first frame; asked for are 16 frames from the 25th on, when most characters have moved. Evaluates
the model (the bundled one), what limits it (its autoencoder on the truth; one step from noise,
where it has nothing but the reference and the skeleton to go by) and the two baselines, and writes
DIR/table.md and DIR/sheet.png. What is there already is not made again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from animate_jax.files import replacing
from animate_jax.video.reading import read_frames
from animate_jax.weights.model_directory import BUNDLED, read_config
from data_prep.puppets.generate import PuppetSet, generate

SEED = 20231128  # that of the trainings is 0
MOTIONS, FIRST, FRAMES, SIZE = 32, 24, 16, 128
BASELINES = {"copy": "reference copied", "warp": "reference warped"}
METRICS = ("psnr_character", "ssim", "psnr", "l1", "flicker", "flicker_ratio")
SHOWN_PAIRS, SHOWN_FRAME, SHOWN_SIDE = 6, 10, 128


def main():
    options = read_options(__doc__)
    model = ["--model", options.model]
    ways = {
        "model": (model, "model"),
        "one_step": ([*model, "--steps", 1, "--guidance", 1], "model, one step"),
        "autoencoder": ([*model, "--autoencoder-only"], "autoencoder alone"),
    }
    compare(options.directory, ways, read_config(options.model).resolution, options.pairs)


def read_options(doc: str) -> argparse.Namespace:
    """directory, model and pairs from the command line of a benchmark on these pairs."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--pairs", type=int, default=2 * MOTIONS, help="the first so many")
    return parser.parse_args()


def compare(
    directory: Path, ways: dict[str, tuple[list, str]], side: int, pairs: int = 2 * MOTIONS
):
    """Evaluates ways {name: (options of `animate-jax evaluate`, label)} and the baselines on
    side x side pixels, prints the table, and writes it and the sheet."""
    held_out = held_out_pairs(directory)
    ways = ways | {name: (["--baseline", name], label) for name, label in BASELINES.items()}
    reports = {
        label: evaluated(name, [*how, "--pairs", pairs], directory, held_out, side)
        for name, (how, label) in ways.items()
    }
    (directory / "table.md").write_text(table(reports), encoding="utf-8")
    sheet(directory / "pictures", list(ways), side).save(directory / "sheet.png")
    print(table(reports))


def held_out_pairs(directory: Path) -> Path:
    """The folder of puppets and pairs in DIR, drawn now unless it is there."""
    held_out = directory / "held_out"
    if not (held_out / "pairs.json").exists():
        write_held_out(held_out)
    return held_out


def write_held_out(directory: Path, motions: int = MOTIONS):
    """Puppets of FIRST + FRAMES frames, the first of which is the reference, and pairs.json."""
    puppets = PuppetSet(2 * motions, SIZE, SIZE, SEED, frames=FIRST + FRAMES, group=2)
    generate(puppets, directory / "puppets", overwrite=True)
    pairs = []
    for first in range(0, 2 * motions, 2):
        own, other = f"{first:06d}", f"{first + 1:06d}"
        pairs += [_pair("own", own, own), _pair("cross", other, own)]
    with replacing(directory / "pairs.json") as temporary:
        temporary.write_text(json.dumps({"pairs": pairs}, indent=1) + "\n", encoding="utf-8")


def _pair(kind, character, driving):
    return {
        "name": f"{kind}_{character}",
        "reference": character,
        "driving": driving,
        "truth": character,
        "first": FIRST,
        "frames": FRAMES,
    }


def evaluated(name: str, how: list, directory: Path, held_out: Path, side: int) -> dict:
    """The report DIR/name.json of a way, made now unless it is there."""
    report = directory / f"{name}.json"
    if not report.exists():
        told = ["--data", held_out / "puppets", "--split", "all"]
        told += ["--pairs-file", held_out / "pairs.json", "--width", side, "--height", side]
        told += ["--pictures", directory / "pictures" / name, "--overwrite", "--out", report]
        animate_jax("evaluate", *how, *told)
    return json.loads(report.read_text(encoding="utf-8"))


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
            digits = 2 if "psnr" in metric else 4
            cell = f"{found['mean']:.{digits}f}"
            if found["interval"]:  # a single pair has none
                low, high = found["interval"]
                cell += f" ({low:.{digits}f} .. {high:.{digits}f})"
            cells.append(cell)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", "psnr_character with the own skeleton, and with another body's:"]
    for label, report in reports.items():
        kinds = {kind: _kind_mean(report, kind) for kind in ("own", "cross")}
        lines.append(f"{label}: {kinds['own']:.2f}, {kinds['cross']:.2f}")
    return "\n".join(lines) + "\n"


def _kind_mean(report, kind):
    rows = [row for row in report["clips"] if row["name"].startswith(kind)]
    return np.mean([row["psnr_character"] for row in rows])


def sheet(pictures: Path, names: list[str], side: int) -> Image.Image:
    """Rows of pairs: reference, skeleton, truth, and what each of `names` made of them."""
    pairs = sorted(path.name for path in (pictures / names[0]).glob("*.mp4"))
    rows = []
    for number in np.linspace(0, len(pairs) - 1, min(SHOWN_PAIRS, len(pairs))).astype(int):
        panels = [_panels(pictures / name / pairs[number], side) for name in names]
        reference, skeleton, _, truth = panels[0]
        rows.append(np.concatenate([reference, skeleton, truth, *(p[2] for p in panels)], 1))
    picture = Image.fromarray(np.concatenate(rows))
    scale = SHOWN_SIDE / side
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), 0)


def _panels(video: Path, side: int):
    frame = list(read_frames(video))[SHOWN_FRAME]
    return [frame[:, i * side : (i + 1) * side] for i in range(4)]


if __name__ == "__main__":
    main()
