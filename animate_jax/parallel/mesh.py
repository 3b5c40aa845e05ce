"""The mesh: devices named by what is split over them.

`data` and `fsdp` split the batch; `fsdp` also splits parameters and optimizer state, which are
gathered layer by layer; `tensor` splits the channels and heads inside a layer. Several slices of a
pod are joined along `data` only, so that what crosses their slow network is one sum of gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from animate_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
# A kernel that is spread over chips is gathered before its convolution. Otherwise XLA passes
# slices of it around and convolves with a few channels at a time, which takes three times as long.
TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def axis_sizes(wanted: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """Sizes along AXES; one of those wanted may be -1, which takes what the others leave.

    Raises UserError where they do not multiply to the number of devices.
    """
    if unknown := sorted(set(wanted) - set(AXES)):
        raise UserError(f"a mesh has no axes {unknown}; it has {list(AXES)}")
    sizes = [wanted.get(axis, 1) for axis in AXES]
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"mesh {dict(wanted)}: sizes are 1 or more, and -1 once at most")
    rest = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and devices % rest == 0:
        sizes[sizes.index(-1)] = devices // rest
    if math.prod(sizes) != devices:
        raise UserError(
            f"mesh {dict(wanted)} does not fit {devices} devices; the sizes have to multiply to it"
        )
    return tuple(sizes)


def make_mesh(wanted: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices`, by default all, with axes AXES; sizes as in `axis_sizes`.

    Devices of several slices of a pod are joined along `data`. Raises UserError where the sizes do
    not fit.
    """
    grid = device_grid(wanted, list(jax.devices() if devices is None else devices))
    # Explicit axes would refuse convolutions with split kernels.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """What `jax.jit` tells the compiler of a program for this mesh."""
    return TPU_OPTIONS if mesh.devices.flat[0].platform == "tpu" else None


def device_grid(wanted: Mapping[str, int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array of the mesh's sizes, neighbours in the network beside each other."""
    sizes = axis_sizes(wanted, len(devices))
    slices = slices_of(devices)
    if slices > 1:
        if sizes[0] % slices:
            raise UserError(
                f"{slices} slices are joined along data, whose size {sizes[0]} they do not divide;"
                f" make config.mesh.data a multiple of {slices}"
            )
        inside = (sizes[0] // slices, *sizes[1:])
        across = (slices, *[1] * (len(AXES) - 1))
        return mesh_utils.create_hybrid_device_mesh(
            inside, across, devices, allow_split_physical_axes=True
        )
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return np.array(devices).reshape(sizes)


def slices_of(devices: Sequence[jax.Device]) -> int:
    """How many slices of a pod they are of."""
    return len({getattr(device, "slice_index", 0) or 0 for device in devices})


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def input_share(mesh: Mesh) -> dict[str, int | tuple[int, ...]]:
    """Which parts of every batch this process reads, as `training_batches` and others take it.

    On TPUs they need not lie side by side. Where `tensor` reaches over several processes, these
    hold the same rows and read the same parts. Raises UserError for a mesh in which the rows of two
    processes overlap in part.
    """
    processes = np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)
    return share_of(jax.process_index(), processes.reshape(batch_shards(mesh), -1))


def share_of(process: int, processes: np.ndarray) -> dict[str, int | tuple[int, ...]]:
    """`input_share` of a process, from the numbers of the processes (batch shards, tensor) whose
    devices the mesh consists of."""
    all_held = ((p, np.flatnonzero((processes == p).any(1))) for p in np.unique(processes))
    held = {p: tuple(rows.tolist()) for p, rows in all_held}
    parts = sorted(set(held.values()))
    if len(np.concatenate(parts)) != len(processes) or len({len(part) for part in parts}) > 1:
        raise UserError(
            "in this mesh some processes share a part of their rows; make config.mesh.tensor"
            " divide the devices of a process, or be a multiple of them"
        )
    return {"shards": held[process], "shard_count": len(processes)}


def place_batch(mesh: Mesh, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The batch of which this process has `rows`, see `input_share`, split over the mesh."""
    share, sharding = input_share(mesh), batch_sharding(mesh)

    def place(x):
        size = len(x) // len(share["shards"]) * share["shard_count"]
        return jax.make_array_from_process_local_data(sharding, x, (size, *x.shape[1:]))

    return {name: place(x) for name, x in rows.items()}


def replicated(mesh: Mesh) -> NamedSharding:
    """Of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
