"""Entries of a zip archive as byte ranges that can be read in parts.

`zipfile` reads the directory; the data are read here, because a stored entry can be read from any
place in it and because files written with `torch.serialization.set_crc32_options(False)`, which
PyTorch reads, carry checksums that `zipfile` would reject.
"""

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from animate_jax.errors import UserError
from animate_jax.weights.lazy_tensor import read_bytes

_CHUNK = 1 << 20
_LOCAL_HEADER = 30
_ENCRYPTED = 1
# What `zipfile` raises for directories that make no sense.
_DAMAGE = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    OverflowError,
    MemoryError,
    EOFError,
    struct.error,
)


@dataclass(frozen=True)
class Entry:
    """One entry: its bytes start at `start` of the file, `size` is their number once unpacked."""

    path: Path
    name: str
    start: int
    size: int
    packed_size: int
    deflated: bool

    def read_into(self, skip: int, out: np.ndarray, what: str) -> None:
        """Fill the flat uint8 array `out` from byte `skip` of the entry; `what` is for errors."""
        if skip + out.nbytes > self.size:
            raise UserError(f"{self.path}: {what} reaches past the end of the entry {self.name}")
        if self.deflated:
            self._inflate_into(skip, memoryview(out), what)
        else:
            read_bytes(self.path, self.start + skip, out, what)

    def _inflate_into(self, skip: int, view: memoryview, what: str) -> None:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        position, packed = 0, b""
        while view:
            if not packed:
                chunk = np.empty(min(_CHUNK, self.packed_size - position), np.uint8)
                read_bytes(self.path, self.start + position, chunk, what)
                position += chunk.nbytes
                packed = chunk.tobytes()
            try:
                data = inflate.decompress(packed, _CHUNK)
            except zlib.error as error:
                raise UserError(f"{self.path}: {what} is damaged ({error})") from error
            packed = inflate.unconsumed_tail
            if not data and (inflate.eof or (not packed and position == self.packed_size)):
                raise UserError(f"{self.path}: {what} is shorter than the archive says")
            data, skip = data[skip:], max(0, skip - len(data))
            count = min(len(data), len(view))
            view[:count] = data[:count]
            view = view[count:]


def open_archive(path: Path) -> dict[str, Entry]:
    """All entries of a zip file by name, each checked to lie inside the file.

    Raises UserError for a file that is cut off, encrypted, compressed by anything but deflate, or
    that names an entry twice.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            length = file.seek(0, 2)
            entries = {}
            for info in archive.infolist():
                if info.filename in entries:
                    raise UserError(f"{path}: has two entries named {info.filename!r}")
                entries[info.filename] = _locate(path, file, info, length)
            return entries
    except _DAMAGE as error:
        raise UserError(
            f"{path}: is no complete zip archive ({error}); it may be cut off, get it again"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _locate(path: Path, file, info: zipfile.ZipInfo, length: int) -> Entry:
    if info.flag_bits & _ENCRYPTED:
        raise UserError(f"{path}: the entry {info.filename!r} is encrypted; unpack the file first")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{path}: the entry {info.filename!r} uses an unknown compression")
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise UserError(f"{path}: the entry {info.filename!r} is not where the archive says")
    name_length, extra_length = struct.unpack("<HH", header[26:])
    start = info.header_offset + _LOCAL_HEADER + name_length + extra_length
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    if not deflated and info.compress_size != info.file_size:
        raise UserError(f"{path}: the entry {info.filename!r} has two different sizes")
    if start + info.compress_size > length:
        raise UserError(f"{path}: the entry {info.filename!r} is cut off; get the file again")
    return Entry(path, info.filename, start, info.file_size, info.compress_size, deflated)
