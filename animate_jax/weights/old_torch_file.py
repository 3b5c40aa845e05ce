"""The layout of `torch.save` files from before PyTorch 1.6: pickles, then storages.

Five pickles follow each other: a magic number, the version of the format, facts about the machine,
the value itself, and the keys of its storages. Then comes every storage in the order of the keys:
the number of its values as a 64-bit integer, and the values, little-endian. Networks that metrics
use (LPIPS, the Inception of FID, Kinetics networks) were published in this layout.
"""

import io
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from animate_jax.errors import UserError
from animate_jax.weights.data_pickle import (
    PickleDamaged,
    PickleRefused,
    Vocabulary,
    read_pickle,
)

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
OLD_MAGIC = pickle.dumps(_MAGIC, 2)  # how such a file begins


class Storage(Protocol):
    """What the value's pickle says of a storage; `dtype` is None where it does not say."""

    dtype: np.dtype | None
    count: int


def read_old_file(path: Path, vocabulary: Vocabulary, limit: int) -> tuple[Any, tuple]:
    """The value of a file, and (keys of the storages, byte where the first one begins).

    At most `limit` bytes of pickles are read. Raises PickleRefused and PickleDamaged.
    """
    with open(path, "rb") as file:
        head = io.BytesIO(file.read(limit))
    plain = Vocabulary(knows=lambda name: False, call=_no_call, stored=_no_call)
    if read_pickle(head, plain) != _MAGIC or read_pickle(head, plain) != _VERSION:
        raise PickleDamaged("an unknown version of the format")
    read_pickle(head, plain)
    value = read_pickle(head, vocabulary)
    keys = read_pickle(head, plain)
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise PickleDamaged("no list of storages")
    return value, (keys, head.tell())


def locate_storages(
    path: Path, places: tuple[Iterable[str], int], storages: Mapping[str, Storage]
) -> dict[str, tuple[int, int]]:
    """{key: (byte where its values begin, their number)}; `places` as read_old_file returns them.

    Raises UserError where the file has other storages than its value speaks of.
    """
    keys, position = places
    found = {}
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        for key in keys:
            storage = storages.get(key)
            if storage is None or storage.dtype is None or key in found:
                raise UserError(f"{path}: its storage {key!r} belongs to no tensor; get it again")
            file.seek(position)
            count = int.from_bytes(file.read(8), "little")
            start, size = position + 8, count * storage.dtype.itemsize
            if count != storage.count or start + size > length:
                raise UserError(f"{path}: is cut off or damaged; get the file again")
            found[key] = start, count
            position = start + size
    return found


def _no_call(*_):
    raise PickleRefused("an object among the file's own facts")
