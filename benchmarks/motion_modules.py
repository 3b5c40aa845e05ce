"""What motion modules bring, and what it brings that a clip's frames have noise in common.

    python benchmarks/motion_modules.py DIR [--model MODEL]

compares the model (the bundled one) on the pairs of held_out.py, whose DIR for this model it may
be, with itself without motion modules, every frame sampled for itself: from noise in common as the
model's, and from noise of its own, as after stage 1. Writes DIR/motion_modules.md.
"""

import dataclasses
from pathlib import Path

from held_out import evaluated, held_out_pairs, read_options, table

from animate_jax.training.parameters import drop_motion, without_motion
from animate_jax.weights.model_directory import load_model, read_config, save_model


def main():
    options = read_options(__doc__)
    directory, source = options.directory, options.model
    config = read_config(source)
    share, side = config.schedule.shared_noise, config.resolution
    models = {
        "model": (source, "model"),
        "frames": (single(source, directory, share), "frame by frame, noise in common"),
        "apart": (single(source, directory, 0.0), "frame by frame, noise apart"),
    }
    held_out = held_out_pairs(directory)
    reports = {}
    for name, (model, label) in models.items():
        how = ["--model", model, "--pairs", options.pairs]
        reports[label] = evaluated(name, how, directory, held_out, side)
    (directory / "motion_modules.md").write_text(table(reports), encoding="utf-8")
    print(table(reports))


def single(source, directory: Path, shared_noise: float) -> Path:
    """A copy of the model without motion modules, for frames with so much noise in common."""
    target = directory / f"single_{shared_noise:g}"
    config, params = load_model(source)
    schedule = dataclasses.replace(config.schedule, shared_noise=shared_noise)
    config = dataclasses.replace(without_motion(config), schedule=schedule)
    save_model(target, config, drop_motion(params).items(), overwrite=True)
    return target


if __name__ == "__main__":
    main()
