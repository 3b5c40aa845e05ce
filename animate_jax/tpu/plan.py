"""Compiles the real step for a TPU that is not there, and says whether and how it fits."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from animate_jax.config import ModelConfig, sd15, to_dict
from animate_jax.diffusion.samplers import sampling_steps
from animate_jax.errors import UserError
from animate_jax.inference.sampling import sample_clip, steps_at_once
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.parallel.chips import GIB, Chip, chip_of
from animate_jax.parallel.count_flops import count_flops
from animate_jax.parallel.mesh import batch_sharding, batch_shards, make_mesh, slices_of
from animate_jax.pose.keypoints import POINTS
from animate_jax.tpu.program import Program, read_program
from animate_jax.training.parameters import shapes_of, split
from animate_jax.training.stages import Stage, input_config, make_stage


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compiler says of one step; `program` is None where it does not fit."""

    chip: Chip
    kind: str
    devices: int
    flops: float  # that the step needs, all devices together
    parameters: int  # bytes on each device, by part
    optimizer: int
    program: Program | None
    needed: int  # bytes of memory on each device
    available: int
    samples: int  # clips or pictures in a step
    calls: int = 1  # of the program, for all that was asked for

    @property
    def fits(self) -> bool:
        return self.program is not None and self.needed <= self.available

    @property
    def seconds(self) -> float:
        return self.calls * self.program.cycles / self.chip.clock if self.program else math.inf

    @property
    def share_of_peak(self) -> float:
        return self.flops / (self.seconds * self.devices * self.chip.flops)


def plan_training(config: ConfigDict, devices: Sequence[jax.Device], flops: float = 0.0) -> Plan:
    """The step of `train(config)` on `devices`; `flops` where they are known already."""
    config = _with_model(config)
    mesh = make_mesh(config.mesh.to_dict(), devices)
    stage = make_stage(config, mesh)
    shards = batch_shards(mesh) * config.accumulate
    if config.data.batch_size % shards:
        raise UserError(
            f"a batch of {config.data.batch_size} does not split into {shards} parts; make "
            f"config.data.batch_size a multiple of {shards}, or choose another mesh"
        )
    arguments = step_arguments(stage)
    state, frozen, _ = arguments
    sizes = _bytes((state.learned, frozen)), _bytes((state.optimizer, state.average))
    if not flops:
        plain = dataclasses.replace(stage, model=dataclasses.replace(stage.model, remat="none"))
        with _on(mesh):
            flops = count_flops(plain.make_step(), *arguments)
    return _plan(lower_step(stage), devices, flops, *sizes, config.data.batch_size)


def lower_step(stage: Stage) -> jax.stages.Lowered:
    """The stage's step as `train` compiles it; no array is made."""
    with _on(stage.mesh):
        return stage.make_step().lower(*step_arguments(stage))


def _on(mesh):
    # Not jax.set_mesh: constants would be put on devices that cannot hold any.
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def plan_sampling(
    model_config: ModelConfig,
    frames: int,
    height: int,
    width: int,
    steps: int,
    guidance: float,
    devices: Sequence[jax.Device],
) -> Plan:
    """The denoising of one clip on the first device, as `animate` does it, in bfloat16."""
    lowered, flops, parameters = lower_sampling(
        model_config, frames, height, width, steps, guidance, devices[0]
    )
    calls = steps // steps_at_once(steps)
    return _plan(lowered, devices[:1], calls * flops, parameters, 0, 1, calls)


def lower_sampling(
    model_config: ModelConfig,
    frames: int,
    height: int,
    width: int,
    steps: int,
    guidance: float,
    device: jax.Device,
) -> tuple[jax.stages.Lowered, float, int]:
    """The program of some steps with one clip, as `inference.sampling.sample` calls it; the
    operations in it and the bytes of its parameters."""
    motion = model_config.denoising_unet.motion
    if motion and frames > motion.max_frames:
        raise UserError(
            f"{frames} frames at once; these motion modules know {motion.max_frames}, longer videos"
            f" are made in windows of --frames {motion.max_frames} or fewer"
        )
    dtype, model = jnp.bfloat16, AnimateAnyone(model_config, jnp.bfloat16)
    smaller = model_config.autoencoder.downscale
    latents = height // smaller, width // smaller, model_config.denoising_unet.in_channels
    networks = "denoising_unet", "reference_unet"
    params = _cast(shapes_of(model_config, networks), dtype)
    tokens = jax.ShapeDtypeStruct((1, 1, model_config.denoising_unet.cross_attention_dim), dtype)
    picture = jax.ShapeDtypeStruct((1, *latents), jnp.float32)
    reference = jax.eval_shape(model.encode_reference, params, picture, tokens)
    rows = 2 if guidance > 1 else 1
    tokens = jax.ShapeDtypeStruct((rows, *tokens.shape[1:]), dtype)
    bound = jax.eval_shape(model.bind, params, tokens, reference)
    clip = jax.ShapeDtypeStruct((1, frames, *latents), jnp.float32)
    guider = _cast(shapes_of(model_config, ("pose_guider",)), dtype)
    pixels = latents[0] * smaller, latents[1] * smaller
    skeletons = jax.ShapeDtypeStruct((1, frames, *pixels, 3), jnp.float32)
    pose = jax.eval_shape(model.encode_pose, guider, skeletons)
    table = sampling_steps(model_config.schedule, steps, "ddim", 0.0)
    table = jax.tree.map(lambda column: column[: steps_at_once(steps)], table)
    key = jax.eval_shape(lambda: jax.random.key(0))
    numbers = np.int32(0), np.float32(guidance), key
    del params["reference_unet"]
    there = SingleDeviceSharding(device)
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there),
        (params, (clip, clip), bound, pose),
    )
    arguments = *placed, table, *numbers
    flops = count_flops(functools.partial(sample_clip, model), *arguments)
    return sample_clip.lower(model, *arguments, stochastic=False), flops, _bytes(params)


def step_arguments(stage: Stage):
    """State, frozen parameters and a batch as jax.ShapeDtypeStruct with shardings."""
    shapes = shapes_of(stage.model.config, stage.components)
    _, frozen = split(shapes, stage.learned)
    frozen = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, stage.model.dtype, sharding=s),
        frozen,
        stage.frozen_shardings,
    )
    data = input_config(stage.config)
    rows, picture = data.batch_size, (data.height, data.width, 3)
    sharding = batch_sharding(stage.mesh)
    batch = {
        "reference": ((rows, *picture), jnp.uint8),
        "reference_keypoints": ((rows, POINTS, 3), jnp.float32),
        "frames": ((rows, data.frames, *picture), jnp.uint8),
        "keypoints": ((rows, data.frames, POINTS, 3), jnp.float32),
        "record": ((rows, 3), jnp.int32),
    }
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in batch.items()
    }
    return stage.state_shapes(), frozen, batch


def _cast(tree, dtype):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def _with_model(config: ConfigDict) -> ConfigDict:
    """The config with what a plan can take for granted: sizes of Stable Diffusion, some data."""
    config = ConfigDict(config.to_dict())
    if not config.init_from and config.model is None:
        config.model = to_dict(sd15())
    if not config.data.path and not config.data.sets:
        config.data.path = "unread"
    return config


def _plan(lowered, devices, flops, parameters, optimizer, samples, calls=1) -> Plan:
    chip = chip_of(devices[0])
    try:
        program = read_program(lowered.compile(), chip)
        needed, available = program.memory, int(chip.memory)
    except jax.errors.JaxRuntimeError as error:
        found = OUT_OF_MEMORY.search(str(error))
        if not found:
            raise
        program = None
        needed, available = (int(float(n) * UNITS[u]) for n, u in (found[1::2], found[2::2]))
    return Plan(
        chip,
        devices[0].device_kind,
        len(devices),
        flops,
        parameters,
        optimizer,
        program,
        needed,
        available,
        samples,
        calls,
    )


OUT_OF_MEMORY = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm")
UNITS = {unit: 1024.0**n for n, unit in enumerate("KMGT", 1)}


def _bytes(tree) -> int:
    """On each device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        shape = sharding.shard_shape(leaf.shape) if sharding else leaf.shape
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def describe(plan: Plan) -> str:
    """For people to read."""
    chip, gib = plan.chip, lambda size: f"{size / GIB:.2f} GiB"
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    lines = [
        f"{plan.devices} x {plan.kind}: {verdict}, {gib(plan.needed)} of {gib(plan.available)}",
        f"  parameters {gib(plan.parameters)}, optimizer {gib(plan.optimizer)} a device",
    ]
    if plan.program:
        program = plan.program
        rest = max(program.memory - plan.parameters - plan.optimizer, 0)
        lines[-1] += f", activations and the rest {gib(rest)}"
        cycles = plan.calls * program.cycles
        kernels = plan.calls * sum(program.kernel_cycles.values())
        lines += [
            f"  {plan.flops / 1e12:.1f} TFLOP in a step of {plan.samples}",
            f"  {cycles / 1e6:.1f} M cycles by the compiler's estimate, of which kernels"
            f" {kernels / 1e6:.1f} M: {plan.seconds * 1e3:.0f} ms,"
            f" {100 * plan.share_of_peak:.0f} % of peak",
        ]
        if program.without_estimate:
            missing = program.without_estimate
            lines.append(f"  without {missing} operations, of which the compiler says nothing")
        lines += [
            f"  {name} x{count}: {size / GIB:.3f} GiB"
            for name, (count, size) in sorted(program.messages.items())
        ]
        if program.messages:
            seconds = program.message_seconds(chip)
            lines.append(f"  messages: {seconds * 1e3:.0f} ms on the links, were nothing hidden")
    return "\n".join(lines)


REMATS = "none", "convolutions", "kernels", "attention", "full"


def sweep(config: ConfigDict, devices: Sequence[jax.Device]) -> Iterator[tuple[list[str], Plan]]:
    """Plans of the same step in other ways: (overrides, plan), one after the other as compiled.

    Varied are the mesh, how many parts a batch goes through in, and what is computed again. What
    does not fit is not tried with more samples at a time.
    """
    flops = 0.0
    for mesh in _meshes(len(devices), slices_of(devices)):
        for remat in REMATS:
            for accumulate in _parts(config.data.batch_size, mesh):
                overrides = [f"mesh.{axis}={size}" for axis, size in mesh.items()]
                overrides += [f"remat={remat}", f"accumulate={accumulate}"]
                changed = ConfigDict(config.to_dict())
                changed.mesh, changed.remat = ConfigDict(mesh), remat
                changed.accumulate = accumulate
                plan = plan_training(changed, devices, flops)
                flops = plan.flops
                yield [f"--config.{text}" for text in overrides], plan
                if plan.fits:
                    break  # more parts are never faster


def _meshes(devices: int, slices: int) -> Iterable[dict[str, int]]:
    """Within slices, which are joined along `data`."""
    for fsdp, tensor in itertools.product(_divisors(devices), (1, 2)):
        if devices // slices % (fsdp * tensor) == 0:
            yield {"data": devices // fsdp // tensor, "fsdp": fsdp, "tensor": tensor}


def _parts(batch_size, mesh) -> list[int]:
    shards = mesh["data"] * mesh["fsdp"]
    if batch_size % shards:
        return []
    return _divisors(batch_size // shards)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
