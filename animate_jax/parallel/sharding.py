"""Where parameters lie on a mesh: a short list of rules over their paths, kept as data.

A rule names, for the paths that its pattern finds, the mesh axis of each array axis. After that
the largest axis that is still whole is split over `fsdp`, so that no chip holds all of a layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from animate_jax.errors import UserError

Rules = Sequence[tuple[str, Sequence[str | None]]]

# Heads of attention and the hidden channels of feed-forwards; the second layer of each pair sums
# over what the first has split.
TENSOR_RULES: Rules = (
    (r"/(to_q|to_k|to_v|body_v)/kernel$", (None, "tensor")),
    (r"/(to_out_0|body_out)/kernel$", ("tensor", None)),
    (r"/ff/net_0/proj/kernel$", (None, "tensor")),
    (r"/ff/net_0/proj/bias$", ("tensor",)),
    (r"/ff/net_2/kernel$", ("tensor", None)),
)
FSDP_MIN_SIZE = 2**14  # smaller arrays are not worth a message


def partition_spec(
    path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules, min_size: int = FSDP_MIN_SIZE
) -> PartitionSpec:
    """Of the array at `path` (`denoising_unet/conv_in/kernel`); the first pattern found counts.

    An axis that the mesh does not divide stays whole. Raises UserError for a rule that does not
    fit the array or names no axis of the mesh.
    """
    axes: list[str | None] = [None] * len(shape)
    for pattern, wanted in rules:
        if re.search(pattern, path):
            if len(wanted) != len(shape) or not set(wanted) <= {None, *mesh.shape}:
                raise UserError(f"sharding rule {pattern} -> {tuple(wanted)} does not fit {path}")
            splits = [mesh.shape[axis] if axis else 1 for axis in wanted]
            axes = [
                axis if parts > 1 and size % parts == 0 else None
                for axis, parts, size in zip(wanted, splits, shape)
            ]
            break
    parts = mesh.shape["fsdp"]
    if parts > 1 and math.prod(shape) >= min_size and "fsdp" not in axes:
        whole = [i for i, size in enumerate(shape) if axes[i] is None and size % parts == 0]
        if whole:  # of equal ones the last: outputs rather than inputs
            axes[max(whole, key=lambda i: (shape[i], i))] = "fsdp"
    return PartitionSpec(*axes)


def parameter_shardings(
    shapes: dict, mesh: Mesh, rules: Rules, min_size: int = FSDP_MIN_SIZE
) -> dict:
    """A tree like `shapes` (anything with .shape at its leaves) of NamedSharding."""
    specs = {
        path: NamedSharding(
            mesh, partition_spec("/".join(path), tuple(leaf.shape), mesh, rules, min_size)
        )
        for path, leaf in flatten_dict(shapes).items()
    }
    return unflatten_dict(specs)


def place(tree, shardings):
    """The arrays of `tree`, the same on every process, on the devices; each holds its part only."""

    def put(array, sharding):
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings)
