"""The optimizer as a chain of optax transformations, from its config."""

from __future__ import annotations

import dataclasses
import typing

import jax
import optax
import optax.contrib

from animate_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """learning_rate is reached after `warmup` steps and then follows `schedule` to the last step,
    where it is `final_fraction` of itself. clip_norm: of all gradients together, 0 for none.
    moment_dtype: of the first moment. average_decay: of the averaged parameters that validation and
    the finished model use, 0 for none.

    "muon" orthogonalises the updates of kernels, for short trainings from random weights; all else
    learns by AdamW, at `others_rate` times the rate. "adafactor" takes neither b1, b2 nor eps, and
    its rate is that of the parameters as for AdamW, not relative to their size."""

    name: typing.Literal["adamw", "adafactor", "muon"] = "adamw"
    learning_rate: float = 1e-5
    schedule: typing.Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0
    final_fraction: float = 0.0
    weight_decay: float = 1e-2
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    moment_dtype: typing.Literal["float32", "bfloat16"] = "float32"
    average_decay: float = 0.0
    others_rate: float = 0.1


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Step number -> learning rate."""
    rate, rest = config.learning_rate, max(1, steps - config.warmup)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(rate, rest, config.final_fraction)
    elif config.schedule == "linear":
        main = optax.linear_schedule(rate, rate * config.final_fraction, rest)
    else:
        main = optax.constant_schedule(rate)
    if not config.warmup:
        return main
    # From one share, not from zero: a step that changes nothing would be wasted.
    rise = optax.linear_schedule(rate / config.warmup, rate, config.warmup - 1)
    return optax.join_schedules([rise, main], [config.warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW or Adafactor; raises UserError for values out of range."""
    for name, low in (("learning_rate", 0), ("warmup", 0), ("clip_norm", 0), ("weight_decay", 0)):
        if getattr(config, name) < low:
            raise UserError(
                f"config.optimizer.{name} is {getattr(config, name)}; give {low} or more"
            )
    for name in ("average_decay", "b1", "b2"):
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"config.optimizer.{name} is {getattr(config, name)}, not in [0, 1)")
    if not config.eps > 0:
        raise UserError(f"config.optimizer.eps is {config.eps}; give a small positive number")
    rate = learning_rate_schedule(config, steps)
    if config.name == "adamw":
        main = optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mu_dtype=config.moment_dtype,
        )
    elif config.name == "muon":
        main = optax.contrib.muon(
            rate,
            beta=0.95,
            weight_decay=config.weight_decay,
            mu_dtype=config.moment_dtype,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=config.weight_decay,
            adam_learning_rate=lambda step: config.others_rate * rate(step),
            muon_weight_dimension_numbers=_kernels,
        )
    else:
        # optax subtracts it as it is, while AdamW's is a share of the rate.
        decay = (lambda step: config.weight_decay * rate(step)) if config.weight_decay else None
        main = optax.adafactor(rate, multiply_by_parameter_scale=False, weight_decay_rate=decay)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, main)


def _kernels(params):
    """Which axes of a parameter are inputs and outputs of a matrix; None where it is none."""

    def axes(path, x):
        if getattr(path[-1], "key", None) != "kernel" or x.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)
