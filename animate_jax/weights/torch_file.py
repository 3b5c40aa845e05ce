"""Reading PyTorch weight files without PyTorch: what `torch.save` writes.

Since version 1.6 that is a zip archive of `<root>/data.pkl`, a pickle that describes every tensor
as a strided window onto a storage, and the raw storages as `<root>/data/<key>`. Before, the same
pickle and the storages stood one after the other in a plain file (see `old_torch_file`). The pickle
is interpreted as data (see `data_pickle`): names other than those of tensors, storages and dtypes
are refused and nothing in the file is ever run. `write_torch_file` is the way back.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from animate_jax.errors import UserError
from animate_jax.weights.archive import Entry, open_archive
from animate_jax.weights.data_pickle import (
    Global,
    PickleDamaged,
    PickleRefused,
    Vocabulary,
    read_pickle,
)
from animate_jax.weights.lazy_tensor import LazyTensor, native_order
from animate_jax.weights.old_torch_file import OLD_MAGIC, locate_storages, read_old_file
from animate_jax.weights.torch_types import STORAGE_DTYPES, TENSOR_DTYPES, UNTYPED_STORAGES
from animate_jax.weights.torch_writer import write_torch_file

__all__ = ["LazyTensor", "read_torch_file", "write_torch_file"]

# Keys under which training programs keep the state dict, most specific first.
_WRAPPERS = "state_dict model_state_dict model module params params_ema weights net".split()
_WRAPPER_DEPTH = 3

_LARGEST_PICKLE = 1 << 28
_LARGEST_SIZE = 1 << 48
_LARGEST_RANK = 32
# A stride of 0 lets a small storage stand for any number of values.
_LARGEST_EXPANSION = 1 << 26

_ORDERED_DICT = "collections.OrderedDict"
_SIZE = "torch.Size"
_PARAMETERS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",  # before version 0.4
)
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_TYPED_TENSOR = "torch._utils._rebuild_tensor_v3"
# A tensor that has attributes: how it is made, its class, the arguments for that, the attributes.
_WITH_ATTRIBUTES, _TENSOR = "torch._tensor._rebuild_from_type_v2", "torch.Tensor"
# What torch.load's safe mode takes besides; no weights, so nothing is made of them.
_BESIDE = (
    "torch.device",
    "collections.Counter",
    "_codecs.encode",  # bytes
    "__builtin__.set",
    "builtins.set",
)
_NAMES = frozenset(
    [*_BESIDE, _ORDERED_DICT, _SIZE, *_PARAMETERS, *_TENSORS, _TYPED_TENSOR]
    + [_WITH_ATTRIBUTES, _TENSOR]
    + [*STORAGE_DTYPES, *UNTYPED_STORAGES, *TENSOR_DTYPES]
)

_SAVE_AGAIN = "save it again as safetensors and use that"
OTHER_FORMATS = (
    (b"\x80", f"is a bare pickle; {_SAVE_AGAIN}"),
    (b"<", "is a web page, not weights; download the file itself"),
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the weights themselves; get them with: git lfs pull",
    ),
)


@dataclass(frozen=True)
class _Storage:
    """Raw values outside the pickle; `dtype` is None where the tensor says it."""

    key: str
    dtype: np.dtype | None
    count: int


@dataclass(frozen=True)
class _Window:
    """A tensor as the file describes it, not yet checked: lengths in elements of `dtype`."""

    storage: _Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Elements from the first to the last one, both included."""
        steps = zip(self.shape, self.strides, strict=True)
        return 1 + sum((n - 1) * stride for n, stride in steps) if self.size else 0


def read_torch_file(path: str | Path) -> dict[str, LazyTensor]:
    """The tensors of a `torch.save` file by name; values are read from the file when asked for.

    The state dict may be the file's value or stand under a usual key ("state_dict", "model", ...);
    what is beside it is ignored, and so are numbers, strings, None, devices and containers of such
    within it. dtypes: floats including bfloat16 and float8, integers, bool,
    complex. Raises UserError for another format, for a file that is cut off or inconsistent, and
    for one that names any Python object beyond tensors and containers.
    """
    path = Path(path)
    if _check_format(path).startswith(OLD_MAGIC):
        value, entries = _open_old(path)
        windows = _find_state_dict(path, value)
        return {
            name: _lazy(path, name, window, entries.get(window.storage.key), "little")
            for name, window in windows.items()
        }
    entries = open_archive(path)
    roots = [n[: -len("data.pkl")] for n in entries if n.split("/", 1)[-1] == "data.pkl"]
    if len(roots) != 1:
        raise UserError(f"{path}: is a zip archive but not one that torch.save writes")
    (root,) = roots
    byteorder = _small_entry(entries.get(f"{root}byteorder"), 16).decode("latin-1") or "little"
    if byteorder not in ("little", "big"):
        raise UserError(f"{path}: has the unknown byte order {byteorder!r}")
    value = _unpickle(path, _small_entry(entries[f"{root}data.pkl"], _LARGEST_PICKLE))
    windows = _find_state_dict(path, value)
    return {
        name: _lazy(path, name, window, entries.get(f"{root}data/{window.storage.key}"), byteorder)
        for name, window in windows.items()
    }


def _check_format(path: Path) -> bytes:
    """The first bytes of a file of either format."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if head.startswith((b"PK\x03\x04", OLD_MAGIC)):
        return head
    what = "is a tar archive" if head[257:262] == b"ustar" else "is not a PyTorch weight file"
    what = f"{what}; {_SAVE_AGAIN}"
    for magic, description in OTHER_FORMATS:
        if head.startswith(magic):
            what = description
    raise UserError(f"{path}: {what}")


def _open_old(path: Path) -> tuple[Any, dict[str, Entry]]:
    """The value of a file from before version 1.6, and its storages by key."""
    storages: dict[str, _Storage] = {}

    def stored(identity):
        *identity, view = identity
        if view is not None:
            raise ValueError("a storage that is a view of another")
        storage = _stored(identity)
        return storages.setdefault(storage.key, storage)

    vocabulary = Vocabulary(_NAMES.__contains__, _call, stored, stateless=(_Window,))
    with _naming(path):
        value, places = read_old_file(path, vocabulary, _LARGEST_PICKLE)
    entries = {}
    for key, (start, count) in locate_storages(path, places, storages).items():
        size = count * storages[key].dtype.itemsize
        entries[key] = Entry(path, key, start, size, size, False)
    return value, entries


def _small_entry(entry: Entry | None, limit: int) -> bytes:
    if entry is None:
        return b""
    if entry.size > limit:
        raise UserError(f"{entry.path}: the entry {entry.name!r} is too large ({entry.size} bytes)")
    data = np.empty(entry.size, np.uint8)
    entry.read_into(0, data, f"the entry {entry.name!r}")
    return data.tobytes()


def _unpickle(path: Path, data: bytes) -> Any:
    vocabulary = Vocabulary(_NAMES.__contains__, _call, _stored, stateless=(_Window,))
    with _naming(path):
        return read_pickle(data, vocabulary)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns what is wrong with a pickle into a message about the file."""
    try:
        yield
    except PickleRefused as refused:
        raise UserError(
            f"{path}: contains the Python object {_one_line(refused)}, which is refused because "
            "loading such objects runs code from the file; save only the weights, as safetensors"
        ) from refused
    except PickleDamaged as damaged:
        raise UserError(
            f"{path}: its list of tensors is damaged ({_one_line(damaged)}); get the file again"
        ) from damaged


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _call(name: str, arguments: tuple) -> Any:
    if name == _ORDERED_DICT:
        return dict(*arguments) if _are_pairs(arguments) else _wrong(name)
    if name == _SIZE:
        return (
            tuple(*arguments) if all(type(a) in (list, tuple) for a in arguments) else _wrong(name)
        )
    if name in _BESIDE:
        return None
    if name in _PARAMETERS:
        return arguments[0] if type(arguments[0]) is _Window else _wrong(name)
    if name == _WITH_ATTRIBUTES:
        made, _, made_of, _ = arguments
        plain = type(made) is Global and made.name in (*_TENSORS, _TYPED_TENSOR)
        return _call(made.name, made_of) if plain and type(made_of) is tuple else _wrong(name)
    if name in _TENSORS:
        storage, offset, shape, strides, *rest = arguments
        metadata = rest[2] if len(rest) > 2 else None
        dtype = storage.dtype if type(storage) is _Storage else None
    elif name == _TYPED_TENSOR:
        storage, offset, shape, strides, _, _, dtype, *rest = arguments
        metadata = rest[0] if rest else None
        dtype = TENSOR_DTYPES.get(dtype.name) if type(dtype) is Global else None
    else:
        raise PickleRefused(f"{name}(...)")
    if dtype is None or metadata or type(storage) is not _Storage:
        _wrong(name)
    return _Window(storage, dtype, offset, shape, strides)


def _wrong(name: str) -> Any:
    raise ValueError(f"{name} with unusual arguments")


def _are_pairs(arguments: tuple) -> bool:
    pairs = arguments[0] if arguments else []
    return (
        len(arguments) <= 1
        and type(pairs) is list
        and all(
            type(p) in (list, tuple) and len(p) == 2 and type(p[0]) in (str, int) for p in pairs
        )
    )


def _stored(identity: Any) -> _Storage:
    kind, storage_type, key, _, count = identity
    if kind != "storage" or type(storage_type) is not Global or type(key) is not str:
        raise ValueError("an unknown kind of persistent object")
    if storage_type.name not in STORAGE_DTYPES and storage_type.name not in UNTYPED_STORAGES:
        raise ValueError(f"{storage_type.name} is no storage")
    if type(count) is not int or not 0 <= count <= _LARGEST_SIZE:
        raise ValueError("a storage without a proper length")
    return _Storage(key, STORAGE_DTYPES.get(storage_type.name), count)


def _find_state_dict(path: Path, value: Any) -> dict[str, _Window]:
    for _ in range(_WRAPPER_DEPTH):
        inner = [value[k] for k in _WRAPPERS if type(value) is dict and _is_wrapped(value.get(k))]
        if not inner:
            break
        value = inner[0]
    if not _holds_tensors(value):
        raise UserError(f"{path}: holds no named tensors; a state dict is needed")
    windows = {}
    for name, entry in value.items():
        if type(name) is not str:
            raise UserError(f"{path}: has the tensor name {name!r}, which is not a string")
        if type(entry) is _Window:
            windows[name] = entry
        elif _hides_tensors(entry):
            raise UserError(
                f"{path}: {name!r} is a {type(entry).__name__}, not a tensor; save only the weights"
            )
    return windows


def _hides_tensors(entry: Any) -> bool:
    """Whether what lies beside tensors is more than a note, such as a dict of settings."""
    waiting, seen = [entry], set()  # no recursion: containers may hold each other, or themselves
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if type(one) is dict:
            waiting += one.values()
        elif type(one) in (list, tuple):
            waiting += one
        elif not (one is None or type(one) in (bool, int, float, str)):
            return True
    return False


def _holds_tensors(value: Any) -> bool:
    return type(value) is dict and any(type(entry) is _Window for entry in value.values())


def _is_wrapped(value: Any) -> bool:
    """Whether this is a state dict, or a dict that keeps one under a usual key."""
    return _holds_tensors(value) or (
        type(value) is dict and any(_holds_tensors(value.get(key)) for key in _WRAPPERS)
    )


def _lazy(
    path: Path, name: str, window: _Window, entry: Entry | None, byteorder: str
) -> LazyTensor:
    problem = _problem(window, entry)
    if problem:
        raise UserError(f"{path}: the tensor {name!r} {problem}; the file is damaged, get it again")
    read = partial(_read_window, entry, window, byteorder, f"the tensor {name!r}")
    return LazyTensor(window.shape, window.dtype, read)


def _problem(window: _Window, entry: Entry | None) -> str | None:
    """What is wrong with a tensor's description, if anything is."""
    shape, strides, storage = window.shape, window.strides, window.storage
    for numbers in (shape, strides, (window.offset,)):
        if type(numbers) is not tuple or any(type(n) is not int or n < 0 for n in numbers):
            return "has a size, stride or offset that is not a whole number from 0 up"
    if len(shape) != len(strides) or len(shape) > _LARGEST_RANK:
        return f"has {len(shape)} sizes and {len(strides)} strides"
    if math.prod(max(n, 1) for n in shape) > _LARGEST_SIZE:
        return "has an impossible size"
    if entry is None:
        return f"lacks its storage {storage.key!r}"
    itemsize = window.dtype.itemsize
    stored = storage.count * (storage.dtype.itemsize if storage.dtype else 1)
    if entry.size != stored:
        return f"has a storage of {entry.size} bytes instead of {stored}"
    if window.size and (window.offset + window.span) * itemsize > stored:
        return f"reaches past its storage of {stored} bytes"
    if window.size * itemsize > max(stored, _LARGEST_EXPANSION):
        return "repeats its storage without bound"
    return None


def _read_window(entry: Entry, window: _Window, byteorder: str, what: str) -> np.ndarray:
    flat = np.empty(window.span, window.dtype)
    entry.read_into(window.offset * flat.itemsize if window.size else 0, flat.view(np.uint8), what)
    native_order(flat, byteorder)
    # The stride of an axis of length 1 may be any number.
    used = [(n, stride) for n, stride in zip(window.shape, window.strides, strict=True) if n != 1]
    shape, strides = [n for n, _ in used], [stride for _, stride in used]
    packed = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if window.size and strides != packed:
        steps = [stride * flat.itemsize for stride in strides]
        flat = np.lib.stride_tricks.as_strided(flat, shape, steps).copy(order="C")
    return flat.reshape(window.shape)
