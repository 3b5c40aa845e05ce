"""Mesh sizes, several slices, and where parameters lie."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from animate_jax.config import sd15
from animate_jax.errors import UserError
from animate_jax.parallel.mesh import axis_sizes, device_grid, share_of
from animate_jax.parallel.sharding import TENSOR_RULES, partition_spec
from animate_jax.training.parameters import shapes_of


@pytest.mark.parametrize(
    "wanted, devices, sizes",
    [
        ({"data": -1}, 8, (8, 1, 1)),
        ({"fsdp": -1, "data": 2}, 8, (2, 4, 1)),
        ({"tensor": 2, "data": -1}, 8, (4, 1, 2)),
        ({"data": 1}, 1, (1, 1, 1)),
    ],
)
def test_axis_sizes(wanted, devices, sizes):
    assert axis_sizes(wanted, devices) == sizes


@pytest.mark.parametrize(
    "wanted, message",
    [
        ({"data": 3}, "does not fit 8 devices"),
        ({"data": -1, "tensor": 3}, "does not fit 8 devices"),
        ({"data": -1, "fsdp": -1}, "-1 once"),
        ({"data": 0}, "1 or more"),
        ({"model": 8}, "no axes"),
    ],
)
def test_sizes_that_do_not_fit(wanted, message):
    with pytest.raises(UserError, match=message):
        axis_sizes(wanted, 8)


@dataclasses.dataclass(frozen=True)
class Chip:
    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    process_index: int = 0


def test_slices_are_joined_along_data():
    chips = [Chip(number, number // 4) for number in range(8)]
    grid = device_grid({"data": 2, "fsdp": 4}, chips)
    slices = np.vectorize(lambda chip: chip.slice_index)(grid)
    assert slices.shape == (2, 4, 1)
    assert all(len(set(row.ravel())) == 1 for row in slices)  # fsdp stays inside a slice
    assert sorted(chip.id for chip in grid.ravel()) == list(range(8))
    with pytest.raises(UserError, match="multiple of 2"):
        device_grid({"data": 1, "fsdp": 8}, chips)


@dataclasses.dataclass(frozen=True)
class TPU(Chip):
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


@pytest.mark.parametrize("sizes", [(4, 8, 1), (2, 8, 2), (8, 4, 1), (16, 1, 2)])
def test_sizes_need_not_be_whole_axes_of_a_slice(sizes):
    """Of two slices of 4x4."""
    chips = [TPU(n, n // 16, coords=(n % 4, n // 4 % 4, 0)) for n in range(32)]
    grid = device_grid(dict(zip(("data", "fsdp", "tensor"), sizes)), chips)
    assert grid.shape == sizes and len({chip.id for chip in grid.ravel()}) == 32
    halves = [{chip.slice_index for chip in half.ravel()} for half in np.split(grid, 2)]
    assert all(len(half) == 1 for half in halves) and halves[0] != halves[1]


MESH = AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"))


@pytest.mark.parametrize(
    "path, shape, spec",
    [
        ("x/attn1/to_q/kernel", (320, 320), ("fsdp", "tensor")),
        ("x/attn1/to_out_0/kernel", (320, 320), ("tensor", "fsdp")),
        ("x/attn1/body_v/kernel", (320, 320), ("fsdp", "tensor")),
        ("x/attn1/body_out/kernel", (320, 320), ("tensor", "fsdp")),
        ("x/ff/net_0/proj/kernel", (320, 2560), ("fsdp", "tensor")),
        ("x/ff/net_0/proj/bias", (2560,), ("tensor",)),
        ("x/conv1/kernel", (3, 3, 320, 640), (None, None, None, "fsdp")),
        ("x/conv1/kernel", (3, 3, 640, 320), (None, None, "fsdp", None)),
        ("x/conv1/kernel", (3, 3, 321, 322), (None, None, None, None)),
        ("x/norm1/scale", (320,), (None,)),
        ("x/attn1/to_q/kernel", (321, 321), (None, None)),
    ],
)
def test_where_parameters_lie(path, shape, spec):
    assert partition_spec(path, shape, MESH, TENSOR_RULES) == PartitionSpec(*spec)


def test_bad_rules():
    with pytest.raises(UserError, match="does not fit"):
        partition_spec("a/kernel", (4, 4), MESH, ((r"kernel$", ("tensor",)),))
    with pytest.raises(UserError, match="does not fit"):
        partition_spec("a/kernel", (4, 4), MESH, ((r"kernel$", (None, "model")),))


def test_nothing_large_of_the_full_model_stays_whole():

    whole = total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        shapes_of(sd15(), ("denoising_unet", "reference_unet"))
    ):
        name = "/".join(key.key for key in path)
        total += leaf.size
        if "fsdp" not in partition_spec(name, leaf.shape, MESH, TENSOR_RULES):
            whole += leaf.size
    assert total == pytest.approx(2 * 859.5e6 + 453.2e6, rel=0.01)
    assert whole < 0.01 * total


@pytest.mark.parametrize(
    "processes, shares",
    [
        ([[0], [0], [1], [1]], {0: (0, 1), 1: (2, 3)}),  # a process after the other
        ([[0], [1], [1], [0]], {0: (0, 3), 1: (1, 2)}),  # in a ring, as on a TPU
        ([[0, 1], [2, 3]], {0: (0,), 1: (0,), 2: (1,), 3: (1,)}),  # tensor over two each
        ([[2, 3], [0, 1]], {0: (1,), 1: (1,), 2: (0,), 3: (0,)}),
        ([[0, 0, 1, 1]], {0: (0,), 1: (0,)}),  # one shard
    ],
)
def test_processes_that_hold_the_same_rows_read_the_same(processes, shares):
    processes = np.array(processes)
    for process, shards in shares.items():
        found = share_of(process, processes)
        assert found == {"shards": shards, "shard_count": len(processes)}


def test_rows_that_are_shared_in_part_are_refused():
    for processes in ([[0, 0], [0, 1], [1, 1]], [[0], [0], [1]]):
        with pytest.raises(UserError, match="make config.mesh.tensor"):
            share_of(0, np.array(processes))
