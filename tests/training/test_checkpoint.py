"""Checkpoints of a small state, without a training."""

import errno
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from animate_jax.errors import UnavailableError, UserError
from animate_jax.training.checkpoint import open_checkpoints, restore, save

STATE = {"kernel": jnp.arange(6000.0)}
SHAPES = jax.eval_shape(lambda: STATE)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A workdir with the checkpoints of steps 2 and 3."""
    workdir = tmp_path_factory.mktemp("written")
    with open_checkpoints(epath.Path(workdir)) as manager:
        for step in (1, 2, 3):
            state = {"kernel": step * STATE["kernel"]}
            assert save(manager, state, step, {"at": step}, {})
    return workdir


def read(workdir, shapes=SHAPES):
    with open_checkpoints(epath.Path(workdir)) as manager:
        return restore(manager, shapes)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        TimeoutError("timed out"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EIO, "in words of its own"),
        PermissionError(errno.EACCES, "Permission denied"),
        ValueError("UNAVAILABLE: Error executing an HTTP request: Could not resolve host"),
    ],
)
def test_what_cannot_be_read_now_is_not_damaged(written, monkeypatch, error):
    def fail(*_, **__):
        raise error

    with open_checkpoints(epath.Path(written)) as manager:
        monkeypatch.setattr(manager, "restore", fail)
        with pytest.raises(UnavailableError, match="checkpoints/3: cannot be read now") as told:
            restore(manager, SHAPES)
    assert told.value.code == 1 and "remove" not in str(told.value)


@pytest.mark.parametrize("lost", ["state", "state/d", "data", "data/metadata", "cut", "cut arrays"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(written, tmp_path, lost):
    broken = shutil.copytree(written, tmp_path / "copy") / "checkpoints" / "3"
    if lost in ("cut", "cut arrays"):
        within = "d" if lost == "cut" else "ocdbt.process_0/d"
        for file in (broken / "state" / within).iterdir():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif (broken / lost).is_dir():
        shutil.rmtree(broken / lost)
    else:
        (broken / lost).write_text("")
    with pytest.raises(UserError, match=r"checkpoints/3: is damaged .* goes on from step 2"):
        read(tmp_path / "copy")
    shutil.rmtree(broken)
    state, position = read(tmp_path / "copy")
    assert position == {"at": 2}
    np.testing.assert_array_equal(state["kernel"], 2 * STATE["kernel"])


def test_another_state_is_no_damage(written):
    with pytest.raises(UserError, match=r"checkpoints/3: does not fit this config"):
        read(written, {"kernel": jax.ShapeDtypeStruct((7,), jnp.float32)})
    with pytest.raises(UserError, match=r"checkpoints/3: does not fit this config"):
        read(written, SHAPES | {"bias": jax.ShapeDtypeStruct((7,), jnp.float32)})


@pytest.mark.parametrize("code", [403, 500])
def test_a_bucket_that_may_not_be_looked_at_is_refused_at_once(monkeypatch, code):
    asked = []

    class Refused(Exception):
        pass

    class Client:
        def get_bucket(self, name):
            asked.append(name)
            error = Refused("no storage.buckets.get access")
            error.code = code
            raise error

    # Stands in for google-cloud-storage, whose errors have their HTTP status as `code`.
    cloud = types.ModuleType("google.cloud")
    cloud.storage = types.ModuleType("google.cloud.storage")
    cloud.storage.Client = Client
    for module in (cloud, cloud.storage):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    refusal = pytest.raises(UserError, match="gs://mine: .*storage.buckets.get.*legacyBucketReader")
    with refusal if code == 403 else pytest.raises(Refused):
        open_checkpoints(epath.Path("gs://mine/stage1"))
    assert asked == ["mine"]
