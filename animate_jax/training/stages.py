"""A stage made ready: its model, what it learns, where its parameters come from and lie."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from animate_jax.config import ModelConfig, MotionConfig, from_dict
from animate_jax.data.config import DataConfig, data_config
from animate_jax.diffusion.schedule import NoiseSchedule, moore_sampling
from animate_jax.errors import UserError, UserNote
from animate_jax.models.animate_anyone import COMPONENTS, AnimateAnyone
from animate_jax.models.unet import REMAT_POLICIES
from animate_jax.parallel.mesh import batch_shards, replicated
from animate_jax.parallel.sharding import parameter_shardings, place
from animate_jax.training.objective import (
    COMPONENTS_OF_LOSS,
    LOSSES,
    DenoisingLoss,
    ReconstructionLoss,
    batch_loss,
)
from animate_jax.training.optimizer import OptimizerConfig, make_optimizer
from animate_jax.training.parameters import (
    Path,
    cast,
    learned_paths,
    shapes_of,
    split,
    without_motion,
)
from animate_jax.training.step import (
    Loss,
    StepOptions,
    TrainState,
    initial_state,
    make_step,
    state_shardings,
)
from animate_jax.weights.model_directory import load_model, read_config


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a config means on a mesh."""

    config: ConfigDict
    mesh: Mesh
    model: AnimateAnyone
    components: tuple[str, ...]
    learned: frozenset[Path]
    options: DenoisingLoss | ReconstructionLoss
    optimizer_config: OptimizerConfig
    optimizer: object
    step_options: StepOptions
    shardings: TrainState
    frozen_shardings: dict

    @property
    def loss(self) -> Loss:
        """(parameters, batch, keys) -> losses of the samples."""
        return functools.partial(
            batch_loss,
            self.model,
            options=self.options,
            shards=batch_shards(self.mesh),
            size=self.config.encode_pictures,
        )

    def make_step(self):
        return make_step(self.loss, self.optimizer, self.step_options, self.mesh, self.shardings)

    def new_state(self, learned: dict) -> TrainState:
        """The state before the first step, which takes over the arrays of `learned`."""
        make = functools.partial(initial_state, optimizer=self.optimizer, options=self.step_options)
        return jax.jit(make, out_shardings=self.shardings, donate_argnums=0)(learned)

    def state_shapes(self) -> TrainState:
        """The state as jax.ShapeDtypeStruct with shardings, for restoring into."""
        learned, _ = split(shapes_of(self.model.config, self.components), self.learned)
        make = functools.partial(initial_state, optimizer=self.optimizer, options=self.step_options)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            jax.eval_shape(make, learned),
            self.shardings,
        )


def make_stage(config: ConfigDict, mesh: Mesh) -> Stage:
    """Checks the config and says what it means; no parameters are read.

    Raises UserError for what does not fit.
    """
    _check(config)
    components = COMPONENTS_OF_LOSS[config.objective]
    model_config = _model_config(config)
    dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[config.dtype]
    shapes = shapes_of(model_config, components)
    learned = learned_paths(shapes, model_config, config.learned, config.frozen)
    optimizer_config = section(OptimizerConfig, config, "optimizer")
    optimizer = make_optimizer(optimizer_config, config.steps)
    step_options = StepOptions(
        config.seed, config.accumulate, optimizer_config.average_decay, config.spike_factor
    )
    learned_shapes, frozen_shapes = split(shapes, learned)
    rules = config.sharding, config.fsdp_min_size
    return Stage(
        config,
        mesh,
        AnimateAnyone(model_config, dtype, config.remat),
        components,
        learned,
        section(LOSSES[config.objective], config, "loss"),
        optimizer_config,
        optimizer,
        step_options,
        state_shardings(learned_shapes, optimizer, step_options, mesh, *rules),
        parameter_shardings(frozen_shapes, mesh, *rules),
    )


def section(cls, config: ConfigDict, name: str):
    """A section of the config as its dataclass; raises UserError for values that do not fit."""
    return from_dict(cls, config[name].to_dict(), f"config.{name}")


def input_config(config: ConfigDict, **changes) -> DataConfig:
    """The data section as a DataConfig; `path` becomes the only set where there is one."""
    values = config.data.to_dict() | changes
    path, sets = values.pop("path"), values["sets"]
    if path and sets:
        raise UserError("config.data has a path and sets; give one of the two")
    if path:
        values["sets"] = ({"path": path},)
    elif not sets:
        raise UserError("there is no training data; add --config.data.path=RECORDS")
    return data_config(values)


def _check(config):
    choices = {
        "objective": tuple(LOSSES),
        "dtype": ("float32", "bfloat16"),
        "remat": REMAT_POLICIES,
    }
    for name, known in choices.items():
        if config[name] not in known:
            raise UserError(f"config.{name} is {config[name]!r}; it can be one of {list(known)}")
    for name in ("steps", "accumulate", "encode_pictures", "log_every", "checkpoint_every"):
        if config[name] < 1:
            raise UserError(f"config.{name} is {config[name]}; give at least 1")
    if config.optimizer.warmup >= config.steps > 1:
        note = f"config.optimizer.warmup is {config.optimizer.warmup}, but there are only"
        note += f" {config.steps} steps: the learning rate never gets to what it should be"
        warnings.warn(note, UserNote, stacklevel=2)
    if not config.learned:
        raise UserError("config.learned is empty: nothing would be trained")


def _model_config(config) -> ModelConfig:
    given = None if config.model is None else _sized(config.model)
    if config.init_from:
        model = read_config(config.init_from)
        if config.init_components:
            model = _with_components(given, model, config.init_components)
        elif given is not None and _sizes(given) != _sizes(model):
            raise UserError(
                f"config.model differs from the model in {config.init_from}; remove one of the two"
            )
        elif given is not None:
            model = dataclasses.replace(model, guidance=given.guidance)
    elif given is None:
        raise UserError(
            "there is nothing to start from; add --config.init_from=MODEL, which"
            " `animate-jax convert sd15` makes, or set config.model for random parameters"
        )
    else:
        model = given
    if config.motion:
        motion = _motion(config, model, given)
        if config.objective == "denoising" and config.data.frames > motion.max_frames:
            raise UserError(
                f"config.data.frames is {config.data.frames}, but the motion modules know"
                f" {motion.max_frames} frames; train on clips of at most so many"
            )
        unet = dataclasses.replace(model.denoising_unet, motion=motion)
        model = dataclasses.replace(model, denoising_unet=unet)
    elif config.objective == "denoising" or not config.init_from or config.init_components:
        model = without_motion(model)
    if config.objective == "denoising":
        model = dataclasses.replace(model, schedule=_schedule(model, config))
        side = min(config.data.height, config.data.width)
        model = dataclasses.replace(model, resolution=side)
    return model


def _schedule(model: ModelConfig, config) -> NoiseSchedule:
    """Of training, and of sampling with what was trained."""
    if config.schedule is not None:
        return from_dict(NoiseSchedule, dict(config.schedule), "config.schedule")
    if model.schedule != moore_sampling():
        return model.schedule
    note = "its weights are sampled with linear betas but were trained with scaled_linear ones,"
    note += " which are taken here, and for sampling afterwards; config.schedule can say otherwise"
    warnings.warn(f"{config.init_from}: {note}", UserNote, stacklevel=2)
    return NoiseSchedule()


def _with_components(given: ModelConfig | None, stored: ModelConfig, names) -> ModelConfig:
    """The given sizes, with those of the components that are taken from what is stored."""
    if given is None:
        raise UserError("config.init_components needs config.model, for the sizes of the others")
    if unknown := sorted(set(names) - set(COMPONENTS)):
        raise UserError(
            f"config.init_components names {unknown}; a model consists of {list(COMPONENTS)}"
        )
    return dataclasses.replace(given, **{name: getattr(stored, name) for name in names})


def _sizes(model: ModelConfig) -> ModelConfig:
    """The model without what stages change: motion modules, the measured scale of latents, the
    resolution, the noise, and the guidance that it asks for."""
    autoencoder = dataclasses.replace(model.autoencoder, scaling_factor=1.0)
    changing = dict(autoencoder=autoencoder, guidance=1.0, resolution=512, schedule=NoiseSchedule())
    return dataclasses.replace(without_motion(model), **changing)


def _motion(config, model, given) -> MotionConfig:
    """Of the model whose motion modules are taken, else of the one there is, else as asked for."""
    if config.motion_from:
        motion = read_config(config.motion_from).denoising_unet.motion
        if motion is None:
            raise UserError(f"{config.motion_from}: this model has no motion modules to take")
        return motion
    asked_for = given.denoising_unet.motion if given else None
    return model.denoising_unet.motion or asked_for or MotionConfig()


def note_new_motion(stage: Stage) -> None:
    """Says where motion modules, of which the config says nothing, are drawn at random."""
    config = stage.config
    if not config.motion or not config.init_from or config.motion_from or config.model is not None:
        return
    if read_config(config.init_from).denoising_unet.motion is None:
        note = f"the motion modules are drawn at random, for {config.init_from} has none;"
        note += " --config.motion_from=MODEL takes another's, as AnimateDiff's (convert --motion)"
        warnings.warn(note, UserNote, stacklevel=2)


def _sized(values) -> ModelConfig:
    plain = values.to_dict() if isinstance(values, ConfigDict) else values
    return from_dict(ModelConfig, plain, "config.model")


def load_parameters(stage: Stage) -> tuple[dict, dict]:
    """(learned float32, frozen in the compute dtype), read or drawn, on the devices."""
    learned, frozen = split(source_parameters(stage, stage.components), stage.learned)
    return cast(learned, jnp.float32), cast(frozen, stage.model.dtype)


def source_parameters(stage: Stage, components: Sequence[str]) -> dict:
    """What the stage starts from, in the dtypes it is stored in; drawn where nothing is stored."""
    config = stage.config
    shapes = flatten_dict(shapes_of(stage.model.config, components))
    rules = config.sharding, config.fsdp_min_size
    shardings = flatten_dict(parameter_shardings(unflatten_dict(shapes), stage.mesh, *rules))
    whole = replicated(stage.mesh)

    def read(path, components, **options):
        where = lambda name: shardings.get(tuple(name.split("/")), whole)  # noqa: E731
        return flatten_dict(load_model(path, components=components, shardings=where, **options)[1])

    leaves = {}
    if config.init_from:
        taken = [c for c in components if c in (config.init_components or components)]
        leaves = {p: x for p, x in read(config.init_from, taken).items() if p in shapes}
    if config.motion_from and config.motion and "denoising_unet" in components:
        leaves |= read(config.motion_from, ["denoising_unet"], motion_only=True)
    missing = set(shapes) - set(leaves)
    for component in sorted({path[0] for path in missing}):
        drawn = flatten_dict(stage.model.init(config.seed, (component,)))
        for path, array in drawn.items():
            if path in missing:
                leaves[path] = place(array, shardings[path])
    return unflatten_dict(leaves)


def parameter_counts(stage: Stage) -> tuple[int, int]:
    """How many parameters learn, and how many rest."""
    counts = [0, 0]
    for path, leaf in flatten_dict(shapes_of(stage.model.config, stage.components)).items():
        counts[path not in stage.learned] += leaf.size
    return tuple(counts)
