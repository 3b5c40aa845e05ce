"""Checkpoints of a small state, without a training."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from animate_jax.errors import UserError
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


@pytest.mark.parametrize("lost", ["state", "state/d", "data", "data/metadata", "cut"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(written, tmp_path, lost):
    broken = shutil.copytree(written, tmp_path / "copy") / "checkpoints" / "3"
    if lost == "cut":
        for file in (broken / "state" / "d").iterdir():
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
