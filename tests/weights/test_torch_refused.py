"""PyTorch's files that are refused: code, other formats, impossible tensors, damage."""

import io
import os
import pickle
import random
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from animate_jax.errors import UserError
from animate_jax.weights.torch_file import read_torch_file


def save_pickle(path, data: bytes):
    """An archive with a hand-made pickle and one storage of six float32 values."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("root/data.pkl", data)
        archive.writestr("root/data/0", np.arange(6, dtype=np.float32).tobytes())
        archive.writestr("root/version", "3\n")
    return path


class Storage:
    def __init__(self, kind=torch.FloatStorage, key="0", count=6):
        self.identity = ("storage", kind, key, "cpu", count)


class Tensor:
    """Pickles as a tensor of any description, also of an impossible one."""

    def __init__(self, offset, size, stride, storage=None):
        self.arguments = (storage or Storage(), offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


class DescribingPickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.identity if isinstance(value, Storage) else None


def described(value, protocol=2) -> bytes:
    file = io.BytesIO()
    DescribingPickler(file, protocol).dump(value)
    return file.getvalue()


@pytest.mark.parametrize(
    "value, message",
    [
        ({"a": torch.ones(2), "extra": {"b": torch.ones(2)}}, "'extra' is a dict"),
        ({"a": torch.ones(2), "kind": torch.float32}, "'kind' is a Global"),
        ({"a": torch.ones(2), 7: torch.ones(2)}, "tensor name 7"),
        ({"a": 1}, "holds no named tensors"),
        ([torch.ones(2)], "holds no named tensors"),
        (torch.ones(2), "holds no named tensors"),
        ({"a": torch.ones(2), "s": frozenset({1, 2})}, "frozenset"),
        ({"a": torch.ones(2).to_sparse()}, "torch._utils._rebuild_sparse_tensor"),
        ({"a": np.ones(2)}, r"numpy\S*multiarray\._reconstruct"),
        ({"a": torch.nn.Linear(2, 2)}, r"torch\.nn\.modules\.linear\.Linear"),
        ({"a": torch.view_as_complex(torch.ones(2, 2)).conj()}, "unusual arguments"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, value, message):
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message) as caught:
        read_torch_file(tmp_path / "w.pth")
    assert str(tmp_path / "w.pth") in str(caught.value) and "\n" not in str(caught.value)


def test_notes_beside_tensors_are_left_out(tmp_path):
    config = {"motion": {"version": 3, "sizes": [1, 2.5, (None, True)]}, "name": "v3"}
    torch.save({"w": torch.ones(2), "animatediff_config": config}, tmp_path / "w.pth")
    assert set(read_torch_file(tmp_path / "w.pth")) == {"w"}


@pytest.mark.parametrize("nest", [b")" + b"\x85" * 200_000, b"]" * 200_000 + b"a" * (200_000 - 1)])
def test_nesting_without_bound_does_no_harm(tmp_path, nest):
    beside = {"w": torch.ones(1), "notes": (deep := [])}
    for _ in range(300):
        deep.append(inner := [])
        deep.append(inner)  # twice: 2 ** 300 ways to the innermost
        deep = inner
    deep.append(beside["notes"])
    torch.save(beside, tmp_path / "beside.pth")
    assert set(read_torch_file(tmp_path / "beside.pth")) == {"w"}
    key = save_pickle(tmp_path / "key.pth", b"\x80\x02}" + nest + b"Ns.")
    with pytest.raises(UserError, match="as key"):
        read_torch_file(key)
    value = save_pickle(tmp_path / "value.pth", b"\x80\x02}\x8c\x05model" + nest + b"s.")
    with pytest.raises(UserError, match="holds no named tensors"):
        read_torch_file(value)


def test_other_formats_are_refused_by_name(tmp_path):
    (tmp_path / "bare").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "page").write_text("<!DOCTYPE html><html>sign in</html>")
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    (tmp_path / "empty").write_bytes(b"")
    with tarfile.open(tmp_path / "tar", "w") as archive:
        archive.add(tmp_path / "bare", "data.pkl")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("notes.txt", "hello")
    for name, message in {
        "bare": "bare pickle",
        "page": "web page",
        "pointer": "Git LFS pointer",
        "empty": "not a PyTorch weight file",
        "tar": "tar archive",
        "zip": "not one that torch.save writes",
        "absent": "cannot be read",
    }.items():
        with pytest.raises(UserError, match=message):
            read_torch_file(tmp_path / name)


class Reduced:
    def __init__(self, function, *arguments):
        self.result = function, arguments

    def __reduce__(self):
        return self.result


class HiddenInIdentity(Storage):
    def __init__(self, evil):
        self.identity = ("storage", torch.FloatStorage, evil, "cpu", 6)


def attacks(sentinel):
    """Pickles that run `touch sentinel` when they are unpickled the usual way."""
    command = f"touch '{sentinel}'"
    evil = Reduced(os.system, command)
    text = pickle.BINUNICODE + len(command).to_bytes(4, "little") + command.encode()
    setstate = pickle.SHORT_BINUNICODE + b"\x0c__setstate__"
    return {
        "reduce": described({"a": Tensor(0, (6,), (1,)), "evil": evil}),
        "reduce, protocol 4": described({"evil": evil}, protocol=4),
        "build": b"\x80\x04ccollections\nOrderedDict\n)R}"
        + setstate
        + b"cos\nsystem\nsb"
        + text
        + b"b.",
        "inst": b"\x80\x02(" + text + b"ios\nsystem\n.",
        "obj": b"\x80\x02(cos\nsystem\n" + text + b"o.",
        "identity": described({"a": Tensor(0, (6,), (1,), HiddenInIdentity(evil))}),
        "eval": described(Reduced(eval, f"__import__('os').system({command!r})")),
        "exec, nested": described({"state_dict": {"a": [(Reduced(exec, "import os"), 1)]}}),
        "torch.load": described(Reduced(torch.load, str(sentinel))),
        "dtype called": b"\x80\x02ctorch\nfloat32\n)R.",
        "function changed": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}" + setstate + b"Nsb.",
        "extension": b"\x80\x02\x82\x01.",
        "lines": b"\x80\x04\x8c\x09os\nlines\n\x8c\x09os.system\x93.",
        "attribute path": described({"a": 1}).replace(b"}", b"ctorch\n_utils.os.system\n", 1),
        "lightning": b"\x80\x02cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n)R.",
    }


REFUSED = {
    "reduce": "(posix|nt|os).system",
    "reduce, protocol 4": "(posix|nt|os).system",
    "build": "os.system",
    "inst": "os.system",
    "obj": "os.system",
    "identity": "(posix|nt|os).system",
    "eval": "eval",
    "exec, nested": "exec",
    "torch.load": r"torch.serialization.load",
    "dtype called": r"torch.float32\(\.\.\.\)",
    "function changed": "state of torch._utils._rebuild_tensor_v2",
    "extension": "EXT1",
    "lines": r"os lines \.os\.system",
    "attribute path": "torch._utils.os.system",
    "lightning": "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
}


@pytest.mark.parametrize("attack", list(REFUSED))
def test_code_in_a_file_is_refused_by_name_and_never_runs(tmp_path, attack):
    sentinel = tmp_path / "ran"
    path = save_pickle(tmp_path / "w.pth", attacks(sentinel)[attack])
    with pytest.raises(UserError, match=rf"{REFUSED[attack]}, which is refused.*safetensors"):
        read_torch_file(path)
    assert not sentinel.exists()


@pytest.mark.parametrize("attack", ["reduce, protocol 4", "build", "inst", "obj", "eval"])
def test_the_attacks_would_run_in_an_ordinary_unpickler(tmp_path, attack):
    pickle.loads(attacks(tmp_path / "ran")[attack])
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "tensor, message",
    [
        (Tensor(0, (7,), (1,)), "reaches past"),
        (Tensor(3, (4,), (1,)), "reaches past"),
        (Tensor(0, (2, 3), (4, 1)), "reaches past"),
        (Tensor(10**30, (1,), (1,)), "reaches past"),
        (Tensor(-1, (2,), (1,)), "stride or offset"),
        (Tensor(5, (2,), (-1,)), "stride or offset"),
        (Tensor(0, (-2,), (1,)), "stride or offset"),
        (Tensor(0, (-2, -3), (3, 1)), "stride or offset"),
        (Tensor(0, (2.0,), (1,)), "stride or offset"),
        (Tensor(0, (True,), (1,)), "stride or offset"),
        (Tensor(0, 6, (1,)), "stride or offset"),
        (Tensor(0, (2, 3), (1,)), "2 sizes and 1 strides"),
        (Tensor(0, (1,) * 80, (1,) * 80), "80 sizes"),
        (Tensor(0, (0, 2**62), (1, 1)), "impossible size"),
        (Tensor(0, (2**40,), (0,)), "without bound"),
        (Tensor(0, (6,), (1,), Storage(key="1")), "lacks its storage '1'"),
        (Tensor(0, (6,), (1,), Storage(key="../0")), "lacks its storage"),
        (Tensor(0, (8,), (1,), Storage(count=8)), "24 bytes instead of 32"),
        (Tensor(0, (2,), (1,), Storage(count=2)), "24 bytes instead of 8"),
        (Tensor(0, (6,), (1,), Storage(torch.DoubleStorage)), "24 bytes instead of 48"),
        (Tensor(0, (6,), (1,), Storage(count=-6)), "damaged"),
        (Tensor(0, (6,), (1,), Storage(kind="float")), "damaged"),
    ],
)
def test_impossible_tensors_are_refused_before_reading(tmp_path, tensor, message):
    path = save_pickle(tmp_path / "w.pth", described({"layer.weight": tensor}))
    with pytest.raises(UserError, match=message) as caught:
        read_torch_file(path)
    assert str(path) in str(caught.value)
    assert "damaged" in message or "'layer.weight'" in str(caught.value)


def test_truncated_files_are_errors_wherever_they_end(tmp_path):
    torch.save({f"layer.{i}": torch.randn(40, 40) for i in range(5)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    generator = random.Random(0)
    for end in [0, 1, 4, len(content) - 1, *(generator.randrange(len(content)) for _ in range(20))]:
        (tmp_path / "cut.pth").write_bytes(content[:end])
        with pytest.raises(UserError):
            read_torch_file(tmp_path / "cut.pth")


def test_a_file_that_shrinks_after_opening_is_an_error(tmp_path):
    torch.save({"a": torch.ones(10_000)}, tmp_path / "w.pth")
    tensors = read_torch_file(tmp_path / "w.pth")
    os.truncate(tmp_path / "w.pth", 20_000)
    with pytest.raises(UserError, match="ends inside the tensor 'a'"):
        tensors["a"].read()


def test_damaged_bytes_give_errors_or_tensors_and_nothing_else(tmp_path):
    state = {"model": OrderedDict(a=torch.ones(4, 4).half(), b=torch.nn.Parameter(torch.ones(3)))}
    torch.save(state, tmp_path / "w.pth")
    content = bytearray((tmp_path / "w.pth").read_bytes())
    generator, refused = random.Random(1), 0
    for _ in range(600):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        (tmp_path / "bad.pth").write_bytes(damaged)
        try:
            for tensor in read_torch_file(tmp_path / "bad.pth").values():
                assert tensor.read().nbytes <= 1 << 26
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 100 < refused < 600
