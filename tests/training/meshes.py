"""Ten steps of stage 1 on several meshes of 8 virtual devices, and videos with guidance as
validation samples them; prints what came out as JSON.

A program of its own, because the number of devices is fixed when JAX starts.
"""

import json
import os
import re

# Eight programs are compiled, and not to be fast.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402
from flax.traverse_util import flatten_dict  # noqa: E402
from small_model import small_model  # noqa: E402

from animate_jax.config import to_dict  # noqa: E402
from animate_jax.parallel.mesh import batch_sharding, make_mesh, replicated  # noqa: E402
from animate_jax.training.stages import load_parameters, make_stage  # noqa: E402
from animate_jax.training.validation import sample_videos  # noqa: E402
from configs import stage1  # noqa: E402

STEPS, BATCH = 10, 8
SETUPS = {
    "1 device": {},
    "8 data": {"data": 8},
    "4 fsdp, 2 data": {"fsdp": 4, "data": 2},
    "2 tensor, 4 data": {"tensor": 2, "data": 4},
    "accumulated": {"accumulate": 4, "encode_pictures": 1},
    "remat": {"remat": "full"},
}


def make(data=1, fsdp=1, tensor=1, accumulate=1, remat="none", encode_pictures=BATCH):
    config = stage1.get_config()
    config.model = to_dict(small_model())
    config.dtype, config.remat, config.accumulate = "float32", remat, accumulate
    config.encode_pictures = encode_pictures
    config.fsdp_min_size = 256
    config.optimizer.eps = 1e-6  # Adam with less would enlarge rounding of zero gradients
    devices = jax.devices()[: data * fsdp * tensor]
    return config, make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor}, devices)


def run(**setup):
    config, mesh = make(**setup)
    with jax.set_mesh(mesh):
        stage = make_stage(config, mesh)
        learned, frozen = load_parameters(stage)
        before = jax.device_get(learned)
        state = stage.new_state(learned)
        step, losses = stage.make_step(), []
        for number in range(STEPS):
            batch = jax.device_put(make_batch(number), batch_sharding(mesh))
            state, metrics = step(state, frozen, batch)
            losses.append(float(metrics.loss))
    return losses, before, state, frozen


def videos(**setup):
    """Sampled videos, and the shapes of all that devices told each other for them."""
    config, mesh = make(**setup)
    config.validation.videos, config.validation.steps = BATCH, 2
    with jax.set_mesh(mesh):
        stage = make_stage(config, mesh)
        learned, frozen = load_parameters(stage)
        batch = jax.device_put(make_batch(0, frames=2), batch_sharding(mesh))
        sample = jax.jit(
            lambda *arguments: sample_videos(stage, *arguments), out_shardings=replicated(mesh)
        )
        compiled = sample.lower(learned, frozen, batch).compile()
        sampled = np.asarray(compiled(learned, frozen, batch)[0], np.int32)
    told = r"= (\w+\[[\d,]*\])\S* (?:all-gather|all-to-all|collective-permute|all-reduce)\("
    return sampled, re.findall(told, compiled.as_text())


def make_batch(number, frames=1):
    random = np.random.default_rng(number)
    pictures = lambda *shape: random.integers(0, 256, (*shape, 32, 32, 3), np.uint8)  # noqa: E731
    keypoints = (random.random((BATCH, frames, 134, 3)) * [32, 32, 1]).astype(np.float32)
    return dict(
        reference=pictures(BATCH),
        frames=pictures(BATCH, frames),
        keypoints=keypoints,
        record=np.zeros((BATCH, 3), np.int32),
    )


def parts(tree):
    """{path: (size, into how many parts it is split over the devices)}."""
    leaves = {"/".join(path): x for path, x in flatten_dict(tree).items()}
    return {
        path: (x.size, x.size // max(1, x.addressable_shards[0].data.size))
        for path, x in leaves.items()
    }


def main():
    report, base = {}, None
    for name, setup in SETUPS.items():
        losses, before, state, frozen = run(**setup)
        after = jax.device_get(state.learned)
        moved = jax.tree.map(lambda a, b: a - b, after, before)
        if base is None:
            base = losses, moved, after
        difference = jax.tree.map(np.subtract, after, base[2])
        norm = lambda tree: float(np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree))))  # noqa: E731
        moments = state.optimizer[1][0].mu
        report[name] = {
            "losses": losses,
            "loss_error": float(np.max(np.abs(np.divide(losses, base[0]) - 1))),
            "parameter_error": norm(difference) / norm(after),
            "movement_error": norm(difference) / norm(moved),
            "still": [
                "/".join(p) for p, x in flatten_dict(moved).items() if not np.abs(x).max() > 0
            ],
            "parts": parts(state.learned),
            "moment_parts": parts(moments),
            "frozen_parts": parts(frozen),
        }
    (alone, _), (spread, told) = videos(), videos(**SETUPS["8 data"])
    differs = int(np.abs(alone - spread).max()), float(alone.std())
    report["videos"] = {"differs": differs, "told": told}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
