"""Which version of a kernel runs where.

The platform is that of the program being lowered, not of the process: programs for a TPU are also
compiled on machines without one. A Pallas call is opaque to XLA's partitioner, so it is spread over
the mesh set by `jax.set_mesh` by hand: rows over `data` and `fsdp`, heads over `tensor`.
"""

from __future__ import annotations

import jax
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec

FAST_MEMORY = 64 * 2**20  # of the smallest TPU since v5; v4 has a quarter
ROW_AXES = "data", "fsdp"
HEAD_AXIS = "tensor"


def by_platform(plain, *arguments, tpu=None, cuda=None, cpu=None):
    """Calls the version for the platform, `plain` where that is None. Differentiable as it is."""
    named = {"tpu": tpu, "cuda": cuda, "cpu": cpu}
    versions = {name: f for name, f in named.items() if f is not None}
    if not versions:
        return plain(*arguments)
    return jax.lax.platform_dependent(*arguments, default=plain, **versions)


def fast_memory() -> int:
    """Bytes of fast memory of the mesh's TPU core, else the process's, else FAST_MEMORY."""
    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:
        return FAST_MEMORY


def reserve() -> int:
    """Bytes of it that a kernel leaves to what the compiler keeps there."""
    return min(8 * 2**20, fast_memory() // 4)


def rows_over_mesh(kernel):
    """kernel(x, weights) with every device taking its rows of x, and weights whole.

    x: an array (B, ...), or a tree of them.
    """

    def run(x, weights):
        sizes = _mesh_sizes()
        if all(size == 1 for size in sizes.values()):
            return kernel(x, weights)
        batch = jax.tree.leaves(x)[0].shape[0]
        rows, whole = PartitionSpec(_row_axes(batch, sizes)), PartitionSpec()
        return jax.shard_map(
            kernel,
            in_specs=(rows, whole),
            out_specs=rows,
            axis_names=set(sizes),
            check_vma=False,
        )(x, weights)

    return run


def keep_rows(x: jax.Array) -> jax.Array:
    """x (B, ...), of which every device holds its rows, whatever XLA would make of it."""
    sizes = _mesh_sizes()
    over = _row_axes(x.shape[0], sizes)
    if not over or all(size == 1 for size in sizes.values()):
        return x
    others = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(over, *others))


def rows_are_split(rows: int) -> bool:
    """Whether a device of the mesh takes fewer rows than all."""
    sizes = _mesh_sizes()
    return any(sizes[axis] > 1 for axis in _row_axes(rows, sizes) or ())


def axis_size(name: str) -> int:
    """Of an axis of the mesh set by `jax.set_mesh`; 1 where there is none."""
    return _mesh_sizes().get(name, 1)


def _mesh_sizes() -> dict[str, int]:
    """Of the axes of the mesh set by `jax.set_mesh` that no `shard_map` around has taken."""
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types)
        if kind != AxisType.Manual
    }


def _row_axes(rows, sizes):
    """The axes that rows are split over: those that divide them."""
    over = []
    for axis in ROW_AXES:
        if axis in sizes and rows % sizes[axis] == 0:
            over.append(axis)
            rows //= sizes[axis]
    return tuple(over) or None


def over_mesh(kernel, heads: int):
    """kernel(*arrays, heads=heads) with every device taking its rows and heads.

    The arrays are (B, ...), and those of more axes than one (B, ..., heads * width); trees and None
    are fine. Rows or heads that do not divide by an axis of the mesh are computed on all of it.
    """

    def run(*arrays):
        sizes = _mesh_sizes()
        if all(size == 1 for size in sizes.values()):
            return kernel(*arrays, heads=heads)
        over = _row_axes(arrays[0].shape[0], sizes)
        split = sizes.get(HEAD_AXIS, 1)
        head_axis = HEAD_AXIS if HEAD_AXIS in sizes and heads % split == 0 else None
        local_heads = heads // split if head_axis else heads

        def spec(x):
            if x.ndim == 1:
                return PartitionSpec(over)
            return PartitionSpec(over, *[None] * (x.ndim - 2), head_axis)

        return jax.shard_map(
            lambda *local: kernel(*local, heads=local_heads),
            in_specs=tuple(jax.tree.map(spec, arrays)),
            out_specs=spec(arrays[0]),
            axis_names=set(sizes),
            check_vma=False,
        )(*arrays)

    return run
