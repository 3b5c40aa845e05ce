"""The `plan` command: what a step needs on a TPU that is not there."""

from __future__ import annotations

from tqdm import tqdm

from animate_jax.compiled import keep_compiled
from animate_jax.config import sd15
from animate_jax.errors import UserError
from animate_jax.tpu.plan import describe, plan_sampling, plan_training, sweep
from animate_jax.tpu.topology import topology_devices
from animate_jax.training.config import load_config
from animate_jax.weights.model_directory import read_config


def plan(options) -> None:
    """Runs `animate-jax plan`; options as its parser gives them."""
    keep_compiled(options.serialize)
    devices = topology_devices(options.topology, options.slices)
    if options.what == "animate":
        if options.config or options.overrides or options.sweep:
            raise UserError("--config and --sweep are for trainings; leave them out")
        model = read_config(options.model) if options.model else sd15()
        size = options.frames, options.height, options.width
        print(describe(plan_sampling(model, *size, options.steps, options.guidance, devices)))
        return
    if not options.config:
        raise UserError("say which training is planned: --config configs/stage1.py")
    config = load_config(options.config, options.overrides)
    if not options.sweep:
        print(describe(plan_training(config, devices)))
        return
    rows = []
    with tqdm(sweep(config, devices), desc="compiling", unit="way") as ways:
        for overrides, found in ways:
            rows.append((not found.fits, found.seconds, overrides, found))
            ways.write(_row(overrides, found))
    print("best first:")
    for *_, overrides, found in sorted(rows, key=lambda row: row[:2]):
        print(_row(overrides, found))


def _row(overrides, plan):
    memory = f"{plan.needed / 2**30:5.1f} GiB"
    time = f"{plan.seconds * 1e3:7.0f} ms  {100 * plan.share_of_peak:3.0f} %" if plan.fits else "-"
    return f"{memory}  {time:>18}  {' '.join(overrides)}"
