"""The `train` command: one stage, on this machine or as one process of a pod."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import jax
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from animate_jax.compiled import keep_compiled
from animate_jax.data.records import INFO, NAME, VERSION
from animate_jax.errors import PartnerLost, UserError
from animate_jax.files import is_local, make_directory
from animate_jax.training.checkpoint import latest_step
from animate_jax.training.config import load_config, workdir_config
from animate_jax.training.train import train as run_training
from animate_jax.training.train import write_latest
from animate_jax.weights.model_directory import CONFIG, MODEL, finished_step

_OF_COMMUNICATION = re.compile(
    "UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|gloo|connection|heartbeat", re.IGNORECASE
)
HEARTBEAT_SECONDS = 30  # after which a process that does not answer counts as gone


def train(options) -> None:
    """Runs `animate-jax train`; options as its parser gives them."""
    if options.config and options.write_model:
        raise UserError("--write-model takes the config that the training has; leave out --config")
    if options.config:
        config = load_config(options.config, options.overrides)
    else:
        config = workdir_config(options.workdir, options.overrides)
    workdir = make_directory(options.workdir)
    try:
        _join(options)
        keep_compiled(options.compiled)
        if options.write_model:
            write_latest(config, workdir)
        else:
            _train(config, options.config, workdir)
    except jax.errors.JaxRuntimeError as error:
        alone = not options.distributed and options.coordinator is None
        if alone or not _OF_COMMUNICATION.search(str(error)):
            raise
        reason = (str(error).splitlines() or [""])[0][:200]
        raise PartnerLost(
            "another process of this run has ended or cannot be reached; start all of them again,"
            f" they go on from the last checkpoint ({reason})"
        ) from error


def _train(config, config_path, workdir):
    """The stage, and before it what it needs: puppets, and the stages it starts from."""
    changes = {}
    if config.puppets.clips and not (config.data.path or config.data.sets):
        changes["data.path"] = str(puppet_records(config.puppets, workdir))
    if config.after and not config.init_from:
        earlier = Path(config_path).parent / config.after
        place = workdir / earlier.stem
        if not _finished(place):
            before = load_config(earlier)
            data = {
                "data.path": config.data.path,
                "data.sets": config.data.sets,
                "validation.path": config.validation.path,
                "validation.split": config.validation.split,
            }
            if not config.validation.every:
                data["validation.every"] = 0
            with before.unlocked():
                before.update_from_flattened_dict(data | changes)
            _train(before, earlier, place)
        changes["init_from"] = str(place)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    run_training(config, workdir)


def _finished(workdir: epath.Path) -> bool:
    """Whether a stage was trained to its end; --write-model writes the models of others too."""
    if not (workdir / MODEL / CONFIG).exists():
        return False
    step = latest_step(workdir)
    return step is None or step == finished_step(workdir)


def puppet_records(puppets: ConfigDict, workdir: epath.Path) -> epath.Path:
    """Records of drawn puppets, made in the workdir unless they are there already.

    Raises UserError where those are of other settings.
    """
    records, notes = workdir / "records", workdir / "puppets.json"
    wanted = puppets.to_dict()
    if (records / NAME / VERSION / INFO).exists():
        drawn = json.loads(notes.read_text()) if notes.exists() else wanted
        changed = [
            f"{key} was {drawn.get(key)}, now {value}"
            for key, value in wanted.items()
            if drawn.get(key) != value
        ]
        if changed:
            raise UserError(
                f"{records}: was drawn with other puppets ({', '.join(changed)}); remove it and"
                f" {workdir / 'puppets'}, or choose another --workdir"
            )
    elif jax.process_index() == 0:
        make_directory(workdir)
        notes.write_text(json.dumps(wanted) + "\n")
        if is_local(workdir):
            _draw(puppets, workdir)
        else:
            with tempfile.TemporaryDirectory() as place:
                _draw(puppets, Path(place))
                _send(Path(place) / "records", records)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("puppets")
    return records


def _draw(puppets, place):
    from data_prep.puppets.generate import PuppetSet, generate
    from data_prep.records import write_records

    size, frames = puppets.size, puppets.frames
    wanted = PuppetSet(puppets.clips, size, size, puppets.seed, frames=frames)
    generate(wanted, place / "puppets", overwrite=True)
    write_records(place / "puppets", place / "records", validation=puppets.validation)


def _send(source: Path, target: epath.Path):
    """Copies a directory into a bucket; last what makes it a data set."""
    files = [path for path in source.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda path: (path.name == INFO, path)):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        epath.Path(file).copy(place, overwrite=True)


def _join(options):
    """Makes this process one of several; on a pod jax.distributed finds out by itself."""
    given = [options.coordinator, options.processes, options.process]
    if any(value is not None for value in given):
        if None in given:
            raise UserError("--coordinator, --processes and --process go together")
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    elif options.distributed:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
