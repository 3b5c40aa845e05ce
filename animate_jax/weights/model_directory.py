"""A model on disk: a directory with `config.json` and one Orbax item per part.

The parts are the components of `animate_jax.models.animate_anyone`, except that the motion modules
lie beside the denoising UNet they belong to, so that no part is larger than one UNet. The directory
may be local or in a bucket (`gs://...`). `config.json` is written last and makes it a model.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Sharding, SingleDeviceSharding

from animate_jax.config import ModelConfig, from_dict, to_dict
from animate_jax.errors import UserError, UserNote
from animate_jax.files import check_place, directory_path, is_local, replacing_directory
from animate_jax.models.animate_anyone import COMPONENTS, AnimateAnyone
from animate_jax.weights.items import item_leaves, load_item, save_item
from animate_jax.weights.mappings import torch_name

BUNDLED = epath.Path(__file__).parents[1] / "bundled"  # the small model that comes along
FORMAT = 1
CONFIG = "config.json"
MODEL = "model"  # inside the workdir of a training: the finished stage as a model directory
FINISHED = "finished_step"  # there: the step that its model is of, if it was the last
MOTION = "motion_modules"
_IN_MOTION = re.compile(r"motion_modules_\d+")
_LOADED_DTYPES = ("float32", "bfloat16")

Path = tuple[str, ...]
Leaves = dict[Path, jax.ShapeDtypeStruct]


def component_shapes(config: ModelConfig, component: str) -> Leaves:
    """{path: float32 ShapeDtypeStruct} of one component's parameters; nothing is computed."""
    return flatten_dict(AnimateAnyone(config).shapes(component))


def in_motion(path: Path) -> bool:
    """Whether a parameter path of the denoising UNet belongs to its motion modules."""
    return any(_IN_MOTION.fullmatch(name) for name in path)


def split_items(component: str, leaves: Mapping[Path, object]) -> dict[str, dict]:
    """The parts {name: leaves by path} that one component is stored as; no part is empty."""
    if component != "denoising_unet":
        return {component: dict(leaves)}
    parts = {component: {}, MOTION: {}}
    for path, leaf in leaves.items():
        parts[MOTION if in_motion(path) else component][path] = leaf
    return {name: part for name, part in parts.items() if part}


def check_target(path: str | os.PathLike, overwrite: bool = False) -> epath.Path:
    """The path of a model directory to be written.

    Raises UserError where something is there already, unless it may be overwritten: an empty
    directory always, a model directory if `overwrite`.
    """
    target = directory_path(path)
    if is_local(target):
        check_place(target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    if not _is_ours(target):
        raise UserError(f"{target}: exists and is not a model directory; choose another name")
    if not overwrite:
        raise UserError(f"{target}: holds a model already; choose another name or add --overwrite")
    return target


def _is_ours(directory: epath.Path) -> bool:
    """Whether a directory holds a model directory and nothing else."""
    if not directory.is_dir():
        return False
    # A bucket may list a directory inside itself.
    names = {entry.name for entry in directory.iterdir()} - {directory.name}
    if CONFIG not in names or not names <= {CONFIG, MOTION, *COMPONENTS}:
        return False
    try:
        values = json.loads((directory / CONFIG).read_text())
    except (ValueError, OSError, RecursionError):
        return True  # damaged; what lies beside it is ours
    return isinstance(values, dict) and "format" in values


def save_model(
    path: str | os.PathLike,
    config: ModelConfig,
    components: Iterable[tuple[str, Mapping | Callable[[], Mapping]]],
    *,
    overwrite: bool = False,
    own: bool = False,
) -> None:
    """Write a model directory, one component after the other.

    components: every name of COMPONENTS once, with its parameters (nested dictionary of jax.Array,
    np.ndarray or LazyTensor) or a function that makes them when their turn comes. All processes of
    a pod call it together. `own` says that the place is the program's, whatever lies there. Raises
    UserError before any work where `path` exists and is not to be overwritten; ValueError where
    names or shapes are not those of `config`.
    """
    target = directory_path(path) if own else check_target(path, overwrite)
    try:
        _save_components(target, config, components)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error


def _save_components(target, config, components):
    with _writing(target) as directory:
        written = []
        for name, tree in components:
            if name not in COMPONENTS or name in written:
                raise ValueError(f"component {name!r} is unknown or was given twice")
            leaves = flatten_dict(tree() if callable(tree) else tree)
            del tree
            problem = _difference(component_shapes(config, name), leaves)
            if problem:
                raise ValueError(f"{name} is not what the config says: {problem}")
            for item, part in split_items(name, leaves).items():
                save_item(directory / item, unflatten_dict(part))
            written.append(name)
            leaves = part = None  # free it before the next component is made
        if missing := sorted(set(COMPONENTS) - set(written)):
            raise ValueError(f"components {missing} were not given")
        if jax.process_index() == 0:
            text = json.dumps({"format": FORMAT, **to_dict(config)}, indent=2)
            (directory / CONFIG).write_text(text + "\n")


def model_directory(path: str | os.PathLike) -> epath.Path:
    """The model directory that a path stands for: itself, or that of a finished training's workdir.

    A model that was written in between is taken with a note. Raises UserError where there is none.
    """
    directory = directory_path(path)
    if (directory / MODEL / CONFIG).exists():
        _note_unfinished(directory)
        return directory / MODEL
    if not (directory / CONFIG).exists() and (directory / "checkpoints").exists():
        raise UserError(
            f"{directory}: this training is not finished; finish it, or write its latest"
            f" checkpoint as a model with: animate-jax train --workdir {directory} --write-model"
        )
    return directory


def _note_unfinished(workdir):
    steps = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
    if steps and finished_step(workdir) != max(steps):
        note = (
            f"{workdir}: this training is not finished, and its model may be older than step"
            f" {max(steps)}; for that one's: animate-jax train --workdir {workdir} --write-model"
        )
        warnings.warn(note, UserNote, stacklevel=3)


def finished_step(workdir: epath.Path) -> int | None:
    """The last step of a training that came to its end and wrote its model; else None."""
    file = workdir / FINISHED
    return int(file.read_text()) if file.exists() else None


def read_config(path: str | os.PathLike) -> ModelConfig:
    """The config of the model in a directory, or in a finished training's workdir.

    Raises UserError where there is none.
    """
    directory = model_directory(path)
    file = directory / CONFIG
    if not directory.exists():
        raise UserError(f"{directory}: there is no such model directory; check the path")
    try:
        values = json.loads(file.read_text()) if file.exists() else None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({error}); convert the model again") from error
    if not isinstance(values, dict) or "format" not in values:
        raise UserError(
            f"{directory}: is not a model directory (no {CONFIG} of ours); "
            "make one from PyTorch weights with: animate-jax convert"
        )
    if (number := values.pop("format")) != FORMAT:
        raise UserError(f"{file}: has format {number!r}, this version reads {FORMAT}; update it")
    return from_dict(ModelConfig, values, str(file))


def stored_leaves(
    path: str | os.PathLike, config: ModelConfig, component: str
) -> dict[str, Leaves]:
    """{part: {path: shape and dtype}} of a stored component, checked against the config.

    Raises UserError where a part is missing or its shapes are others.
    """
    directory, parts = model_directory(path), {}
    for item, expected in split_items(component, component_shapes(config, component)).items():
        parts[item] = item_leaves(directory / item)
        problem = _difference(expected, parts[item])
        if problem:
            raise UserError(
                f"{directory / item}: does not match {CONFIG} ({problem}); convert the model again"
            )
    return parts


def load_model(
    path: str | os.PathLike,
    *,
    components: Sequence[str] | None = None,
    dtype: str | np.dtype | type | None = None,
    shardings: Sharding | Callable[[str], Sharding] | Mapping | None = None,
    motion_only: bool = False,
) -> tuple[ModelConfig, dict]:
    """The config and the parameter tree {component: parameters} of a model directory.

    components: those to load, all by default. dtype: float32 or bfloat16 casts while loading, None
    keeps what is stored. shardings: where the arrays go, read there directly: one Sharding for
    all, a function of the path (`denoising_unet/conv_in/kernel`), a tree like the parameters, or
    None for the first device. motion_only: the denoiser's motion modules alone. Raises UserError
    where there is no model or it is damaged.
    """
    config, directory = read_config(path), model_directory(path)
    components = COMPONENTS if components is None else tuple(components)
    if unknown := sorted(set(components) - set(COMPONENTS)):
        raise UserError(f"a model has no components {unknown}; it has {list(COMPONENTS)}")
    if dtype is not None and (dtype := np.dtype(dtype)).name not in _LOADED_DTYPES:
        raise UserError(f"weights cannot be loaded as {dtype.name}; use one of {_LOADED_DTYPES}")
    if shardings is None:
        shardings = SingleDeviceSharding(jax.local_devices()[0])
    params = {}
    # All are checked before the first is loaded: that takes minutes.
    stored = {component: stored_leaves(directory, config, component) for component in components}
    for component, parts in stored.items():
        leaves = {}
        for item, part in parts.items():
            if motion_only and item != MOTION:
                continue
            place = lambda p, c=component: _sharding(shardings, (c, *p))  # noqa: E731
            part = {p: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype) for p, x in part.items()}
            loaded = load_item(directory / item, unflatten_dict(part), place)
            leaves |= flatten_dict(loaded)
        params[component] = unflatten_dict(leaves)
    return config, params


def _sharding(shardings, path: Path) -> Sharding:
    if isinstance(shardings, Sharding):
        return shardings
    if callable(shardings):
        return shardings("/".join(path))
    for name in path:
        shardings = shardings[name]
    return shardings


def _difference(expected: Mapping[Path, object], found: Mapping[Path, object]) -> str | None:
    """What differs first between two sets of leaves in names and shapes."""
    for kind, paths in (("lacks", expected.keys() - found), ("has", found.keys() - expected)):
        if paths:
            return f"it {kind} {torch_name(min(paths))}"
    for path, leaf in expected.items():
        if tuple(found[path].shape) != tuple(leaf.shape):
            return f"{torch_name(path)} has shape {tuple(found[path].shape)}, not {leaf.shape}"
    return None


@contextmanager
def _writing(target: epath.Path) -> Iterator[epath.Path]:
    """A directory to write in, which becomes the target; an error leaves nothing behind."""
    if _can_rename(target):
        with replacing_directory(os.fspath(target)) as temporary:
            yield epath.Path(temporary)
        return
    # Here the config, written last, is what makes the directory a model.
    first = jax.process_index() == 0
    _wait_for_all("checked", target)
    if first:
        (target / CONFIG).unlink(missing_ok=True)
        if target.exists():
            target.rmtree()
        target.mkdir(parents=True)
    _wait_for_all("emptied", target)
    try:
        yield target
    except BaseException:
        if first:
            target.rmtree()
        raise
    _wait_for_all("written", target)


def _can_rename(target: epath.Path) -> bool:
    """Not in a bucket, and not where several processes would have to agree on a temporary name."""
    return is_local(target) and jax.process_count() == 1


def _wait_for_all(what: str, target: epath.Path) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"model {what}: {target}")
