"""TPU slices that need not be there: libtpu's compiler knows their chips and their links."""

from __future__ import annotations

import importlib.util
import os
import re

import jax

from animate_jax.errors import UserError

# Accelerator types count chips for v5e and v6e, and cores, two a chip, for v4 and v5p. A chip is
# one device.
GRIDS = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8"}
ACCELERATORS = {
    "v5litepod": ("v5e", GRIDS),
    "v5e": ("v5e", GRIDS),
    "v6e": ("v6e", GRIDS),
    "v4": ("v4", CUBES),
    "v5p": ("v5p", CUBES),
}
# What libtpu asks a TPU VM's metadata for.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def topology_name(text: str) -> str:
    """`v5e:4x4` as it is; an accelerator type such as `v5litepod-16` or `v4-32` as its topology.

    Raises UserError for what is neither.
    """
    if re.fullmatch(r"v\w+:\d+(x\d+)+", text):
        return text
    family, _, size = text.rpartition("-")
    name, grids = ACCELERATORS.get(family, (None, {}))
    if not size.isdigit() or int(size) not in grids:
        known = ", ".join(
            f"{family}-{min(g)} to -{max(g)}" for family, (_, g) in ACCELERATORS.items()
        )
        raise UserError(f"{text!r} is no TPU known here; give {known}, or a topology like v5e:4x4")
    return f"{name}:{grids[int(size)]}"


def topology_devices(text: str, slices: int = 1) -> list[jax.Device]:
    """The devices of `slices` such slices, to compile for; they cannot compute.

    Raises UserError where libtpu is missing or knows no such topology.
    """
    name = topology_name(text)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "planning for a TPU needs its compiler; install it with: pip install libtpu"
        )
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    if name.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    if name.startswith("v4:"):  # both cores of a chip together, as on a TPU VM
        options["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"{text}: libtpu knows no such topology ({error})") from error
    return list(found.devices)
