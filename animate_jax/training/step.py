"""One training step: gradients of a loss over a global batch, an update, and what is worth knowing.

The same function on one device and on a pod: the batch is split over the mesh, parameters and
optimizer state lie where the rules put them, and XLA adds the communication.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding

from animate_jax.parallel.mesh import (
    batch_sharding,
    batch_shards,
    compiler_options,
    replicated,
)
from animate_jax.parallel.sharding import (
    FSDP_MIN_SIZE,
    Rules,
    parameter_shardings,
    partition_spec,
)
from animate_jax.training.objective import sample_keys, to_slices
from animate_jax.training.parameters import merge

# (parameters, batch, keys (B,)) -> losses (B,)
Loss = Callable[[dict, dict, jax.Array], jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that a step changes."""

    step: jax.Array  # int32 (), how many steps have been taken
    learned: dict  # float32
    optimizer: optax.OptState
    average: dict | None  # of `learned` over time
    usual_loss: jax.Array  # float32 (), its average over recent steps
    stopped: jax.Array  # bool (): a loss was not finite or leapt; no later step changes anything

    @property
    def result(self) -> dict:
        """What has been learnt: averaged over time, if it was."""
        return self.learned if self.average is None else self.average


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """accumulate: into how many parts the batch goes through one after the other.

    spike_factor: a loss so many times the usual one stops the run, 0 never; counted from step
    `spike_start`, when the usual loss is known.
    """

    seed: int = 0
    accumulate: int = 1
    average_decay: float = 0.0
    spike_factor: float = 0.0
    spike_start: int = 100


class Metrics(typing.NamedTuple):
    """Of one step, the same on every process."""

    loss: jax.Array  # ()
    losses: jax.Array  # (B,)
    records: jax.Array  # int32 (B, 3), which the batch came from
    gradient_norm: jax.Array  # ()
    stopped: jax.Array  # bool ()


def initial_state(learned: dict, optimizer, options: StepOptions) -> TrainState:
    """Before the first step."""
    average = jax.tree.map(jnp.copy, learned) if options.average_decay else None
    zero = jnp.zeros((), jnp.float32)
    step, stopped = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    return TrainState(step, learned, optimizer.init(learned), average, zero, stopped)


def state_shardings(
    learned: dict,
    optimizer,
    options: StepOptions,
    mesh: Mesh,
    rules: Rules,
    min_size: int = FSDP_MIN_SIZE,
) -> TrainState:
    """A TrainState of shardings; optimizer state lies as the parameter it belongs to.

    `learned` may be shapes only; rules and min_size as in `partition_spec`.
    """
    shapes = jax.eval_shape(lambda tree: initial_state(tree, optimizer, options), learned)
    parameters = {path: leaf.shape for path, leaf in flatten_dict(learned).items()}

    def place(path, leaf):
        names = tuple(getattr(key, "key", None) for key in path)
        owner = next((names[i:] for i in range(len(names)) if names[i:] in parameters), None)
        if owner is None:
            return replicated(mesh)
        same = tuple(leaf.shape) == tuple(parameters[owner])
        name = "/".join(owner)  # Adafactor's rows and columns have shapes of their own
        its_rules = rules if same else ()
        return NamedSharding(mesh, partition_spec(name, leaf.shape, mesh, its_rules, min_size))

    shardings = jax.tree_util.tree_map_with_path(place, shapes)
    return shardings.replace(learned=parameter_shardings(learned, mesh, rules, min_size))


def make_step(loss: Loss, optimizer, options: StepOptions, mesh: Mesh, shardings: TrainState):
    """jitted (state, frozen, batch) -> (state, metrics); the state given is consumed.

    batch: arrays whose first axis is the global batch, split as `batch_sharding`.
    """
    shards = batch_shards(mesh)

    def mean_loss(learned, frozen, batch, keys):
        losses = loss(merge(learned, frozen), batch, keys)
        return losses.mean(), losses

    gradient = jax.value_and_grad(mean_loss, has_aux=True)

    def accumulated(learned, frozen, batch, keys):
        def add(total, part):
            (value, losses), gradients = gradient(learned, frozen, *part)
            return jax.tree.map(jnp.add, total, (value, gradients)), losses

        parts = options.accumulate
        slices = to_slices((batch, keys), shards, parts)
        zeros = jax.tree.map(jnp.zeros_like, learned)
        total, losses = jax.lax.scan(add, (jnp.float32(0), zeros), slices)
        value, gradients = jax.tree.map(lambda x: x / parts, total)
        losses = losses.reshape(parts, shards, -1).swapaxes(0, 1).reshape(-1)
        return (value, losses), gradients

    def step(state, frozen, batch):
        rows = jax.tree.leaves(batch)[0].shape[0]
        keys = sample_keys(options.seed, state.step, jnp.arange(rows))
        compute = gradient if options.accumulate == 1 else accumulated
        (value, losses), gradients = compute(state.learned, frozen, batch, keys)
        norm = optax.global_norm(gradients)
        new = _updated(state, gradients, value, optimizer, options)
        bad = ~(jnp.isfinite(value) & jnp.isfinite(norm))
        if options.spike_factor:
            leapt = value > options.spike_factor * state.usual_loss
            bad |= leapt & (state.step >= options.spike_start)
        stopped = state.stopped | bad
        new = jax.tree.map(functools.partial(jnp.where, stopped), state, new)
        return new.replace(stopped=stopped), Metrics(value, losses, batch["record"], norm, stopped)

    whole = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, None, batch_sharding(mesh)),
        out_shardings=(shardings, Metrics(*[whole] * len(Metrics._fields))),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


def _updated(state, gradients, loss, optimizer, options):
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.learned)
    learned = optax.apply_updates(state.learned, updates)
    average = state.average
    if average is not None:
        # Early averages forget faster, or they would remember the random start.
        passed = state.step.astype(jnp.float32)
        decay = jnp.minimum(options.average_decay, (1 + passed) / (10 + passed))
        average = jax.tree.map(lambda a, x: a * decay + x * (1 - decay), average, learned)
    share = jnp.maximum(0.02, 1 / (state.step + 1))
    usual = state.usual_loss + share * (loss - state.usual_loss)
    return TrainState(state.step + 1, learned, optimizer_state, average, usual, state.stopped)
