"""Writing safetensors files tensor by tensor; see safetensors_file.py for the format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from animate_jax.errors import UserError
from animate_jax.files import replacing
from animate_jax.weights.lazy_tensor import LazyTensor

_NAMES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}
_ALIGNMENT = 8


def write_safetensors_file(path: str | Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write tensors of float32, float16 or bfloat16; one at a time is in memory.

    The file says that PyTorch wrote it, which transformers asks for. It appears whole or not at
    all. Raises UserError for another dtype or where the file cannot be written.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise UserError(f"{path}: {name!r} has dtype {tensor.dtype}, which cannot be written")
        start, end = end, end + tensor.nbytes
        entry = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
        header[name] = entry
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                array = tensor.read()
                little = array.view(f"u{array.dtype.itemsize}").astype(
                    f"<u{array.dtype.itemsize}", copy=False
                )
                file.write(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
