"""Checkpoints of a stage, by Orbax: state, data position and config together, WORKDIR/checkpoints.

They are written in the background and appear whole or not at all. Frozen weights are not among
them: the config says where those come from.
"""

from __future__ import annotations

import json
import logging

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from animate_jax.errors import UserError, require_access
from animate_jax.training.step import TrainState
from animate_jax.weights.items import cause_of

LOSS = "validation_loss"  # the metric that the best checkpoints are kept by
ITEMS = ("state", "data", "config")
# What Orbax and TensorStore say of files that are cut short or gone.
_DAMAGE = (
    "OUT_OF_RANGE",
    "NOT_FOUND",
    "DATA_LOSS",
    "FAILED_PRECONDITION",
    "was not found in the checkpoint",
)


_reported = 0  # steps of this process, over all stages that it trains


class _Checkpoints(ocp.CheckpointManager):
    """Orbax's, but told to end at any time.

    JAX's preemption manager agrees on the step after the highest that any process has reported to
    it, which was none at first, and compares for equality: a process that goes on at step 5000, or
    with another stage, would never meet a step agreed on before its first.
    """

    def __init__(self, *arguments, **options):
        self._offset = None  # from steps of the stage to those of the process
        super().__init__(*arguments, **options)

    def reached_preemption(self, step: int) -> bool:
        global _reported
        if self._offset is None:
            self._offset = _reported + 1 - step
        count = step + self._offset
        if count < _reported:  # Orbax asks again, for its statistics, once a step is written
            return False
        _reported = count
        return super().reached_preemption(count)


def open_checkpoints(
    workdir: epath.Path, *, every: int = 1, keep_last: int = 2, keep_best: int = 0
) -> ocp.CheckpointManager:
    """The manager of a workdir's checkpoints, which are made in it if need be.

    A checkpoint is due every so many steps and when a pod is about to be preempted: call `save`
    after each step. The last ones are kept, and those of the lowest validation loss. What a run
    that was killed left half written is removed, so one run at a time: `read_latest` only looks.
    Raises UserError for a bucket that could not be used to the end.
    """
    _be_quiet()
    _check_bucket(workdir)
    policies = checkpoint_managers
    options = ocp.CheckpointManagerOptions(
        save_decision_policy=policies.AnySavePolicy(
            [policies.FixedIntervalPolicy(every), policies.PreemptionCheckpointingPolicy()]
        ),
        preservation_policy=policies.AnyPreservationPolicy(
            [
                policies.LatestN(max(1, keep_last)),
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[LOSS],
                    reverse=True,
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        ),
        # Without it, losses would not be written, and after a restart nothing known of the best.
        best_fn=lambda metrics: metrics[LOSS],
        best_mode="min",
        cleanup_tmp_directories=True,
    )
    return _Checkpoints(workdir / "checkpoints", options=options, item_names=ITEMS)


def _check_bucket(workdir: epath.Path) -> None:
    """Orbax asks what kind a bucket is whenever it removes a checkpoint and when it resumes: hours
    into a training is too late to find out that it may not."""
    if not str(workdir).startswith("gs://"):
        return
    from google.cloud import storage  # comes with the gcs extra, as what reads gs:// paths

    name = str(workdir).removeprefix("gs://").split("/")[0]
    try:
        storage.Client().get_bucket(name)
    except Exception as error:
        if getattr(error, "code", None) != 403:
            raise
        raise UserError(
            f"gs://{name}: the service account may not look at the bucket (storage.buckets.get),"
            " which removing checkpoints needs; grant it roles/storage.legacyBucketReader there,"
            " besides roles/storage.objectUser (docs/tpu.md)"
        ) from error


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    step: int,
    position: dict,
    config: dict,
    *,
    validation_loss: float | None = None,
    force: bool = False,
) -> bool:
    """Writes the state after `step` steps if one is due, or by force; returns whether it did."""
    if force and manager.latest_step() == step:
        return False
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        data=ocp.args.JsonSave(position),
        config=ocp.args.JsonSave(config),
    )
    metrics = None if validation_loss is None else {LOSS: float(validation_loss)}
    return manager.save(step, args=items, metrics=metrics, force=force)


def restore(manager: ocp.CheckpointManager, shapes: TrainState) -> tuple[TrainState, dict]:
    """The state of the latest checkpoint, placed as `shapes` say, and the position.

    Raises UserError where it cannot be read into them.
    """
    step = manager.latest_step()
    items = ocp.args.Composite(state=ocp.args.StandardRestore(shapes), data=ocp.args.JsonRestore())
    try:
        restored = manager.restore(step, args=items)
    except Exception as error:
        found = cause_of(error)
        if not isinstance(found, (ValueError, KeyError, OSError, TypeError)):
            raise
        require_access(manager.directory / str(step), found)
        reason = (str(found).splitlines() or [type(found).__name__])[0][:200]
        if isinstance(found, (OSError, json.JSONDecodeError)) or any(
            mark in str(found) for mark in _DAMAGE
        ):
            older = [str(one) for one in manager.all_steps() if one < step]
            raise UserError(
                f"{manager.directory / str(step)}: is damaged ({reason}); remove it: training goes"
                f" on from step {older[-1] if older else 0}"
            ) from error
        raise UserError(
            f"{manager.directory / str(step)}: does not fit this config ({reason}); use the config"
            " it was written with, or another --workdir"
        ) from error
    return restored.state, restored.data


def read_latest(workdir: epath.Path, shapes: TrainState) -> TrainState:
    """The state of the latest checkpoint; nothing in the workdir is touched, so that it can be
    read while its training runs. Raises UserError where there is none."""
    if latest_step(workdir) is None:
        raise UserError(f"{workdir}: there is no checkpoint to write a model from")
    _be_quiet()
    options = ocp.CheckpointManagerOptions(read_only=True)
    directory = workdir / "checkpoints"
    with ocp.CheckpointManager(directory, options=options, item_names=ITEMS) as manager:
        return restore(manager, shapes)[0]


def _be_quiet():
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every file


def latest_step(workdir: epath.Path) -> int | None:
    """Of the checkpoints that are whole; in a bucket others can be seen too."""
    paths = ocp.utils.checkpoint_steps_paths(workdir / "checkpoints")
    return max((int(path.name) for path in paths if path.name.isdecimal()), default=None)


def stored_config(workdir: epath.Path) -> dict | None:
    """The config that the latest checkpoint was written with, None where there is none."""
    step = latest_step(workdir)
    if step is None:
        return None
    path = workdir / "checkpoints" / str(step) / "config" / "metadata"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        require_access(path, error)
        raise UserError(f"{path}: cannot be read ({error}); remove this checkpoint") from error
