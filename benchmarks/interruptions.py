"""Whether a training that is killed again and again ends with the same parameters, bit for bit.

    python benchmarks/interruptions.py CONFIG DIR --kills 10 --config.data.path=RECORDS

trains once without interruption in DIR/whole, then in DIR/killed, with SIGKILL at random moments
and, every second time, in the middle of writing a checkpoint. Exit code 1 where anything differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from animate_jax.training.checkpoint import open_checkpoints
from animate_jax.training.config import split_overrides
from animate_jax.training.metrics import read_metrics


def main():
    overrides, arguments = split_overrides(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    command = [sys.executable, "-m", "animate_jax.cli", "train", "--config", options.config]
    command += [f"--config.{override}" for override in overrides]
    return 0 if interrupt(command, options.directory, options.kills, options.seed) else 1


def interrupt(command: list[str], directory: Path, kills: int, seed: int) -> bool:
    """Whether a training by `command` (without --workdir) ends the same when it is killed."""
    directory.mkdir(parents=True, exist_ok=True)
    # What is compiled is kept, or the restarts would mostly compile.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory / "compiled"))
    whole, killed = directory / "whole", directory / "killed"

    def train(workdir, start=subprocess.run, **options):
        silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return start([*command, "--workdir", str(workdir)], **silent, **options)

    begun = time.monotonic()
    train(whole, check=True)
    print(f"uninterrupted: {time.monotonic() - begun:.0f} s")
    chance = random.Random(seed)
    for number in range(kills):
        process = train(killed, subprocess.Popen)
        moment = wait_for_moment(process, killed, chance, while_writing=number % 2 == 0)
        if moment is None:
            print(f"ended before kill {number + 1}; make config.steps larger")
            return False
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"kill {number + 1}: {moment}; goes on after step {latest(killed)}", flush=True)
    train(killed, check=True)

    same = compare(whole, killed)
    print("final states are equal bit for bit" if same else "FINAL STATES DIFFER")
    rows = (read_metrics(path) for path in (whole, killed))
    # Sampled videos, and their rows, come after the checkpoint: a kill in between leaves them out.
    first, second = ([row["loss"] for row in one if "loss" in row] for one in rows)
    print("logged losses are equal" if first == second else "LOGGED LOSSES DIFFER")
    return same and first == second


def wait_for_moment(process, workdir, chance, *, while_writing):
    """Returns what was going on when a moment for the next kill came, None if the run ended."""
    before, checkpoints = latest(workdir), workdir / "checkpoints"
    deadline = None
    while process.poll() is None:
        names = [path.name for path in checkpoints.iterdir()] if checkpoints.exists() else []
        if while_writing and any("tmp" in name for name in names):
            return "while a checkpoint was written"
        if not while_writing and latest(workdir) > before and deadline is None:
            deadline = time.monotonic() + chance.uniform(0, 0.5)
        if deadline is not None and time.monotonic() > deadline:
            return "between checkpoints"
        time.sleep(0.001)
    return None


def latest(workdir):
    checkpoints = workdir / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def compare(one, other):
    """Whether the latest checkpoints hold the same arrays."""
    states, here = [], jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for workdir in (one, other):
        with open_checkpoints(workdir) as manager:
            items = ocp.args.Composite(state=ocp.args.StandardRestore(fallback_sharding=here))
            state = manager.restore(manager.latest_step(), args=items).state
        states.append(jax.tree.flatten(state))
    (first, structure), (second, other_structure) = states
    same = structure == other_structure and len(first) > 0
    return same and all(np.array_equal(x, y) for x, y in zip(first, second))


if __name__ == "__main__":
    sys.exit(main())
