"""Writing PyTorch weight files without PyTorch: the zip archives that `torch.load` reads.

The pickle inside is spelled out opcode by opcode: an OrderedDict from names to tensors, each with a
storage of its own. Storages begin at multiples of 64 bytes, so that PyTorch can map the file.
The bytes depend on nothing but the tensors and their order.
"""

import math
import pickle
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from animate_jax.errors import UserError
from animate_jax.files import replacing
from animate_jax.weights.lazy_tensor import LazyTensor, native_order
from animate_jax.weights.torch_types import STORAGE_DTYPES

_ROOT = "archive"
_ALIGNMENT = 64
_LOCAL_HEADER = 30
_ZIP64_FIELD = 20
# Well below the 2 GiB at which `zipfile` itself would switch, so that the choice is made here.
_ZIP64_FROM = 1 << 30
_PADDING_ID = 0x4246

_STORAGE_NAMES = {dtype: name for name, dtype in STORAGE_DTYPES.items()}
_EMPTY_ORDERED_DICT = (
    pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
)


def write_torch_file(path: str | Path, tensors: Mapping[str, np.ndarray | LazyTensor]) -> None:
    """Write tensors so that `torch.load(path, weights_only=True)` gives an OrderedDict of them.

    Values are arrays or LazyTensors of dtype float16/32/64, bfloat16, int8/16/32/64, uint8, bool or
    complex64/128, of any shape; one at a time is in memory. The file appears whole or not at all.
    Raises UserError for another dtype or where the file cannot be written.
    """
    path = Path(path)
    for name, tensor in tensors.items():
        if _little(tensor.dtype) not in _STORAGE_NAMES:
            raise UserError(f"{path}: {name!r} has dtype {tensor.dtype}, which cannot be written")
    try:
        with replacing(path, parents=False) as temporary, open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                _add(archive, file, "data.pkl", _pickle(tensors))
                _add(archive, file, "byteorder", b"little")
                for key, tensor in enumerate(tensors.values()):
                    _add(archive, file, f"data/{key}", _raw(tensor))
                _add(archive, file, "version", b"3\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def _little(dtype: np.dtype) -> np.dtype:
    return np.dtype(dtype).newbyteorder("=")


def _raw(tensor: np.ndarray | LazyTensor) -> np.ndarray:
    """The values of a tensor as flat uint8, little endian."""
    array = tensor.read() if isinstance(tensor, LazyTensor) else np.asarray(tensor)
    if array.shape != tuple(tensor.shape) or array.dtype != np.dtype(tensor.dtype):
        raise ValueError(f"read {array.dtype}{array.shape}, not {tensor.dtype}{tensor.shape}")
    flat = np.ascontiguousarray(array, _little(array.dtype)).reshape(-1)
    if sys.byteorder == "big":
        flat = native_order(flat.copy(), "little")
    return flat.view(np.uint8)


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes | np.ndarray) -> None:
    info = zipfile.ZipInfo(f"{_ROOT}/{name}")
    info.file_size = len(data)
    zip64 = info.file_size > _ZIP64_FROM
    start = file.tell() + _LOCAL_HEADER + len(info.filename) + (_ZIP64_FIELD if zip64 else 0)
    padding = -start % _ALIGNMENT
    if padding:
        # An extra field has a head of 4 bytes of its own.
        padding += _ALIGNMENT if padding < 4 else 0
        info.extra = struct.pack("<HH", _PADDING_ID, padding - 4) + bytes(padding - 4)
    with archive.open(info, "w", force_zip64=zip64) as entry:
        entry.write(memoryview(data))


def _pickle(tensors: Mapping[str, np.ndarray | LazyTensor]) -> bytes:
    parts = [pickle.PROTO, b"\x02", _EMPTY_ORDERED_DICT, pickle.MARK]
    for key, (name, tensor) in enumerate(tensors.items()):
        parts += [_text(name), _tensor(str(key), tuple(tensor.shape), _little(tensor.dtype))]
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])


def _tensor(key: str, shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    strides = tuple(math.prod(max(n, 1) for n in shape[axis + 1 :]) for axis in range(len(shape)))
    storage = _tuple(
        _text("storage"),
        _global(_STORAGE_NAMES[dtype]),
        _text(key),
        _text("cpu"),
        _whole(math.prod(shape)),
    )
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _whole(0),
        _tuple(*map(_whole, shape)),
        _tuple(*map(_whole, strides)),
        pickle.NEWFALSE,
        _EMPTY_ORDERED_DICT,
    )
    return _global("torch._utils._rebuild_tensor_v2") + arguments + pickle.REDUCE


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE if items else pickle.EMPTY_TUPLE


def _whole(number: int) -> bytes:
    if number < 1 << 31:
        return pickle.BININT + struct.pack("<i", number)
    return pickle.LONG1 + bytes([9]) + number.to_bytes(9, "little")
