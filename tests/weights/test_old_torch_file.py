"""Files of PyTorch before version 1.6: read as PyTorch reads them, and refused for code."""

import collections
import io
import pickle
import struct

import numpy as np
import pytest
import torch

from animate_jax.errors import UserError
from animate_jax.weights.torch_file import read_torch_file


def save(path, value):
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize("dtype", "float64 float32 float16 bfloat16 int64 int32 uint8 bool".split())
def test_values_are_those_of_torch(tmp_path, dtype):
    values = (torch.arange(60).reshape(3, 4, 5) % 7).to(getattr(torch, dtype))
    state = {"a": values, "turned": values.permute(2, 0, 1), "part": values[1:, ::2]}
    state["other"] = values.clone()
    found = read_torch_file(save(tmp_path / "w.pth", state))
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert str(found[name].dtype) == dtype
        expected = tensor.to(torch.float64).numpy()
        np.testing.assert_array_equal(found[name].read().astype(np.float64), expected)


def test_modules_state_under_a_usual_key(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 3), torch.nn.BatchNorm3d(3))
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.ones(1, 2, 4, 4, 4)).sum().backward()
    optimizer.step()
    state = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    whole = {"epoch": 3, "arch": "r", "state_dict": state, "optimizer": optimizer.state_dict()}
    found = read_torch_file(save(tmp_path / "w.pth", whole))
    assert list(found) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name].read(), tensor.numpy())


class _OldParameter:
    """Pickles as parameters did before version 0.4: a class, called with a tensor, and a state."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        return (
            torch.nn.parameter.Parameter,
            (self.tensor,),
            (True, False, collections.OrderedDict()),
        )


def test_parameters_of_the_first_versions(tmp_path):
    tensor = torch.arange(6.0).reshape(2, 3)
    found = read_torch_file(save(tmp_path / "w.pth", {"w": _OldParameter(tensor)}))
    np.testing.assert_array_equal(found["w"].read(), tensor.numpy())


class _Command:
    def __reduce__(self):
        return print, ("ran",)


def test_code_is_refused_by_name_and_not_run(tmp_path, capsys):
    path = save(tmp_path / "w.pth", {"w": torch.ones(2), "more": _Command()})
    with pytest.raises(UserError, match="print"):
        read_torch_file(path)
    # Also where the format has its own facts.
    data = path.read_bytes()
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    assert data.startswith(head)
    (tmp_path / "facts.pth").write_bytes(head + pickle.dumps(_Command(), 2))
    with pytest.raises(UserError, match="print"):
        read_torch_file(tmp_path / "facts.pth")
    assert "ran" not in capsys.readouterr().out


def test_every_cut_is_noticed(tmp_path):
    data = save(tmp_path / "w.pth", {"a": torch.ones(3), "b": torch.zeros(2, 2)}).read_bytes()
    cut = tmp_path / "cut.pth"
    for length in range(14, len(data)):
        cut.write_bytes(data[:length])
        with pytest.raises(UserError, match="cut.pth"):
            read_torch_file(cut)


def test_counts_that_differ_are_refused(tmp_path):
    path = save(tmp_path / "w.pth", {"a": torch.ones(3)})
    data = path.read_bytes()
    assert data[-20:-12] == struct.pack("<q", 3)
    path.write_bytes(data[:-20] + struct.pack("<q", 2) + data[-12:])
    with pytest.raises(UserError, match="damaged"):
        read_torch_file(path)
    file = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1002):
        pickle.dump(value, file, 2)
    path.write_bytes(file.getvalue())
    with pytest.raises(UserError, match="unknown version"):
        read_torch_file(path)


def test_damage_is_read_or_refused(tmp_path):
    """Whatever bytes change: values come, or one line, and never another error."""
    data = save(tmp_path / "w.pth", {"a": torch.ones(3), "b": torch.zeros(2, 2)}).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.pth"
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for place in rng.integers(14, len(data), 2):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            for tensor in read_torch_file(path).values():
                tensor.read()
        except UserError:
            refused += 1
    assert refused > 100
