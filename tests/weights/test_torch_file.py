"""PyTorch's files: read as PyTorch reads them, and written so that PyTorch reads them."""

import collections
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import animate_jax
from animate_jax.errors import UserError
from animate_jax.weights import torch_writer
from animate_jax.weights.torch_file import LazyTensor, read_torch_file, write_torch_file

DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64".split()
READ_ONLY_DTYPES = "complex128 uint16 uint32 uint64 float8_e4m3fn float8_e5m2".split()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def some(dtype: str, *shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100
    return values.to(getattr(torch, dtype))


def assert_equal(ours: dict[str, LazyTensor], theirs: dict[str, torch.Tensor]):
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        array = ours[name].read()
        assert array.shape == ours[name].shape == tuple(tensor.shape)
        assert array.dtype == ours[name].dtype
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch.")
        assert array.nbytes == ours[name].nbytes
        assert array.flags.c_contiguous
        assert array.tobytes() == bits(tensor)


def rewrite(source, target, replace=None, drop=(), compression=zipfile.ZIP_STORED):
    """Copy an archive entry by entry; `replace` maps endings of names to new contents."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            data = old.read(name)
            for ending, change in (replace or {}).items():
                if name.endswith(ending):
                    data = change(data) if callable(change) else change
            if not name.endswith(tuple(drop) or "\0"):
                new.writestr(name, data)
    return target


@pytest.mark.parametrize("dtype", [*DTYPES, *READ_ONLY_DTYPES])
def test_every_dtype_reads_as_saved(tmp_path, dtype):
    state = {"a": some(dtype, 3, 5), "scalar": some(dtype), "empty": some(dtype, 0, 4)}
    torch.save(state, tmp_path / "w.pth")
    assert_equal(read_torch_file(tmp_path / "w.pth"), state)


def test_views_of_shared_storages_read_as_saved(tmp_path):
    base = some("float32", 6, 8, 10)
    state = OrderedDict(
        base=base,
        transposed=base.permute(2, 0, 1),
        sliced=base[1:5:2, ::3, 4:],
        row=base[3],
        column=base[:, 2, 7],
        element=base[5, 7, 9],
        expanded=base[0, :1].expand(4, 10),
        wide=base[:, :1].expand(-1, 3, -1),
        empty_view=base[2:2],
        parameter=torch.nn.Parameter(base[0].half()),
        channels_last=some("float32", 2, 3, 4, 5).to(memory_format=torch.channels_last),
        odd_stride=torch.as_strided(base, (1, 3), (10**12, 5), 7),
    )
    torch.save(state, tmp_path / "w.pth")
    assert_equal(read_torch_file(tmp_path / "w.pth"), state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_modules_state_dict_reads_under_every_pickle_protocol(tmp_path, protocol):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(model.state_dict(), tmp_path / "w.pth", pickle_protocol=protocol)
    assert_equal(read_torch_file(tmp_path / "w.pth"), model.state_dict())


def test_parameters_with_attributes_read(tmp_path):
    parameter = torch.nn.Parameter(some("float32", 3))
    parameter.note = "kept by pickle"
    torch.save({"a": parameter}, tmp_path / "w.pth")
    assert_equal(read_torch_file(tmp_path / "w.pth"), {"a": parameter})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64", "uint8", "float64"])
def test_big_endian_archives_read_as_torch_reads_them(tmp_path, dtype):
    state = {"a": some(dtype, 4, 6)}
    torch.save(state, tmp_path / "little.pth")
    unit = {"bfloat16": 2, "uint8": 1, "float64": 8}.get(dtype, 4)
    path = rewrite(
        tmp_path / "little.pth",
        tmp_path / "big.pth",
        {
            "byteorder": b"big",
            "data/0": lambda data: np.frombuffer(data, f"u{unit}").byteswap().tobytes(),
        },
    )
    assert bits(torch.load(path)["a"]) == bits(state["a"])
    assert_equal(read_torch_file(path), state)


def test_compressed_archives_read(tmp_path):
    ramp = torch.arange(1 << 20, dtype=torch.float32)
    state = {"ramp": ramp, "tail": ramp[-100:], "noise": some("float16", 999)}
    torch.save(state, tmp_path / "plain.pth")
    packed = rewrite(
        tmp_path / "plain.pth", tmp_path / "packed.pth", compression=zipfile.ZIP_DEFLATED
    )
    assert packed.stat().st_size < 0.8 * (tmp_path / "plain.pth").stat().st_size
    assert_equal(read_torch_file(packed), state)


def test_archives_saved_without_checksums_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        state = {"a": some("float32", 50)}
        torch.save(state, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert_equal(read_torch_file(tmp_path / "w.pth"), state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": [1e-5], "m": (2, 3)}},
        lambda state: {"model": state, "step": torch.tensor(4)},
        lambda state: {"epoch": 1, "model": {"state_dict": state}},
        lambda state: {"params": state},
        lambda state: {**state, "epoch": 3, "lr": 0.1, "note": "text", "nothing": None},
        lambda state: {"state_dict": state, "device": torch.device("cpu"), "seen": {1, 2}},
        lambda state: {**state, "bytes": b"abc", "counts": collections.Counter("abca")},
    ],
)
def test_the_state_dict_is_found(tmp_path, wrap):
    state = {"conv.weight": some("float32", 2, 3), "conv.bias": some("float32", 2)}
    torch.save(wrap(state), tmp_path / "w.ckpt")
    torch.load(tmp_path / "w.ckpt", weights_only=True)
    assert_equal(read_torch_file(tmp_path / "w.ckpt"), state)


def test_tensors_with_attributes_are_plain_tensors(tmp_path):
    state = {"weight": some("bfloat16", 2, 3).T, "bias": torch.nn.Parameter(some("float32", 2))}
    for tensor in state.values():
        tensor.note = "kept by some program"
    torch.save(state, tmp_path / "w.pth")
    torch.load(tmp_path / "w.pth", weights_only=True)
    assert_equal(read_torch_file(tmp_path / "w.pth"), state)


class OtherMaker:
    """A tensor with attributes, to be made by what makes no tensors."""

    def __reduce__(self):
        arguments = (torch.device, torch.Tensor, ("cpu",), {"note": 1})
        return torch._tensor._rebuild_from_type_v2, arguments


def test_attributes_on_what_is_no_tensor_are_an_error(tmp_path):
    torch.save({"a": some("float32", 2), "b": OtherMaker()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="_rebuild_from_type_v2 with unusual arguments"):
        read_torch_file(tmp_path / "w.pth")


def test_a_storage_that_unpacks_to_less_than_it_says_is_an_error(tmp_path):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "plain.pth")
    path = rewrite(tmp_path / "plain.pth", tmp_path / "w.pth", {"data/0": b"\0" * 400_000})
    packed = rewrite(path, tmp_path / "packed.pth", compression=zipfile.ZIP_DEFLATED)
    content = packed.read_bytes()
    with zipfile.ZipFile(packed) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
    start = info.header_offset + 30 + len(info.filename)
    emptied = b"\x03\x00" + bytes(info.compress_size - 2)  # an empty deflate stream
    packed.write_bytes(content[:start] + emptied + content[start + info.compress_size :])
    with pytest.raises(UserError, match="'a' is shorter than the archive says"):
        read_torch_file(packed)["a"].read()


def test_missing_and_repeated_entries_are_refused(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "w.pth")
    missing = rewrite(tmp_path / "w.pth", tmp_path / "missing.pth", drop=["data/0"])
    with pytest.raises(UserError, match="'a' lacks its storage"):
        read_torch_file(missing)
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "w.pth", "a") as archive:
        archive.writestr("w/data/0", b"\0" * 12)
    with pytest.raises(UserError, match="two entries named 'w/data/0'"):
        read_torch_file(tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_what_is_written(tmp_path, dtype, mmap):
    state = OrderedDict(
        [("a.weight", some(dtype, 3, 5, 2)), ("größe", some(dtype)), ("none", some(dtype, 0, 7))]
    )
    torch.save(state, tmp_path / "theirs.pth")
    write_torch_file(tmp_path / "ours.pth", read_torch_file(tmp_path / "theirs.pth"))
    loaded = torch.load(tmp_path / "ours.pth", weights_only=True, mmap=mmap)
    assert type(loaded) is OrderedDict and list(loaded) == list(state)
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert loaded[name].is_contiguous() and bits(loaded[name]) == bits(tensor)
    assert_equal(read_torch_file(tmp_path / "ours.pth"), state)


def test_arrays_of_any_layout_and_byte_order_are_written(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {
        "transposed": base.T,
        "sliced": base[::2, 1::2],
        "big": base.astype(">f4"),
        "brain": base.astype(ml_dtypes.bfloat16)[:, ::-1],
        "lazy": LazyTensor.of(base[:, :3]).reshape((3, 4)),
    }
    write_torch_file(tmp_path / "w.pth", arrays)
    loaded = torch.load(tmp_path / "w.pth", weights_only=True)
    arrays["lazy"] = base[:, :3].reshape(3, 4)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name].float().numpy(), array.astype(np.float32))


def test_storages_are_aligned_and_the_bytes_depend_only_on_the_tensors(tmp_path):
    arrays = {f"t{i}": np.full((i, 7), i, np.int16) for i in range(70)}
    write_torch_file(tmp_path / "one.pth", arrays)
    write_torch_file(tmp_path / "two.pth", arrays)
    content = (tmp_path / "one.pth").read_bytes()
    assert content == (tmp_path / "two.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.pth") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            name_length = int.from_bytes(content[info.header_offset + 26 :][:2], "little")
            extra_length = int.from_bytes(content[info.header_offset + 28 :][:2], "little")
            assert (info.header_offset + 30 + name_length + extra_length) % 64 == 0
    with torch.utils.serialization.config.patch("load.calculate_storage_offsets", True):
        loaded = torch.load(tmp_path / "one.pth", weights_only=True, mmap=True)
    assert int(loaded["t69"].sum()) == 69 * 69 * 7


def test_archives_beyond_the_limits_of_plain_zip_load(tmp_path, monkeypatch):
    # The limits are 2 GiB; lowered, they make every entry and its place take the larger form.
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    monkeypatch.setattr(torch_writer, "_ZIP64_FROM", 400)
    arrays = {f"t{i}": np.arange(100 * i, dtype=np.float32) for i in range(8)}
    write_torch_file(tmp_path / "w.pth", arrays)
    assert b"PK\x06\x06" in (tmp_path / "w.pth").read_bytes()
    for mmap in (False, True):
        loaded = torch.load(tmp_path / "w.pth", weights_only=True, mmap=mmap)
        for name, array in arrays.items():
            np.testing.assert_array_equal(loaded[name].numpy(), array)
    ours = read_torch_file(tmp_path / "w.pth")
    assert all(np.array_equal(ours[name].read(), array) for name, array in arrays.items())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "w.pth"
    write_torch_file(path, {"a": np.ones(3, np.float32)})
    before = path.read_bytes()

    def fails():
        raise UserError("the source is cut off")

    broken = LazyTensor((3,), np.dtype(np.float32), fails)
    with pytest.raises(UserError, match="cut off"):
        write_torch_file(path, {"a": np.ones(3, np.float32), "b": broken})
    with pytest.raises(UserError, match="'c' has dtype uint16, which cannot be written"):
        write_torch_file(path, {"c": np.ones(3, np.uint16)})
    with pytest.raises(UserError, match="cannot be written"):
        write_torch_file(tmp_path / "absent" / "w.pth", {"a": np.ones(3)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


MEASURE = """
import os, resource, sys
from animate_jax.weights.sources import open_state_dict
from animate_jax.weights.torch_file import write_torch_file

def peak():
    if not os.path.exists("/proc/self/status"):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    # On Linux getrusage starts from the peak of the process that started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

tensors = open_state_dict(sys.argv[1])
assert sum(tensor.nbytes for tensor in tensors.values()) == 6 * 50_000_000
start = peak()
assert tensors["t3"].read()[-1] == 3
one = peak()
for index in range(6):
    assert tensors[f"t{index}"].read()[0] == index
every = peak()
write_torch_file(sys.argv[1] + ".copy", tensors)
print(one - start, every - start, peak() - start)
"""


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_reading_and_writing_take_the_memory_of_one_tensor(tmp_path, suffix):
    arrays = {f"t{i}": np.full(12_500_000, i, np.float32) for i in range(6)}
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    else:
        from safetensors.numpy import save_file

        save_file(arrays, path)
    command = [sys.executable, "-c", MEASURE, str(path)]
    root = Path(animate_jax.__path__[0]).parent
    printed = subprocess.check_output(command, cwd=root, text=True)
    for extra in map(int, printed.split()):
        assert 0.5 * 50_000_000 < extra < 1.2 * 50_000_000
