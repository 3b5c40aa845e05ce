"""Planning for TPUs that are not there."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from compile_for_tpu import compiled, run_alone
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from animate_jax.cli import main
from animate_jax.errors import UserError
from animate_jax.kernels.spatial_block import Rows, Weights, spatial_block
from animate_jax.parallel.chips import CHIPS
from animate_jax.parallel.count_flops import count_flops
from animate_jax.tpu.plan import Plan, describe, sweep
from animate_jax.tpu.program import Program, read_hlo
from animate_jax.tpu.topology import topology_name
from animate_jax.training.config import load_config

V5E = CHIPS["TPU v5 lite"]


@pytest.mark.parametrize(
    "text, name",
    [
        ("v5e:4x4", "v5e:4x4"),
        ("v5litepod-16", "v5e:4x4"),
        ("v6e-8", "v6e:2x4"),
        ("v4-32", "v4:2x2x4"),  # cores, two a chip
        ("v5p-8", "v5p:2x2x1"),
    ],
)
def test_accelerator_types(text, name):
    assert topology_name(text) == name


@pytest.mark.parametrize("text", ["v5e-3", "h100-8", "v4", "v5e:", "-16"])
def test_unknown_accelerator_types(text):
    with pytest.raises(UserError, match="no TPU known"):
        topology_name(text)


def test_flops_of_products_convolutions_and_loops():
    x, w = jax.ShapeDtypeStruct((6, 8), jnp.float32), jax.ShapeDtypeStruct((8, 8), jnp.float32)
    product = 2 * 6 * 8 * 8

    def chain(x, w):
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, None, length=5)[0].sum()

    assert count_flops(chain, x, w) == 5 * product
    assert count_flops(jax.grad(chain, argnums=(0, 1)), x, w) == 15 * product
    again = jax.grad(jax.checkpoint(chain), argnums=(0, 1))
    assert count_flops(again, x, w) == 15 * product  # nothing that is computed again

    picture = jax.ShapeDtypeStruct((2, 9, 9, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 4), jnp.float32)

    def convolve(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (2, 2), "VALID", dimension_numbers=numbers)

    forward = 2 * (2 * 4 * 4 * 4) * (3 * 3 * 3)
    assert count_flops(convolve, picture, kernel) == forward


def test_flops_are_those_of_the_plain_version():
    x = jnp.zeros((8, 8))

    def versions(x):
        return jax.lax.platform_dependent(x, default=lambda x: x @ x, tpu=lambda x: x @ x @ x)

    def kernel(x):
        return jax.lax.platform_dependent(x, default=lambda x: x @ x, tpu=lambda x: x + 1)

    def partly(x):  # a kernel, and a product beside it
        return jax.lax.platform_dependent(x, default=lambda x: x @ x @ x, tpu=lambda x: x @ x)

    product = 2 * 8 * 8 * 8
    assert count_flops(versions, x) == count_flops(kernel, x) == product
    assert count_flops(partly, x) == 2 * product
    gradient = count_flops(jax.grad(lambda x: partly(x).sum()), x)
    assert gradient == (2 + 4) * product


def test_flops_do_not_depend_on_the_chip():
    """Nor on which kernels it has room for: attention with a reference, forward and backward."""

    def total(x, weights):
        return spatial_block(Rows(x, (x[:, 0], x[:, 0])), weights, 8).astype(jnp.float32).sum()

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    tokens, channels = 4096, 320
    norm, square = array(channels), array(channels, channels)
    weights = Weights(norm, norm, square, square, square, square, norm)
    x = array(1, 2, tokens, channels)
    products = 4 * 2 * 2 * tokens * channels**2 + 2 * 4 * tokens * 2 * tokens * channels
    assert count_flops(total, x, weights) == products
    # The reference is x too; scores go through in slices, of which the gradient computes more.
    assert count_flops(jax.grad(total, argnums=(0, 1)), x, weights) == 3 * products


def test_flops_are_those_of_all_devices():
    mesh = AbstractMesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    rows = PartitionSpec("data")
    with jax.sharding.use_abstract_mesh(mesh):
        split = jax.shard_map(lambda x: x @ x.T, in_specs=rows, out_specs=rows)
        assert count_flops(split, jnp.zeros((8, 16))) == 4 * (2 * 2 * 2 * 16)


HLO = """\
%inner (p: f32[8]) -> f32[8] {
  %a = f32[8] fusion(%p), calls=%f, backend_config={"estimated_cycles":"100"}
  %g = (f32[2]{0}, f32[8]{0}) all-gather-start(%a), dimensions={0}
}

%condition (p: f32[8]) -> pred[] {
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = f32[8] while(%p), condition=%condition, body=%inner, \
backend_config={"known_trip_count":{"n":"7"}}
  %b = f32[8] fusion(%w), calls=%f, backend_config={"estimated_cycles":"5"}
  %k = bf16[1024,320] custom-call(%w), custom_call_target="tpu_custom_call", \
operand_layout_constraints={bf16[1024,320]{1,0}, f32[3,1,320]{2,1,0}}, \
metadata={op_name="jit(f)/feed_forward/pallas_call"}
}
"""


def test_loops_kernels_and_messages_are_counted():
    cycles, kernels, messages, without_estimate = read_hlo(HLO, V5E)
    assert without_estimate == 0 and cycles == 7 * 100 + 5
    assert kernels["feed_forward"] == pytest.approx(24 * 1024 * 320**2 / 97e3)
    assert messages == {"all-gather": (7, 7 * 32)}


COUNTED = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = f32[8] fusion(%p), calls=%f, backend_config={"estimated_cycles":"10"}
}
%condition (p: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(6), backend_config={}
  ROOT %c = pred[]{:T(512)} compare(%i, %n), direction=LT
}
%seen (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%p), condition=%condition, body=%body
}
%unseen (p: f32[8]) -> f32[8] {
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %w = f32[8] while(%p), condition=%condition, body=%body
  %d = f32[8] conditional(%i, %w, %w), branch_computations={%unseen, %seen}
}
"""


def test_operations_without_an_estimate_are_counted_apart():
    estimates = read_hlo(HLO.replace('"100"', f'"{2**63 - 1}"'), V5E)
    assert estimates.without_estimate == 7 and estimates.xla_cycles == 5
    program = dataclasses.replace(fake_plan(fits=True).program, without_estimate=7)
    said = describe(dataclasses.replace(fake_plan(fits=True), program=program))
    assert "without 7 operations" in said and "without" not in describe(fake_plan(fits=True))


def test_loops_that_only_their_condition_counts_and_branches():
    assert read_hlo(COUNTED, V5E).xla_cycles == 2 * 6 * 10


MESSAGES = """
%start (p: bf16[8,4]) -> (bf16[8,4], bf16[8,16]) {
  %g = bf16[8,16] all-gather(%p), channel_id=2, replica_groups={{0,1,2,3}}
}
%done (s: (bf16[8,4], bf16[8,16])) -> bf16[8,16] {
  %h = bf16[8,16] all-gather(%s), channel_id=2, replica_groups={{0,1,2,3}}
}
%all-reduce-scatter (i: f32[8,16]) -> f32[8,4] {
  %r = f32[8,16] all-reduce(%i), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
}
ENTRY %main (p: bf16[8,4]) -> bf16[8,16] {
  %s = (bf16[8,4], bf16[8,16]) fusion(%p), kind=kCustom, calls=%start
  %d = bf16[8,16] fusion(%s), kind=kCustom, calls=%done
  %k = bf16[8,4] custom-call(%d), custom_call_target="tpu_custom_call"
  %b = (f32[8], f32[16]) all-reduce(%k, %k), channel_id=5, replica_groups={{0,1,2,3}}
  %f = f32[8,4] fusion(%b), kind=kCustom, calls=%all-reduce-scatter
  %q = f32[8,4] reduce-scatter(%f), channel_id=4, replica_groups=[2,4]<=[8]
}
"""


def test_messages_inside_fusions_are_counted_once():
    messages = read_hlo(MESSAGES, V5E).messages
    assert messages == {
        "all-gather": (1, 2 * 8 * 16),
        "all-reduce": (1, 4 * (8 + 16)),
        "reduce-scatter": (2, 4 * 8 * 16 + 4 * (8 * 4) * 4),
    }


SPREAD = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from animate_jax.parallel.mesh import compiler_options, make_mesh
from animate_jax.tpu.topology import topology_devices
mesh = make_mesh({"data": 1, "fsdp": 4}, topology_devices("v5e:2x2"))
rows, outputs = (NamedSharding(mesh, PartitionSpec(*spec))
    for spec in (("fsdp",), (None, None, None, "fsdp")))
x = jax.ShapeDtypeStruct((32, 64, 64, 128), jnp.bfloat16, sharding=rows)
kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.bfloat16, sharding=outputs)
def convolve(x, kernel):
    numbers = "NHWC", "HWIO", "NHWC"
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
for options in (None, compiler_options(mesh)):
    told = jax.jit(convolve, out_shardings=rows, compiler_options=options)
    program = told.lower(x, kernel).compile().as_text()
    print("collective-permute" in program, "all-gather" in program)
"""


def test_spread_kernels_are_gathered_before_their_convolution():
    """What XLA does by itself is shown beside it, so that it is known when it has learnt to."""
    assert run_alone(SPREAD) == ["True False", "False True"]


SLICED = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from animate_jax.kernels import attention
from animate_jax.parallel.mesh import make_mesh
from animate_jax.tpu.topology import topology_devices
attention.SCORE_BYTES = 2**20
mesh = make_mesh({"data": 1, "fsdp": 4}, topology_devices("v5e:2x2"))
rows = NamedSharding(mesh, PartitionSpec("fsdp"))
x = jax.ShapeDtypeStruct((8, 1, 1024, 132), jnp.bfloat16, sharding=rows)
def attend(x):
    return attention.attention(x, x, x, 1)
for told in (jax.sharding.AbstractMesh((), ()), mesh.abstract_mesh):
    with jax.sharding.use_abstract_mesh(told):
        program = jax.jit(lambda x: attend(x), out_shardings=rows).lower(x).compile()
    print("all-gather" in program.as_text())
"""


def test_every_device_slices_the_attention_of_its_own_rows():
    """Where no kernel takes them, as the autoencoder's at 768x768; XLA by itself, shown beside it,
    gathers all rows, and computes all of them on every device."""
    assert run_alone(SLICED) == ["True", "False"]


NARROW = """
import jax, jax.numpy as jnp
from animate_jax.kernels.group_norm import group_norm
from animate_jax.parallel.mesh import make_mesh, replicated
from animate_jax.tpu.topology import topology_devices
whole = replicated(make_mesh({"data": 1}, topology_devices("v5e:1x1")))
x, weight = (jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=whole)
    for shape in ((24, 128, 128, 16), (16,)))
def total(*x):
    return group_norm(*x, 4, 1e-5, True).astype(jnp.float32).sum()
with jax.sharding.use_abstract_mesh(whole.mesh.abstract_mesh):
    program = jax.jit(jax.grad(total, (0, 1, 2))).lower(x, weight, weight).compile()
print("picture_sums" in program.as_text())
"""


def test_norms_of_few_channels_fit_a_chips_fast_memory():
    """Sixteen channels take as much of it as 128: the autoencoder of a small model."""
    assert run_alone(NARROW) == ["True"]


OLD = """
import jax, jax.numpy as jnp
from animate_jax.kernels.spatial_block import Rows, Weights, spatial_block
from animate_jax.parallel.mesh import make_mesh, replicated
from animate_jax.tpu.topology import topology_devices
jax.config.update("jax_optimization_level", "O1")
mesh = make_mesh({"data": 1}, topology_devices("v4:2x2x1")[:1])
def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=replicated(mesh))
norm, square = array(320), array(320, 320)
weights = Weights(norm, norm, square, square, square, square, norm)
def total(x, weights):
    return spatial_block(Rows(x, (x[:, 0], x[:, 0])), weights, 8).astype(jnp.float32).sum()
for tokens in 1024, 4096:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        gradient = jax.jit(jax.value_and_grad(total)).lower(array(1, 2, tokens, 320), weights)
        program = gradient.compile().as_text()
    print(*(f"spatial_attention_{way}" in program for way in ("forward", "backward")))
"""


def test_spatial_attention_fits_a_v4_chips_small_fast_memory():
    """Both ways at 32x32; at 64x64 with a reference its gradient does not."""
    assert run_alone(OLD) == ["True True", "True False"]


FEW = """
import jax, jax.numpy as jnp
jax.config.update("jax_optimization_level", "O1")
from animate_jax.kernels.narrow_convolutions import Layer, narrow_convolutions
from animate_jax.parallel.chips import chip_of
from animate_jax.parallel.mesh import make_mesh, replicated
from animate_jax.tpu.program import read_hlo
from animate_jax.tpu.topology import topology_devices
mesh = make_mesh({"data": 1}, topology_devices("v5e:1x1"))
def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=replicated(mesh))
layers = [Layer(array(3, 3, 16, 16), array(16))] * 2
def total(layers, x):
    return narrow_convolutions(x, layers, [1, 1]).astype(jnp.float32).sum()
for pictures in 4, 8:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        program = jax.jit(jax.grad(total)).lower(layers, array(pictures, 192, 192, 16)).compile()
    print(read_hlo(program.as_text(), chip_of(mesh.devices.flat[0])).xla_cycles)
"""


def test_few_pictures_of_few_channels_take_less_time_than_many():
    """Of fewer than eight, XLA by itself cuts each in eight and moves the pieces about."""
    four, eight = map(float, run_alone(FEW))
    assert 0 < four < 0.95 * eight


def test_a_small_stage_fits_v5e():
    plan = compiled("tests/small_stage1.py", "v5e:2x2", "dtype=bfloat16", "data.batch_size=32")
    assert plan["devices"] == 4 and plan["fits"]
    assert plan["parameters"] + plan["optimizer"] < plan["needed"] < 2**29
    assert plan["flops"] > 1e8 and 0 < plan["seconds"] < 1
    assert plan["messages"]["all-reduce"][0] > 0
    assert "picture_sums" in plan["kernels"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, topology", [("tiny_stage1.py", "v5e:1x1"), ("tiny_stage2.py", "v6e:1x1")]
)
def test_stages_of_the_bundled_model_fit(config, topology):
    plan = compiled(f"configs/{config}", topology, "dtype=bfloat16")
    assert plan["fits"] and plan["parameters"] + plan["optimizer"] < plan["needed"] < 2**30
    assert plan["flops"] > 1e11 and 0 < plan["seconds"] < 0.1
    assert not plan["messages"] and "picture_sums" in plan["kernels"]


def test_a_v4_chip_is_one_device():
    plan = compiled("sampling", "v4:2x2x1")
    assert plan["chips"] == 4 and plan["fits"]


def test_small_sampling_fits_v6e():
    plan = compiled("sampling", "v6e:1x1")
    assert plan["devices"] == 1 and plan["fits"]
    assert plan["parameters"] < plan["needed"] < 2**28
    assert plan["flops"] > 1e8 and 0 < plan["seconds"] < 1
    assert not plan["messages"] and "picture_sums" in plan["kernels"]


def fake_plan(fits, seconds=1.0):
    program = Program(0, 0, 0, seconds * V5E.clock, {}, {})
    return Plan(V5E, "TPU v5 lite", 4, 1e12, 0, 0, program, 0 if fits else 2, 1, 8)


def test_sweep_tries_smaller_parts_only_where_larger_do_not_fit(monkeypatch):
    tried = []

    def plan(config, devices, flops):
        mesh = tuple(config.mesh.to_dict().values())
        tried.append((mesh, config.remat, config.accumulate))
        assert flops == (1e12 if len(tried) > 1 else 0)  # counted once
        return fake_plan(fits=config.remat == "full" or config.accumulate == 2)

    monkeypatch.setattr("animate_jax.tpu.plan.plan_training", plan)
    config = load_config("tests/small_stage1.py")
    found = list(sweep(config, [None] * 4))
    assert len(found) == len(tried) == len(set(tried))
    meshes = {mesh for mesh, *_ in tried}
    assert meshes == {(4, 1, 1), (2, 1, 2), (2, 2, 1), (1, 2, 2), (1, 4, 1)}
    # A batch of 8 in parts of 2 a device; "full" fits at once.
    first = [way[1:] for way in tried if way[0] == (4, 1, 1)]
    more = "none", "convolutions", "kernels", "attention"
    assert first == [*((remat, parts) for remat in more for parts in (1, 2)), ("full", 1)]
    overrides, _ = found[1]
    assert "--config.remat=none" in overrides and "--config.accumulate=2" in overrides
    load_config("tests/small_stage1.py", [text.removeprefix("--config.") for text in overrides])


def test_what_is_said():
    said = describe(fake_plan(fits=True, seconds=0.5))
    assert "4 x TPU v5 lite: fits" in said and "500 ms, 0 % of peak" in said
    assert "DOES NOT FIT" in describe(fake_plan(fits=False))
    assert "DOES NOT FIT" in describe(dataclasses.replace(fake_plan(True), program=None))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology", "v5e-3", "--config", "configs/stage1.py"], "no TPU known"),
        (["--topology", "v5e:9x9", "--config", "configs/stage1.py"], "no such topology"),
        (["--topology", "v5e-4"], "--config configs/stage1.py"),
        (["animate", "--topology", "v5e:1x1", "--frames", "64"], "--frames 32 or fewer"),
        (["animate", "--topology", "v5e:1x1", "--config.x=1"], "for trainings"),
        (["--topology", "v5e-4", "--config", "configs/no.py"], "no such config"),
    ],
)
def test_bad_input(arguments, message, capsys):
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err
