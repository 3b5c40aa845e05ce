"""Reading safetensors files tensor by tensor.

The format: 8 bytes with the length of a JSON header, the header, then the values, little endian.
The header gives dtype, shape and byte range (from the end of the header) of every tensor. Read here
rather than by the safetensors package, which maps the file into memory.
"""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from animate_jax.errors import UserError
from animate_jax.weights.lazy_tensor import LazyTensor, native_order, read_bytes

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "C64": np.complex64,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_LARGEST_HEADER = 100_000_000
_LARGEST_RANK = 32


def read_safetensors_file(path: str | Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file by name; values are read from the file when asked for.

    Raises UserError for a file that is cut off, inconsistent or of an unknown dtype.
    """
    path = Path(path)
    header, start, end = _header(path)
    return {
        name: _tensor(path, name, entry, start, end)
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The parsed header, and where in the file the values start and end."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            end = file.seek(0, 2)
            if end < 8 or length > min(_LARGEST_HEADER, end - 8):
                raise UserError(f"{path}: is no complete safetensors file; get it again")
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        header = json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: has a damaged safetensors header ({error})") from error
    if type(header) is not dict:
        raise UserError(f"{path}: has a damaged safetensors header (not an object)")
    return header, 8 + length, end


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _tensor(path: Path, name: str, entry: Any, start: int, end: int) -> LazyTensor:
    shape, offsets = (
        (entry.get("shape"), entry.get("data_offsets")) if type(entry) is dict else (None, None)
    )
    for numbers in (shape, offsets):
        if type(numbers) is not list or any(type(n) is not int or n < 0 for n in numbers):
            raise UserError(f"{path}: the tensor {name!r} has a damaged shape or position")
    type_name = str(entry.get("dtype"))
    if type_name not in _DTYPES:
        raise UserError(f"{path}: the tensor {name!r} has the unknown dtype {type_name[:20]!r}")
    dtype = np.dtype(_DTYPES[type_name])
    if len(offsets) != 2 or len(shape) > _LARGEST_RANK:
        raise UserError(f"{path}: the tensor {name!r} has a damaged shape or position")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{path}: the tensor {name!r} has a length that is not that of its shape")
    if start + offsets[1] > end:
        raise UserError(f"{path}: ends before the tensor {name!r} does; get the file again")
    read = partial(_read, path, start + offsets[0], tuple(shape), dtype, f"the tensor {name!r}")
    return LazyTensor(tuple(shape), dtype, read)


def _read(path: Path, start: int, shape: tuple[int, ...], dtype: np.dtype, what: str) -> np.ndarray:
    array = np.empty(shape, dtype)
    flat = array.reshape(-1)
    read_bytes(path, start, flat.view(np.uint8), what)
    return native_order(flat, "little").reshape(shape)
