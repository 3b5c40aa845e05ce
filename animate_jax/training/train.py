"""The training loop: the same on a laptop and on every process of a pod.

State, data and randomness are functions of the step, so a run that was interrupted goes on as if it
had not been. The host reads the metrics of a step while the next one is under way.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import select
import signal
import sys
import threading

import jax
import jax.numpy as jnp
from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from animate_jax.config import ModelConfig
from animate_jax.data.input import training_batches
from animate_jax.errors import Terminated, UserError
from animate_jax.files import directory_path, make_directory
from animate_jax.models.animate_anyone import COMPONENTS
from animate_jax.parallel.mesh import batch_shards, input_share, make_mesh, place_batch
from animate_jax.training import checkpoint
from animate_jax.training.latent_scale import measure_scaling_factor
from animate_jax.training.metrics import MetricsWriter
from animate_jax.training.parameters import merge
from animate_jax.training.progress import Progress
from animate_jax.training.stages import (
    Stage,
    input_config,
    load_parameters,
    make_stage,
    note_new_motion,
    source_parameters,
)
from animate_jax.training.step import TrainState
from animate_jax.training.validation import Validation
from animate_jax.weights.model_directory import FINISHED, MODEL, save_model


def train(config: ConfigDict, workdir: str | os.PathLike, *, progress: bool = True) -> None:
    """Trains a stage in `workdir`, or goes on with it, and writes the finished model into it.

    All processes of a pod call it together, after `jax.distributed.initialize`. Raises UserError
    for what does not fit and where a loss is not finite or leaps; Terminated after SIGTERM, or, of
    a single process, Ctrl-C.
    """
    workdir = make_directory(workdir)
    mesh = make_mesh(config.mesh.to_dict())
    with jax.set_mesh(mesh), _precision(config), _terminated() as terminated:
        stage = make_stage(config, mesh)
        state, frozen = _run(stage, workdir, terminated, progress)
        model_config = _measured_config(stage, state, frozen)
        del frozen  # written from its source, which may be more precise
        write_model(stage, state, workdir, model_config)
        if jax.process_index() == 0:
            (workdir / FINISHED).write_text(f"{config.steps}\n")
        if terminated:  # during the last step, or after it
            raise Terminated(f"told to end; {workdir} is finished", 128 + terminated[0])


def _run(stage: Stage, workdir: epath.Path, terminated, show: bool):
    config = stage.config
    data = input_config(config)
    _check_batch(data.batch_size, config.accumulate, batch_shards(stage.mesh))
    batches = training_batches(data, **input_share(stage.mesh))
    validation = Validation(stage) if config.validation.every else None
    manager = checkpoint.open_checkpoints(
        workdir,
        every=config.checkpoint_every,
        keep_last=config.keep_last,
        keep_best=config.keep_best if validation else 0,
    )
    with contextlib.closing(manager), contextlib.closing(batches):
        plain_config = json.loads(config.to_json_best_effort())
        learned, frozen = load_parameters(stage)
        first = manager.latest_step() or 0
        if first > config.steps:
            raise UserError(
                f"{workdir}: has a checkpoint of step {first} already, config.steps is"
                f" {config.steps}; raise it, or begin in another --workdir"
            )
        changed, pending = [], []
        if first:
            del learned
            state, position = checkpoint.restore(manager, stage.state_shapes())
            state = state.replace(stopped=jnp.zeros_like(state.stopped))
            pending = position.pop("pending", [])
            batches.set_state(position)
            before = checkpoint.stored_config(workdir)
            _check_seed(before["seed"], config, frozen)
            changed = changed_keys(before, plain_config)
        else:
            note_new_motion(stage)
            state = stage.new_state(learned)  # which takes the arrays over
        writer = MetricsWriter(workdir, first)
        train_step, under_way = None, collections.deque()
        progress = Progress(stage, writer, workdir, first, pending, show)
        if changed:
            progress.say(f"changed since the last checkpoint: {', '.join(changed)}")
        with contextlib.closing(progress):
            if validation and not first:  # where the curve begins
                progress.validate(validation, state, frozen, 0)
            for step in range(first + 1, config.steps + 1):
                with progress.waiting():
                    rows = next(batches)
                batch = place_batch(stage.mesh, rows)
                if train_step is None:
                    train_step = progress.compile(stage.make_step(), state, frozen, batch)
                progress.trace(step)
                state, metrics = train_step(state, frozen, batch)
                under_way.append((step, metrics))

                last = step == config.steps
                ended = bool(terminated) or (manager.reached_preemption(step) and not last)
                evaluate = validation and (
                    last or (not ended and step % config.validation.every == 0)
                )
                save = last or ended or manager.should_save(step)
                while len(under_way) > (0 if evaluate or save else 1):
                    number, metrics = under_way.popleft()
                    if progress.stopped(number, metrics):
                        # The state is that before the step, which changed nothing.
                        kept = number - 1
                        _save(manager, state, kept, progress, plain_config, force=True)
                        manager.wait_until_finished()
                        raise progress.explain(number, metrics)
                loss = None
                if evaluate:
                    loss = progress.validate(validation, state, frozen, step)
                if save:
                    writer.flush()  # first: a checkpoint without its log would leave a gap
                    _save(manager, state, step, progress, plain_config, loss, force=last or ended)
                # After the state is safe: it takes a while, and the machine may be about to go.
                if evaluate and config.validation.videos and not ended:
                    progress.show_videos(validation, state, frozen, step)
                if ended:
                    manager.wait_until_finished()
                    raise Terminated(
                        f"told to end after step {step}, which is saved; the same command goes on",
                        128 + (terminated or [signal.SIGTERM])[0],
                    )
    return state, frozen


def write_latest(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Writes the latest checkpoint of a workdir as its model, finished or not.

    Raises UserError where there is no checkpoint.
    """
    workdir = directory_path(workdir)
    mesh = make_mesh(config.mesh.to_dict())
    with jax.set_mesh(mesh), _precision(config):
        stage = make_stage(config, mesh)
        state = checkpoint.read_latest(workdir, stage.state_shapes())
        frozen = load_parameters(stage)[1] if config.measure_scaling_factor else {}
        write_model(stage, state, workdir, _measured_config(stage, state, frozen))


def _measured_config(stage, state, frozen):
    """The model's config, with the scale of its latents if that is to be measured."""
    config = stage.model.config
    if not stage.config.measure_scaling_factor:
        return config
    factor = measure_scaling_factor(stage, state.result, frozen)
    autoencoder = dataclasses.replace(config.autoencoder, scaling_factor=factor)
    return dataclasses.replace(config, autoencoder=autoencoder)


def _save(manager, state, step, progress, config, loss=None, *, force=False):
    position = {"next_batch": step, "pending": list(progress.pending)}  # a step takes one batch
    checkpoint.save(manager, state, step, position, config, validation_loss=loss, force=force)


def changed_keys(before: dict, now: dict) -> list[str]:
    """`key.subkey: old -> new` of everything that differs between two configs as plain data."""
    before, now = (flatten_dict(values, sep=".") for values in (before, now))
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys]


def _check_seed(before: int, config: ConfigDict, frozen: dict) -> None:
    """What does not learn is in no checkpoint: where it was drawn, another seed would change it."""
    drawn = not config.init_from or config.init_components
    if frozen and drawn and config.seed != before:
        raise UserError(
            f"config.seed is {config.seed} and was {before}, from which parameters were drawn"
            " that do not learn; keep it, or begin in another --workdir"
        )


def _check_batch(batch_size, accumulate, shards):
    if batch_size % (shards * accumulate):
        raise UserError(
            f"a batch of {batch_size} does not split into {accumulate} parts over {shards} devices;"
            f" make config.data.batch_size a multiple of {shards * accumulate}"
        )


def write_model(
    stage: Stage, state: TrainState, workdir: epath.Path, model_config: ModelConfig
) -> None:
    """Writes WORKDIR/model: what was learnt, and the rest as it came."""

    def component(name):
        tree = source_parameters(stage, (name,))
        if name in state.result:
            tree[name] = merge(state.result[name], tree[name])
        return tree[name]

    parts = ((name, lambda name=name: component(name)) for name in COMPONENTS)
    # Half a model that a killed run left in a bucket is replaced as well.
    save_model(workdir / MODEL, model_config, parts, own=True)


def _precision(config):
    # Accelerators multiply float32 in lower precision unless told not to.
    return jax.default_matmul_precision("float32" if config.dtype == "float32" else None)


@contextlib.contextmanager
def _terminated():
    """A list that SIGTERM and Ctrl-C are put into in place of ending the process at once; a second
    Ctrl-C does. What is ignored, as Ctrl-C by a script's background jobs, stays so.

    The processes of a pod have to save the same step: there Orbax learns of the signal from
    jax.distributed, which needs it for itself.
    """
    received = []
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def receive(number, frame):
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])
            _leave_closed_pipes()
            again = "again ends it at once, without"
            print(f"\nending after this step, which is saved; Ctrl-C {again}", file=sys.stderr)

    try:
        for number in before:
            signal.signal(number, receive)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_closed_pipes():
    """Who read our lines, such as `tee`, may have ended by the same Ctrl-C; writing would fail."""
    for number in (1, 2):
        pipe = select.poll()
        pipe.register(number, 0)
        if pipe.poll(0):  # an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
