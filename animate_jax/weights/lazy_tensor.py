"""A tensor that lies in a file: its shape and dtype are known, its values are read when asked for.

Weight files hold several gigabytes. Everything under `weights` passes dictionaries of `LazyTensor`
around and reads one tensor at a time with ordinary file reads: pages of a memory map would stay
counted as resident memory, a buffer that was handed on is freed.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from animate_jax.errors import UserError


@dataclass(frozen=True)
class LazyTensor:
    """Shape, dtype (numpy's, or one of ml_dtypes) and a function without arguments that reads."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray] = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes that `read()` will take."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Read the values: a C-contiguous array of `shape` and `dtype` in native byte order."""
        array = self.load()
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"read {array.dtype}{array.shape}, not {self.dtype}{self.shape}")
        return array

    def reshape(self, shape: tuple[int, ...]) -> "LazyTensor":
        """The same values under another shape of equal size; nothing is read."""
        shape = tuple(shape)
        if math.prod(shape) != math.prod(self.shape):
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return LazyTensor(shape, self.dtype, partial(_read_reshaped, self, shape))

    def counted(self, bar: tqdm) -> "LazyTensor":
        """The same; reading it advances the bar by its bytes."""
        return LazyTensor(self.shape, self.dtype, partial(_read_counted, self, bar))

    @classmethod
    def of(cls, array: np.ndarray) -> "LazyTensor":
        """Wrap an array that is in memory already."""
        return cls(array.shape, array.dtype, partial(_contiguous, array))


def read_bytes(path: Path, start: int, out: np.ndarray, what: str) -> None:
    """Fill `out` (a flat uint8 array) from byte `start` of a file; `what` names it in errors."""
    view = memoryview(out)
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            while view:
                count = file.readinto(view)
                if not count:
                    raise UserError(
                        f"{path}: ends inside {what}; the file is cut off, get it again"
                    )
                view = view[count:]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def native_order(array: np.ndarray, byteorder: str) -> np.ndarray:
    """Turn values that were stored "little" or "big" into the machine's order, in place."""
    unit = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    if byteorder != sys.byteorder and unit > 1:
        array.view(f"u{unit}").byteswap(inplace=True)
    return array


def _read_counted(tensor: LazyTensor, bar: tqdm) -> np.ndarray:
    array = tensor.read()
    bar.update(array.nbytes)
    return array


def _read_reshaped(tensor: LazyTensor, shape: tuple[int, ...]) -> np.ndarray:
    return tensor.read().reshape(shape)


def _contiguous(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(array.shape)
