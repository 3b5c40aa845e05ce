"""Compiling for TPUs, in a process of its own, because libtpu's environment is read once."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# At the level that compiles quickest: what is asked is whether it compiles and fits.
COMPILE = """
import json, sys
import jax
jax.config.update("jax_optimization_level", "O1")
from animate_jax.tpu.plan import plan_sampling, plan_training
from animate_jax.tpu.topology import topology_devices
from animate_jax.training.config import load_config
from tests.small_model import small_model
config, topology, *overrides = sys.argv[1:]
devices = topology_devices(topology)
if config == "sampling":
    plan = plan_sampling(small_model(), 8, 64, 64, 2, 3.5, devices)
else:
    plan = plan_training(load_config(config, overrides), devices)
print(json.dumps({"chips": len(devices), "devices": plan.devices, "fits": plan.fits,
    "needed": plan.needed, "parameters": plan.parameters, "optimizer": plan.optimizer,
    "flops": plan.flops, "seconds": plan.seconds, "messages": plan.program.messages,
    "kernels": plan.program.kernel_cycles}))
"""


def compiled(*arguments):
    """Of a config (or "sampling") and a topology what a plan says; further arguments override."""
    return json.loads(run_alone(COMPILE, *arguments)[-1])


def run_alone(program, *arguments):
    """Lines that a process of its own writes, which compiles all that it asks for, and fully."""
    environment = {name: x for name, x in os.environ.items() if not name.startswith("JAX_")}
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout.splitlines()
