"""The loop with a loss that compiles at once: going on, stopping, what is kept and told."""

import argparse
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from quick_training import CONFIG, LEARNED, quick_loss

from animate_jax.cli import main
from animate_jax.commands.run import run
from animate_jax.errors import PartnerLost, Terminated, UserError, UserNote
from animate_jax.training import checkpoint
from animate_jax.training import train as loop
from animate_jax.training.checkpoint import latest_step, stored_config
from animate_jax.training.config import load_config, workdir_config
from animate_jax.training.metrics import MetricsWriter, read_metrics
from animate_jax.training.stages import Stage
from animate_jax.weights.model_directory import finished_step, load_model, model_directory


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(Stage, "loss", property(lambda stage: quick_loss))


@pytest.fixture
def hears_interrupts():
    """As at a terminal; what runs in the background of a script ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def config(records, *overrides):
    return load_config(
        CONFIG,
        [f"data.path={records}", LEARNED, *overrides],
    )


def kernel(workdir):
    _, params = load_model(workdir / "model", components=("pose_guider",))
    return np.asarray(params["pose_guider"]["conv_in"]["kernel"])


def losses(workdir):
    return {row["step"]: row["loss"] for row in read_metrics(workdir) if "loss" in row}


def test_going_on_is_as_if_nothing_had_happened(quick, records, tmp_path, monkeypatch):
    loop.train(config(records), tmp_path / "whole", progress=False)
    assert sorted(losses(tmp_path / "whole")) == list(range(1, 13))

    class Died(Exception):
        pass

    with monkeypatch.context() as patch:  # the first part ends between two checkpoints
        patch.setattr(loop, "training_batches", dying_after(loop.training_batches, 7, Died))
        with pytest.raises(Died):
            loop.train(config(records), tmp_path / "parts", progress=False)
    loop.train(config(records), tmp_path / "parts", progress=False)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert np.array_equal(kernel(tmp_path / "parts"), kernel(tmp_path / "whole"))
    assert not np.array_equal(kernel(tmp_path / "whole"), 0)


def dying_after(make, count, error):
    def wrapped(*arguments, **options):
        batches = make(*arguments, **options)
        take, taken = batches.__next__, []

        class Dying:
            def __next__(self):
                taken.append(1)
                if len(taken) > count:
                    raise error
                return take()

            def __getattr__(self, name):
                return getattr(batches, name)

        return Dying()

    return wrapped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first(quick, records, tmp_path, number, capsys, hears_interrupts):
    whole = config(records, "log_every=4")  # rows that the interruption cuts in two
    loop.train(whole, tmp_path / "whole", progress=False)
    before = signal.getsignal(number)

    def trace(self, step):
        if step == 5:  # an odd one, at which no checkpoint is due
            os.kill(os.getpid(), number)
            again = signal.getsignal(number) == before  # whether a second one is as ever
            assert again == (number == signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("animate_jax.training.progress.Progress.trace", trace)
        with pytest.raises(Terminated, match="after step 5") as ended:
            loop.train(whole, tmp_path / "ended", progress=False)
    assert ended.value.code == 128 + number
    assert ("Ctrl-C again" in capsys.readouterr().err) == (number == signal.SIGINT)
    assert (tmp_path / "ended" / "checkpoints" / "5").exists()
    loop.train(whole, tmp_path / "ended", progress=False)
    assert sorted(losses(tmp_path / "whole")) == [4, 8, 12]
    assert losses(tmp_path / "ended") == losses(tmp_path / "whole")
    assert np.array_equal(kernel(tmp_path / "ended"), kernel(tmp_path / "whole"))
    assert signal.getsignal(number) == before


@pytest.mark.usefixtures("hears_interrupts")
@pytest.mark.parametrize("when", ["last step", "model"])
def test_a_late_signal_ends_what_comes_after(quick, records, tmp_path, monkeypatch, when):
    """The stage is finished, and the next one not begun."""

    def trace(self, step):
        if step == 2 and when == "last step":
            os.kill(os.getpid(), signal.SIGINT)

    save = loop.save_model

    def interrupted(*arguments, **options):
        if when == "model":
            os.kill(os.getpid(), signal.SIGINT)
        save(*arguments, **options)

    monkeypatch.setattr("animate_jax.training.progress.Progress.trace", trace)
    monkeypatch.setattr(loop, "save_model", interrupted)
    with pytest.raises(Terminated) as ended:
        loop.train(config(records, "steps=2"), tmp_path, progress=False)
    assert ended.value.code == 130
    if when == "model":
        assert finished_step(tmp_path) == 2


CLOSED_PIPE = """
import os, signal, sys
from animate_jax.training.train import _terminated
signal.signal(signal.SIGINT, signal.default_int_handler)
with _terminated() as received:
    os.read(0, 1)  # until the reader of our lines has gone
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
    sys.stdout.flush()
sys.exit(received != [signal.SIGINT])
"""


def test_a_reader_that_the_same_signal_ends_costs_nothing():
    """As `train 2>&1 | tee log` and Ctrl-C."""
    pipe = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with subprocess.Popen([sys.executable, "-c", CLOSED_PIPE], **pipe) as process:
        process.stdout.close()
        process.stdin.write(b"x")
        process.stdin.close()
        assert process.wait(120) == 0


def test_who_ignores_interrupts_goes_on():
    """As a script's background jobs do."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with loop._terminated() as received:
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert received == []


def test_speed_is_of_counted_operations(records, tmp_path, monkeypatch):
    def loss(params, batch, keys):
        mean = params["pose_guider"]["conv_in"]["kernel"].mean()
        product = jnp.full((64, 64), mean) @ jnp.ones((64, 64))
        return jnp.full(len(keys), (product**2).mean())

    monkeypatch.setattr(Stage, "loss", property(lambda stage: loss))
    loop.train(config(records, "steps=2"), tmp_path, progress=False)
    row = [row for row in read_metrics(tmp_path) if "loss" in row][-1]
    counted = row["tflops_per_device"] * 1e12 * row["seconds_per_step"]
    assert counted == pytest.approx(2 * 2 * 64**3)  # forward, and the gradient of one factor


def test_fewer_steps_than_there_are(quick, records, tmp_path):
    loop.train(config(records, "steps=3"), tmp_path, progress=False)
    with pytest.raises(UserError, match="checkpoint of step 3 already, config.steps is 2"):
        loop.train(config(records, "steps=2"), tmp_path, progress=False)
    assert finished_step(tmp_path) == 3


def test_a_bad_loss_names_the_records_and_keeps_the_state(records, tmp_path, monkeypatch):
    def loss(params, batch, keys):
        poison = jnp.where(batch["record"][:, 1] == 3, jnp.nan, 0.0)
        return params["pose_guider"]["conv_in"]["kernel"].mean() ** 2 + poison

    monkeypatch.setattr(Stage, "loss", property(lambda stage: loss))
    with pytest.raises(UserError, match="the loss is nan") as error:
        loop.train(config(records, "data.batch_size=2"), tmp_path, progress=False)
    (path,) = tmp_path.glob("stopped_at_*.json")
    assert path.name in str(error.value)
    told = json.loads(path.read_text())
    assert [row["record"] == 3 for row in told["rows"]] == [
        row["loss"] == "nan" for row in told["rows"]
    ]
    assert 3 in [row["record"] for row in told["rows"]]
    assert (tmp_path / "checkpoints" / str(told["step"] - 1)).exists() or told["step"] == 1


@pytest.mark.parametrize("parts", [1, 2])
def test_the_last_and_the_best_checkpoints_are_kept(quick, records, tmp_path, monkeypatch, parts):
    values = iter([9.0, 3.0, 1.0, 2.0, 5.0, 4.0, 6.0])  # the first before the first step
    monkeypatch.setattr("animate_jax.training.validation.Validation.loss", lambda *_: next(values))
    options = ["validation.every=2", "validation.videos=0", "keep_last=2"]
    settings = config(records, *options)
    if parts == 2:  # interrupted after the best, which is known then from its file only
        loop.train(config(records, *options, "steps=6"), tmp_path, progress=False)
    loop.train(settings, tmp_path, progress=False)
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [4, 10, 12]  # the lowest validation loss was after step 4
    assert stored_config(tmp_path)["keep_last"] == 2
    again = workdir_config(tmp_path)
    assert again.to_json_best_effort() == settings.to_json_best_effort()
    assert again.learned == settings.learned


def test_a_config_of_older_code_is_completed(quick, records, tmp_path, monkeypatch):
    loop.train(config(records, "steps=1", "data.batch_size=4"), tmp_path, progress=False)
    stored = stored_config(tmp_path)
    for section, key in ((stored, "spike_factor"), (stored["data"], "body_only")):
        del section[key]
    monkeypatch.setattr("animate_jax.training.config.stored_config", lambda path: stored)
    again = workdir_config(tmp_path)
    assert (again.spike_factor, again.data.body_only, again.data.batch_size) == (20.0, 0.0, 4)
    loop.write_latest(again, tmp_path)


def test_latest_checkpoint_becomes_a_model(quick, records, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_batches", dying_after(loop.training_batches, 7, KeyError))
        with pytest.raises(KeyError):
            loop.train(config(records), tmp_path, progress=False)
    assert not (tmp_path / "model").exists()
    loop.write_latest(workdir_config(tmp_path), tmp_path)
    assert kernel(tmp_path).shape == (3, 3, 3, 4)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["data.path="], "no training data"),
        (["data.batch_size=7"], None),
        (["data.batch_size=7", "accumulate=2"], "does not split"),
        (["mesh.tensor=3"], "does not fit"),
        (["learned=('^nothing/',)"], "matches no parameter"),
        (["dtype=float16"], "config.dtype is 'float16'"),
        (["optimizer.name=sgd"], "config.optimizer.name is 'sgd'"),
        (["init_from=nowhere"], "no such model directory"),
        (["validation.every=1", "validation.split=test"], "no split 'test' .*validation.every=0"),
        (["steps=0"], "config.steps is 0"),
    ],
)
def test_bad_configs(quick, records, tmp_path, overrides, message):
    if message is None:
        return loop.train(config(records, "steps=1", *overrides), tmp_path, progress=False)
    with pytest.raises(UserError, match=message):
        loop.train(config(records, *overrides), tmp_path, progress=False)
    assert not (tmp_path / "checkpoints").exists()


def test_what_changed_since_the_checkpoint_is_told(quick, records, tmp_path, capsys):
    loop.train(config(records, "steps=2"), tmp_path, progress=False)
    before = stored_config(tmp_path)
    assert loop.changed_keys(before, before) == []
    now = json.loads(config(records, "optimizer.learning_rate=0.1").to_json_best_effort())
    told = loop.changed_keys(before, now)
    assert told == ["optimizer.learning_rate: 0.001 -> 0.1", "steps: 2 -> 12"]


def test_another_seed_would_change_what_does_not_learn(quick, records, tmp_path):
    def train(workdir, *overrides):
        loop.train(config(records, *overrides), tmp_path / workdir, progress=False)

    train("drawn", "steps=1")
    with pytest.raises(UserError, match="config.seed is 7 and was 0, .* keep it"):
        train("drawn", "steps=2", "seed=7")
    # Where all of it was read, the seed is of noise alone.
    start = f"init_from={tmp_path / 'drawn'}"
    train("read", "steps=1", start)
    train("read", "steps=2", "seed=7", start)


def test_the_command_line_tells_how_a_run_ended(tmp_path, capsys):
    def end(options):
        raise Terminated("told to end after step 5")

    assert run(argparse.Namespace(run=end, debug=False), "animate-jax") == 143
    assert capsys.readouterr().err == "animate-jax: told to end after step 5\n"

    def lose(options):
        raise PartnerLost("start all of them again")

    assert run(argparse.Namespace(run=lose, debug=False), "animate-jax") == 75
    assert capsys.readouterr().err == "animate-jax: error: start all of them again\n"
    assert main(["train", "--workdir", str(tmp_path)]) == 2
    assert "add --config CONFIG to begin" in capsys.readouterr().err
    assert main(["train", "--workdir", str(tmp_path), "--config", CONFIG, "--process", "0"]) == 2
    assert "go together" in capsys.readouterr().err
    assert main(["train", "--workdir", str(tmp_path), "--config", CONFIG, "--write-model"]) == 2
    assert "leave out --config" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")],
)
def test_too_little_memory_is_no_bug(error, capsys):
    def end(options):
        raise error

    assert run(argparse.Namespace(run=end, debug=False), "animate-jax") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "too little memory" in line and "--width" in line and "accumulate" in line


def test_a_full_disk_is_no_bug(capsys):
    def end(options):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/array")
        except OSError as error:
            raise ValueError("no checkpoint") from error

    assert run(argparse.Namespace(run=end, debug=False), "animate-jax") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the disk is full; make room" in line


def test_preemption_is_agreed_on_in_steps_of_the_process(quick, records, tmp_path, monkeypatch):
    """JAX begins to count at 0 when a process starts, whatever step training goes on from."""
    asked = []
    monkeypatch.setattr(checkpoint, "_reported", 0)
    monkeypatch.setattr(ocp.utils, "reached_preemption", asked.append)
    loop.train(config(records, "steps=3"), tmp_path / "one", progress=False)
    assert sorted(set(asked)) == [1, 2, 3]
    loop.train(config(records, "steps=5"), tmp_path / "one", progress=False)  # goes on after 3
    assert sorted(set(asked)) == [1, 2, 3, 4, 5]
    loop.train(config(records, "steps=2"), tmp_path / "next", progress=False)  # another stage
    assert sorted(set(asked)) == [1, 2, 3, 4, 5, 6, 7]
    monkeypatch.setattr(ocp.utils, "reached_preemption", lambda count: count == 8)
    with pytest.raises(Terminated, match="after step 3"):
        loop.train(config(records, "steps=9"), tmp_path / "next", progress=False)


def test_a_log_that_cannot_be_written_for_once_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("animate_jax.training.metrics.FLUSH_SECONDS", -1.0)
    writer = MetricsWriter(epath.Path(tmp_path), 0)
    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "_flush", lambda _: 1 / 0)
        for do in (lambda: writer.write(1, {"loss": 1.0}), writer.flush):  # as a checkpoint does
            with pytest.warns(UserNote, match="metrics.jsonl: cannot be written now"):
                do()
    writer.write(2, {"loss": 0.5})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    writer.close()


def test_a_running_training_is_looked_at_without_a_trace(quick, records, tmp_path):
    loop.train(config(records, "steps=2"), tmp_path, progress=False)
    under_way = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp-1"
    under_way.mkdir()
    (under_way / "part").write_text("")
    loop.write_latest(workdir_config(tmp_path), tmp_path)
    assert (under_way / "part").exists()
    (tmp_path / "model" / "config.json").unlink()  # half a model, of a run that was killed
    loop.train(config(records, "steps=3"), tmp_path, progress=False)
    assert not under_way.exists()
    assert (tmp_path / "model" / "config.json").exists()
    assert finished_step(tmp_path) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model_directory(tmp_path) == tmp_path / "model"
    (tmp_path / "finished_step").unlink()  # as if trained on, and not to the end
    with pytest.warns(UserNote, match="not finished, and its model may be older than step 3"):
        model_directory(tmp_path)


def test_half_a_checkpoint_in_a_bucket_does_not_count(buckets):
    checkpoints = buckets / "bucket" / "run" / "checkpoints"
    for step, whole in ((1000, True), (2000, False)):
        (checkpoints / str(step) / "config").mkdir(parents=True)
        if whole:
            (checkpoints / str(step) / "commit_success.txt").write_text("")
            (checkpoints / str(step) / "config" / "metadata").write_text('{"steps": 7}')
    shutil.copytree(checkpoints / "1000", checkpoints / "bad_5000")  # put aside by hand
    assert latest_step(epath.Path("gs://bucket/run")) == 1000
    assert stored_config(epath.Path("gs://bucket/run")) == {"steps": 7}
    assert stored_config(epath.Path("gs://bucket/other")) is None


def test_a_trace_that_cannot_be_written_ends_no_training(records, tmp_path, monkeypatch, capsys):
    def refuse():
        raise RuntimeError("the bucket does not answer")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", refuse)
    loop.train(config(records, "profile=(2,3)", "steps=5"), tmp_path / "run", progress=True)
    assert "the trace could not be written (the bucket does not answer)" in capsys.readouterr().out
    assert read_metrics(tmp_path / "run")[-1]["step"] == 5
