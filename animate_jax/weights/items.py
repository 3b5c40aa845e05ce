"""One Orbax item: a tree of parameters on disk, written and read in bounded memory.

Arrays on devices are written shard by shard; arrays of numpy and LazyTensors a few at a time, which
for the latter is when they are read from their files. Orbax by itself would copy every numpy array
of the tree and hold compressed copies beside them, three times the tree.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from animate_jax.errors import UserError, require_access
from animate_jax.weights.lazy_tensor import LazyTensor

_GROUP_BYTES = 256 << 20
# A device that loads a part of an array reads whole chunks of it.
_CHUNK_BYTES = 8 << 20
_CONCURRENT_GB = 1
_COMMITTED = "commit_success.txt"  # Orbax's mark that all is written
_DAMAGE = (OSError, ValueError, KeyError)

Path = tuple[str, ...]


class _LazyTensorHandler(ocp.type_handlers.NumpyHandler):
    """Writes LazyTensors as numpy arrays, reading a group only when the last one is on disk."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(self, values, infos, args=None):
        args = args or [ocp.SaveArgs()] * len(values)
        # The other processes of a pod leave the writing of host arrays to the first.
        if jax.process_index() == 0:
            for group in _groups([value.nbytes for value in values]):
                arrays = [values[i].read() for i in group]
                its_infos, its_args = [infos[i] for i in group], [args[i] for i in group]
                (written,) = await super().serialize(arrays, its_infos, its_args)
                _finish(written)
        return []


def _finish(written: ocp.future.Future) -> None:
    """Wait until Orbax has written, also when interrupted: what it writes into is removed then."""
    try:
        written.result()
    except KeyboardInterrupt:
        written.result()
        raise


def _groups(sizes: list[int]) -> Iterator[list[int]]:
    """Indices in order, in groups of at most _GROUP_BYTES together or of a single one."""
    group, together = [], 0
    for i, size in enumerate(sizes):
        if group and together + size > _GROUP_BYTES:
            yield group
            group, together = [], 0
        group.append(i)
        together += size
    if group:
        yield group


def save_item(path: str | os.PathLike, tree: Mapping) -> None:
    """Write a nested dictionary of jax.Array, np.ndarray or LazyTensor leaves to a new directory.

    All processes call it together. What reading a LazyTensor raises passes through.
    """
    tree = jax.tree.map(lambda x: LazyTensor.of(x) if isinstance(x, np.ndarray) else x, tree)
    handlers = ocp.type_handlers.create_type_handler_registry(
        (LazyTensor, _LazyTensorHandler()),
        (jax.Array, ocp.type_handlers.get_type_handler(jax.Array)),
    )
    handler = ocp.PyTreeCheckpointHandler(
        type_handler_registry=handlers,
        use_compression=False,
        save_concurrent_gb=_CONCURRENT_GB,
        save_device_host_concurrent_gb=_CONCURRENT_GB,
    )
    arguments = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
    with _quiet(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(epath.Path(path), args=ocp.args.PyTreeSave(tree, arguments))
    marker = epath.Path(path) / _COMMITTED
    if jax.process_index() == 0 and marker.exists():
        marker.write_text("committed\n")  # Orbax's words name a directory of the writer's machine


def item_leaves(path: epath.Path) -> dict[Path, jax.ShapeDtypeStruct]:
    """{path: shape and dtype} of what an item holds; no array is read.

    Raises UserError where the item is missing or damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: this part of the model is missing; convert or copy it again")
    try:
        with _quiet():
            leaves = flatten_dict(ocp.PyTreeCheckpointHandler().metadata(path).tree)
            return {p: jax.ShapeDtypeStruct(m.shape, m.dtype) for p, m in leaves.items()}
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def load_item(
    path: epath.Path, tree: Mapping, sharding_of: Callable[[Path], jax.sharding.Sharding]
) -> dict:
    """The arrays of an item with the structure, shapes and dtypes of `tree` (ShapeDtypeStructs).

    They are placed by `sharding_of(path)`, read shard by shard. Raises UserError where the item is
    damaged.
    """

    def arguments(path, leaf):
        sharding = sharding_of(tuple(key.key for key in path))
        return ocp.ArrayRestoreArgs(
            sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype, restore_type=jax.Array
        )

    return _restore(path, tree, jax.tree_util.tree_map_with_path(arguments, tree))


def load_item_on_host(path: epath.Path, leaves: Mapping[Path, jax.ShapeDtypeStruct]) -> dict:
    """{path: np.ndarray} for {path: shape and dtype}. Raises UserError where it is damaged."""
    paths, arrays = list(leaves), {}
    # Read all at once, every array would be in memory twice.
    for group in _groups([math.prod(x.shape) * x.dtype.itemsize for x in leaves.values()]):
        tree = unflatten_dict({paths[i]: leaves[paths[i]] for i in group})
        wanted = jax.tree.map(lambda x: ocp.RestoreArgs(np.ndarray, x.dtype), tree)
        arrays |= flatten_dict(_restore(path, tree, wanted))
    return arrays


def _restore(path: epath.Path, tree: Mapping, wanted: Mapping) -> dict:
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=_CONCURRENT_GB)
    arguments = ocp.args.PyTreeRestore(tree, wanted, partial_restore=True)
    try:
        with _quiet(), ocp.Checkpointer(handler) as checkpointer:
            return checkpointer.restore(path, args=arguments)
    except Exception as error:
        found = cause_of(error)
        if not isinstance(found, _DAMAGE):
            raise
        raise _damaged(path, found) from error


def cause_of(error: Exception) -> BaseException:
    """What Orbax has wrapped in a bare Exception, as it does with arrays that are cut short."""
    return error.__cause__ if type(error) is Exception and error.__cause__ else error


def _damaged(path: epath.Path, error: BaseException) -> UserError:
    require_access(path, error)
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UserError(f"{path}: cannot be read ({reason}); convert or copy the model again")


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax tells the log about every step it takes."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # errors are raised besides
    try:
        yield
    finally:
        logger.setLevel(level)
