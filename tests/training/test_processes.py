"""Killed, joined by a second process, abandoned by it: a run ends with the same numbers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from quick_training import command

from animate_jax.training.metrics import read_metrics

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from interruptions import compare, interrupt  # noqa: E402

PATIENCE = 900  # seconds for a run that takes twenty on an idle machine


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    root, tests = Path(__file__).parents[2], Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (root, tests))))


def test_killed_twice_it_ends_with_the_same_parameters(records, tmp_path):
    assert interrupt(command(records, "steps=40"), tmp_path, kills=2, seed=1)


def start(arguments, workdir, devices, process=None, address=None):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    arguments = [*arguments, "--workdir", str(workdir)]
    if process is not None:
        arguments += ["--coordinator", address, "--processes", "2", "--process", str(process)]
    # A file, for a pipe that nobody reads would fill up and stop the process.
    output = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(arguments, env=environment, stdout=output, stderr=output)
    process.told = lambda: (output.seek(0), output.read())[1]
    return process


def start_pair(arguments, workdir):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    return [start(arguments, workdir, 4, number, address) for number in range(2)]


def losses(workdir):
    return [row["loss"] for row in read_metrics(workdir)]


def test_two_processes_are_as_one_and_one_alone_does_not_hang(records, tmp_path):
    arguments = command(records, "steps=60", "checkpoint_every=20")
    one = start(arguments, tmp_path / "one", 8)
    assert one.wait(PATIENCE) == 0, one.told()
    # With layers split over both processes, these hold the same rows.
    for name, mesh in (("pair", ()), ("split", ("--config.mesh.tensor=8",))):
        for process in start_pair([*arguments, *mesh], tmp_path / name):
            assert process.wait(PATIENCE) == 0, process.told()
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-6)
    assert len(losses(tmp_path / "one")) == 60

    first, second = start_pair(arguments, tmp_path / "alone")
    checkpoints = tmp_path / "alone" / "checkpoints"
    while not (checkpoints.exists() and any(p.name.isdecimal() for p in checkpoints.iterdir())):
        assert first.poll() is None, first.told()
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    assert first.wait(90) != 0
    assert time.monotonic() - killed < 60
    assert first.returncode in (75, -signal.SIGABRT), first.told()  # which `watch` starts again
    assert "process" in first.told()

    # Told to end before it has gone on by a step, a run ends after one.
    shutil.copytree(tmp_path / "alone", tmp_path / "told")
    pair = start_pair([*arguments, "--config.steps=1000000"], tmp_path / "told")
    while "parameters learn" not in pair[0].told():
        assert pair[0].poll() is None, pair[0].told()
        time.sleep(0.01)
    for process in pair:
        process.send_signal(signal.SIGTERM)
    for process in pair:
        assert process.wait(PATIENCE) == 143, process.told()
    assert "told to end after step" in pair[0].told()

    pair = start_pair(arguments, tmp_path / "alone")
    for process in pair:
        assert process.wait(PATIENCE) == 0, process.told()
    assert compare(tmp_path / "pair", tmp_path / "alone")


def test_one_that_fails_alone_ends_at_once_with_its_own_code(tmp_path):
    script = tmp_path / "one_of_two.py"
    script.write_text(
        "import argparse, sys, time, jax\n"
        "from animate_jax.commands.run import run\n"
        "from animate_jax.errors import UserError\n"
        "options = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "number = int(options['--process'])\n"
        "jax.distributed.initialize(options['--coordinator'], 2, number)\n"
        "def work(_):\n"
        "    if number == 1:\n"
        "        raise UserError('clip 7 does not decode')\n"
        "    time.sleep(200)\n"
        "sys.exit(run(argparse.Namespace(run=work, debug=False), 'train'))\n"
    )
    first, second = start_pair([sys.executable, str(script)], tmp_path)
    try:
        # At its end JAX would wait for the first, and abort after five minutes.
        assert second.wait(150) == 2, second.told()
        assert "error: clip 7 does not decode" in second.told()
    finally:
        first.kill()


def test_it_goes_on_with_another_number_of_devices(records, tmp_path):
    arguments = command(records, "mesh.fsdp=4", "mesh.data=-1", "fsdp_min_size=1")
    whole = start([*arguments, "--config.steps=8"], tmp_path / "whole", 8)
    assert whole.wait(PATIENCE) == 0, whole.told()
    for steps, devices in ((4, 8), (6, 4), (8, 8)):
        part = start([*arguments, f"--config.steps={steps}"], tmp_path / "parts", devices)
        assert part.wait(PATIENCE) == 0, part.told()
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
