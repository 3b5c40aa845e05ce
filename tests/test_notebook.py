"""The Colab notebook: its first part runs here, the commands of its second part exist."""

import os
import pathlib
import shlex
import sys

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from animate_jax.cli import make_parser
from animate_jax.video.reading import read_frames

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / "notebooks" / "animate_colab.ipynb", 4)


def is_released(cell):
    return "released" in cell.metadata.get("tags", ())


def test_the_first_part_runs(notebook, tmp_path, monkeypatch):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    programs = pathlib.Path(sys.executable).parent  # where `animate-jax` is
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    notebook.cells = [cell for cell in notebook.cells if not is_released(cell)]
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    video = np.stack(list(read_frames(tmp_path / "demo.mp4")))
    assert video.shape == (24, 128, 3 * 128, 3)
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    assert "<video" in last.outputs[0]["data"]["text/html"]


def test_commands_of_the_released_part(notebook):
    lines = "\n".join(cell.source for cell in notebook.cells if is_released(cell))
    commands = lines.replace("\\\n", " ").splitlines()
    commands = [line.strip().removeprefix("!") for line in commands if line.strip().startswith("!")]
    assert len(commands) == 2
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "animate-jax"
        make_parser().parse_args(arguments)
