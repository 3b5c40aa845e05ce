"""One step, on a loss that compiles at once: updates, accumulation, averages, and when it stops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from animate_jax.errors import UserError
from animate_jax.parallel.mesh import make_mesh
from animate_jax.parallel.sharding import TENSOR_RULES
from animate_jax.training.objective import DenoisingLoss
from animate_jax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer
from animate_jax.training.step import StepOptions, initial_state, make_step, state_shardings

LEARNED = {"layer": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)}}
DEFAULTS = StepOptions()
FROZEN = {"head": {"bias": np.float32([0.5, -0.5, 0.25])}}


def loss(params, batch, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    out = batch["x"] @ params["layer"]["kernel"] + params["head"]["bias"] + 0.1 * noise
    return jnp.mean(out**2, axis=-1)


def batch(seed=0, scale=1.0):
    x = np.random.default_rng(seed).standard_normal((8, 4)).astype(np.float32) * np.float32(scale)
    return {"x": x, "record": np.arange(24, dtype=np.int32).reshape(8, 3)}


def run(batches, options=DEFAULTS, **optimizer):
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    optimizer = make_optimizer(OptimizerConfig(**{"learning_rate": 0.1, **optimizer}), 100)
    with jax.set_mesh(mesh):
        shardings = state_shardings(LEARNED, optimizer, options, mesh, TENSOR_RULES)
        state = initial_state(jax.tree.map(jnp.array, LEARNED), optimizer, options)
        step, metrics = make_step(loss, optimizer, options, mesh, shardings), []
        for one in batches:
            state, latest = step(state, FROZEN, one)
            metrics.append(jax.device_get(latest))
    return state, metrics


def test_updates_are_those_of_optax():
    keys = [
        jax.vmap(
            lambda row, s=s: jax.random.fold_in(jax.random.fold_in(jax.random.key(0), s), row)
        )(jnp.arange(8))
        for s in range(3)
    ]
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=1e-2))
    learned, optimizer = LEARNED, clipped.init(LEARNED)
    for number in range(3):
        value, gradient = jax.value_and_grad(
            lambda x, n=number: loss({**x, **FROZEN}, batch(n), keys[n]).mean()
        )(learned)
        updates, optimizer = clipped.update(gradient, optimizer, learned)
        learned = optax.apply_updates(learned, updates)
    state, metrics = run([batch(n) for n in range(3)])
    assert metrics[-1].loss == pytest.approx(float(value), rel=1e-6)
    assert metrics[-1].gradient_norm == pytest.approx(float(optax.global_norm(gradient)), rel=1e-6)
    np.testing.assert_allclose(
        state.learned["layer"]["kernel"], learned["layer"]["kernel"], rtol=1e-5
    )
    assert int(state.step) == 3


def test_accumulated_parts_are_the_whole_batch():
    whole, metrics = run([batch(0), batch(1)])
    parts, in_parts = run([batch(0), batch(1)], StepOptions(accumulate=4))
    np.testing.assert_allclose(in_parts[1].losses, metrics[1].losses, rtol=1e-5)
    assert in_parts[1].loss == pytest.approx(metrics[1].loss, rel=1e-6)
    np.testing.assert_allclose(
        parts.learned["layer"]["kernel"], whole.learned["layer"]["kernel"], rtol=1e-5
    )


def test_the_average_follows_and_early_forgets_faster():
    state, _ = run([batch(0)], StepOptions(average_decay=0.9))
    before, after = LEARNED["layer"]["kernel"], np.asarray(state.learned["layer"]["kernel"])
    decay = 0.1  # (1 + step) / (10 + step) of the first step
    np.testing.assert_allclose(
        state.average["layer"]["kernel"], decay * before + (1 - decay) * after, rtol=1e-5
    )


@pytest.mark.parametrize("scale, factor", [(np.nan, 0.0), (1e3, 20.0)], ids=["nan", "spike"])
def test_a_bad_loss_stops_before_it_changes_anything(scale, factor):
    options = StepOptions(spike_factor=factor, spike_start=2)
    good, _ = run([batch(n) for n in range(4)], options)
    batches = [*(batch(n) for n in range(4)), batch(4, scale), batch(5)]
    state, metrics = run(batches, options)
    assert [bool(m.stopped) for m in metrics] == [False] * 4 + [True] * 2
    assert int(state.step) == 4 and bool(state.stopped)
    for one, other in zip(jax.tree.leaves(state.learned), jax.tree.leaves(good.learned)):
        assert np.array_equal(one, other)
    for one, other in zip(jax.tree.leaves(state.optimizer), jax.tree.leaves(good.optimizer)):
        assert np.array_equal(one, other)
    assert np.array_equal(metrics[4].records, batch()["record"])


def test_optimizer_state_is_what_was_asked_for():
    state, _ = run([batch()], moment_dtype="bfloat16")
    adam = state.optimizer[1][0]
    assert adam.mu["layer"]["kernel"].dtype == jnp.bfloat16
    assert adam.nu["layer"]["kernel"].dtype == jnp.float32
    assert set(adam.mu) == {"layer"}  # nothing for what is frozen
    state, metrics = run([batch(n) for n in range(20)], name="adafactor", weight_decay=0.0)
    assert np.isfinite(metrics[-1].loss) and metrics[-1].loss < metrics[0].loss


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_weight_decay_is_a_share_of_the_learning_rate(name):
    config = OptimizerConfig(name, learning_rate=0.1, weight_decay=0.5, others_rate=1.0)
    optimizer = make_optimizer(config, 10)
    parameters = {"layer": {"kernel": jnp.full((4, 6), 2.0), "bias": jnp.full(6, 2.0)}}
    gradients = jax.tree.map(jnp.zeros_like, parameters)
    updates, _ = optimizer.update(gradients, optimizer.init(parameters), parameters)
    for update in updates["layer"].values():
        np.testing.assert_allclose(update, -0.1 * 0.5 * 2.0, rtol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-3, 0.0])
def test_rates_are_not_relative_to_the_size_of_parameters(size):
    for name in ("adamw", "adafactor"):
        optimizer = make_optimizer(OptimizerConfig(name, learning_rate=0.1, weight_decay=0.0), 10)
        parameters = {"kernel": jnp.full((4, 6), size)}
        gradients = jax.tree.map(jnp.ones_like, parameters)
        update, _ = optimizer.update(gradients, optimizer.init(parameters), parameters)
        np.testing.assert_allclose(update["kernel"], -0.1, rtol=1e-3)


@pytest.mark.parametrize(
    "make, name, value",
    [
        *((DenoisingLoss, "min_snr_gamma", value) for value in (-1.0, float("nan"))),
        *((DenoisingLoss, "timestep_shift", value) for value in (0.0, -1.0)),
        *((DenoisingLoss, "drop_both", value) for value in (10.0, -0.1)),
        (DenoisingLoss, "noise_offset", -1.0),
        *((OptimizerConfig, name, 1.5) for name in ("b1", "b2", "average_decay")),
        (OptimizerConfig, "eps", 0.0),
    ],
)
def test_impossible_settings_are_named(make, name, value):
    with pytest.raises(UserError, match=f"{name} is {value}"):
        made = make(**{name: value})
        make_optimizer(made, 10)


def test_muon_turns_every_direction_of_a_kernel_alike():
    """Convolutions as matrices of all inputs by outputs; what is no kernel goes Adam's way."""
    random = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 4, 8), "dense": (12, 6)}
    gradients = {
        name: {"kernel": random.standard_normal(shape), "bias": random.standard_normal(shape[-1])}
        for name, shape in shapes.items()
    }
    gradients = jax.tree.map(jnp.float32, gradients | {"norm": {"scale": jnp.ones(5)}})
    config = OptimizerConfig("muon", learning_rate=0.1, weight_decay=0.0, clip_norm=0.0)
    optimizer = make_optimizer(config, 10)
    parameters = jax.tree.map(jnp.zeros_like, gradients)
    updates, _ = optimizer.update(gradients, optimizer.init(parameters), parameters)
    for name, shape in shapes.items():
        sizes = np.linalg.svd(updates[name]["kernel"].reshape(-1, shape[-1]), compute_uv=False)
        before = np.linalg.svd(gradients[name]["kernel"].reshape(-1, shape[-1]), compute_uv=False)
        assert before.max() / before.min() > 2 and sizes.max() / sizes.min() < 2
        assert 0.05 < sizes.mean() < 0.2
        moved = np.abs(updates[name]["bias"])
        assert 0.005 < moved.min() and moved.max() < 0.02
    np.testing.assert_allclose(updates["norm"]["scale"], updates["norm"]["scale"][0])


@pytest.mark.parametrize(
    "schedule, expected",
    [("constant", [0.25, 1.0, 1.0, 1.0]), ("linear", [0.25, 1.0, 0.5, 0.0])],
)
def test_learning_rates(schedule, expected):
    config = OptimizerConfig(learning_rate=1.0, warmup=4, schedule=schedule)
    rate = learning_rate_schedule(config, 104)
    assert [float(rate(step)) for step in (0, 3, 54, 104)] == pytest.approx(expected)
