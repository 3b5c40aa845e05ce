"""Config files and what the command line changes in them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from animate_jax.errors import UserError
from animate_jax.training.config import load_config, split_overrides

STAGES = sorted(Path("configs").rglob("[a-z]*.py"))


@pytest.mark.parametrize("path", STAGES, ids=str)
def test_shipped_configs_load_locked(path):
    config = load_config(path)
    with pytest.raises(AttributeError):
        config.optimizer.learning_rat = 1.0


def test_overrides_keep_types():
    overrides, rest = split_overrides(
        ["--config.optimizer.learning_rate=1", "--workdir", "w", "--config.seed", "7"]
        + ["--config.data.path=a=b", "--config.mesh.fsdp=4", "--config.data.zoom=(0.5, 1.0)"]
    )
    assert rest == ["--workdir", "w"]
    config = load_config("configs/stage1.py", overrides)
    assert config.optimizer.learning_rate == 1.0
    assert isinstance(config.optimizer.learning_rate, float)
    assert (config.seed, config.data.path, config.mesh.fsdp) == (7, "a=b", 4)
    assert config.data.zoom == (0.5, 1.0)
    assert config.data.batch_size == 64  # as the file says


def test_what_some_configs_do_without_is_replaced_whole():
    config = load_config("configs/tiny_stage2.py")
    assert config.schedule.shared_noise == 1.0
    config = load_config("configs/tiny_stage2.py", ["schedule={'beta_schedule': 'cosine'}"])
    assert config.schedule.to_dict() == {"beta_schedule": "cosine"}
    assert load_config("configs/tiny_stage2.py", ["schedule=None"]).schedule is None
    config = load_config("configs/tiny_stage2.py", ["schedule.shared_noise=0.5"])
    assert config.schedule.shared_noise == 0.5 and config.schedule.prediction == "v"
    with pytest.raises(UserError, match="give a dictionary, or None"):
        load_config("configs/tiny_stage2.py", ["schedule=3"])


@pytest.mark.parametrize(
    "override, message",
    [
        ("optimizer.learning_rat=1", "no such key"),
        ("nothing.here=1", "no such key"),
        ("data=1", "is a section"),
        ("steps=many", "cannot be read as a int"),
        ("steps=1.5", "of type int"),
        ("seed=(1, 2)", "of type int"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(UserError, match=message):
        load_config("configs/stage1.py", [override])


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="no such config .* shipped lie in .*configs/"):
        load_config(tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="no get_config"):
        load_config(tmp_path / "empty.py")
    (tmp_path / "broken.py").write_text("def get_config(:")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_config(tmp_path / "broken.py")


@pytest.mark.parametrize(
    "line, message",
    [
        ("config.stpes = 500", 'mine.py, line 5: .*"stpes" does not exist.*Did you mean "steps"'),
        ("config.validation.evry = 5", '"evry" does not exist'),
        ("config.optimzer.x = 1", 'line 5: AttributeError: .*optimzer.* Did you mean "optimizer"'),
        ("config.steps = 'many'", "line 5: TypeError"),
    ],
)
def test_a_key_that_no_config_has(tmp_path, line, message):
    lines = ["from configs import stage1", "def get_config():", "    config = stage1.get_config()"]
    (tmp_path / "mine.py").write_text("\n".join([*lines, "", f"    {line}", "    return config"]))
    with pytest.raises(UserError, match=message) as error:
        load_config(tmp_path / "mine.py")
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_a_wrong_key_of_a_config_that_is_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    lines = ["from configs import base", "def get_config():", "    base.get_config().stpes = 1"]
    (tmp_path / "what_others_wrote.py").write_text("\n".join(lines))
    (tmp_path / "mine.py").write_text("from what_others_wrote import get_config")
    with pytest.raises(UserError, match='Did you mean "steps"'):
        load_config(tmp_path / "mine.py")


def test_shipped_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    here = load_config("configs/tiny_stage2.py")
    monkeypatch.syspath_prepend(os.getcwd())  # as where the package is installed
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/tiny_stage2.py") == here


def test_a_config_imports_from_the_folder_that_it_lies_in(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("")
    (tmp_path / "configs" / "base.py").write_text("STEPS = 7\n")
    text = "from ml_collections import ConfigDict\nfrom configs.base import STEPS\n"
    text += "def get_config():\n    return ConfigDict({'steps': STEPS})\n"
    (tmp_path / "configs" / "mine.py").write_text(text)
    code = "import sys; from animate_jax.training.config import load_config;"
    code += " print(load_config(sys.argv[1]).steps, len(sys.path))"
    # From here, where there is another configs/.
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "configs" / "mine.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    before = subprocess.run(
        [sys.executable, "-c", "import sys; print(7, len(sys.path))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == before.stdout
