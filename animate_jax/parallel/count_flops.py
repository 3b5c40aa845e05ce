"""How many floating-point operations a program needs: those of its matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.extend import core


def count_flops(function: Callable, *arguments) -> float:
    """Of `function(*arguments)`, which may be shapes; all devices together.

    Matrix products and convolutions count, two operations a multiplication; loops count as often as
    they run. Kernels are counted by the plain version that stands beside them, and nothing that a
    backward pass computes again (`jax.checkpoint`).
    """
    # A jitted function may carry options that only the outermost may have.
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    return traced_flops(jitted.trace(*arguments))


def traced_flops(traced: jax.stages.Traced) -> float:
    """As `count_flops`, of a function that has been traced already."""
    return _flops(traced.jaxpr.jaxpr)


def _flops(jaxpr: core.Jaxpr) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> float:
    name, parameters = equation.primitive.name, equation.params
    if "rematted_computation" in str(equation.source_info.name_stack):
        return 0.0
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval, parameters["dimension_numbers"]
        outputs = kernel.shape[numbers.rhs_spec[0]]
        dilation = math.prod(parameters["lhs_dilation"])  # by which zeros are put between pixels
        size = equation.outvars[0].aval.size
        groups = parameters["batch_group_count"]
        return 2.0 * size * kernel.size / outputs / dilation / groups
    if name == "pallas_call":
        return 0.0
    if name == "cond":  # of versions for several platforms the plain one stands last
        return _flops(parameters["branches"][-1].jaxpr)
    times = parameters["length"] if name == "scan" else 1
    if name == "shard_map":
        # Along axes that nothing is split over the same is computed again.
        split = {axis for spec in parameters["in_specs"] for axis in _axes(spec)} - {None}
        times = math.prod(parameters["mesh"].shape[axis] for axis in split)
    return times * sum(_flops(inner) for inner in _inner(parameters))


def _axes(spec):
    for entry in spec:
        yield from entry if isinstance(entry, tuple) else (entry,)


def _inner(parameters):
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
