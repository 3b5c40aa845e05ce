"""How long a training step of the tiny model takes, beside the same step in PyTorch.

    python benchmarks/training_step.py [--stage 1] [--steps 20] [--threads 2] [--no-compile]

The steps are those of configs/stage1.py and configs/stage2.py with the tiny preset, for pictures of
64x64 in float32, from the same random weights and on the same batch in memory: frozen autoencoder
and image encoder, noise, dropped conditions, ReferenceNet, denoiser, weighted loss, backward pass,
clipping by the norm of the gradients, AdamW, and nothing changed where the loss is not finite. In
JAX it is the step that `animate-jax train` takes; in PyTorch diffusers' UNets with PyTorch's fused
attention and optimizer. The same parameters learn in both, at a constant rate and without averages.

Before anything is timed all take two steps from the same random draws: losses and norms of the
gradients have to agree. Then they take turns, so that the machine's moods meet all alike. One thing
only JAX's step does: it draws the skeletons, which PyTorch's is given. That is printed beside.
"""

import argparse
import os
import sys
import time
import typing
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from parity import convert_all  # noqa: E402
from torch_animate_anyone import TorchAnimateAnyone  # noqa: E402

from animate_jax.config import tiny, to_dict  # noqa: E402
from animate_jax.diffusion.schedule import alphas_cumprod, min_snr_weights  # noqa: E402
from animate_jax.models.animate_anyone import COMPONENTS  # noqa: E402
from animate_jax.parallel.mesh import make_mesh  # noqa: E402
from animate_jax.training.objective import (  # noqa: E402
    draw_batch,
    draw_randomness,
    sample_keys,
)
from animate_jax.training.parameters import split  # noqa: E402
from animate_jax.training.stages import make_stage  # noqa: E402
from animate_jax.weights.mappings import torch_name  # noqa: E402
from configs import stage1, stage2  # noqa: E402

CONFIGS = {1: stage1, 2: stage2}
CLIPS_AND_FRAMES = {1: (8, 1), 2: (2, 8)}
CHECKED_STEPS, LOSS_TOLERANCE = 2, 1e-4
# Of gradients and what follows from them. At the lowest level the group norms have two values a
# group: where these are nearly equal, float32 differs from float64 as much in either framework.
TOLERANCE = 3e-2
WARM_UP = 3


class Draws(typing.NamedTuple):
    """What is random about a step; B clips of F frames."""

    posterior: torch.Tensor  # (B * F, C, h, w), of the frames' latents
    timesteps: torch.Tensor  # (B,)
    noise: torch.Tensor  # (B, F, C, h, w)
    has_image: torch.Tensor  # bool (B,)
    has_reference: torch.Tensor  # bool (B,)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--stage", type=int, choices=CONFIGS, help="(both)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each kind (20)")
    parser.add_argument("--threads", type=int, help="cores to use, one thread on each (all)")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.sched_setaffinity(0, cores)  # before XLA starts as many threads as it has cores
    torch.set_num_threads(len(cores))
    for number in [options.stage] if options.stage else CONFIGS:
        config = CONFIGS[number].get_config()
        config.model = to_dict(tiny())
        config.dtype, config.remat = "float32", "none"
        config.encode_pictures = 8
        config.mesh.data, config.mesh.fsdp = -1, 1
        data = config.data
        data.height = data.width = 64
        data.batch_size, data.frames = CLIPS_AND_FRAMES[number]
        print(
            f"stage {number}: {data.batch_size} clips, {data.frames} frames of"
            f" {data.width}x{data.height} pixels, {len(cores)} threads"
        )
        mesh = make_mesh(config.mesh.to_dict(), jax.devices()[:1])
        with jax.set_mesh(mesh):
            measure(make_stage(config, mesh), options.steps, not options.no_compile)


def measure(stage, steps: int, compiled: bool) -> None:
    """Checks that the steps of a stage agree, times them, and prints a table."""
    batch = make_batch(stage.config.data)
    kinds = {"JAX": JaxStep(stage, batch), "PyTorch eager": TorchStep(stage, batch)}
    if compiled:
        kinds["torch.compile"] = TorchStep(stage, batch, compiled=True)
    kinds = check(stage, kinds)
    drawing = jax.jit(lambda points: draw_batch(points, *batch["frames"].shape[2:4]))
    points = jnp.asarray(batch["keypoints"])
    times = take_turns(kinds | {"skeletons": lambda: jax.block_until_ready(drawing(points))}, steps)
    median = {name: np.median(spent) for name, spent in times.items()}
    best = {name: min(spent) for name, spent in times.items()}
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"  seconds a step, of {steps} each; load of the machine: {load}")
    print(f"  {'':16}{'median':>9}{'best':>9}{'times JAX':>12}{'by best':>9}")
    for name in kinds:
        ratios = median[name] / median["JAX"], best[name] / best["JAX"]
        print(f"  {name:16}{median[name]:9.4f}{best[name]:9.4f}{ratios[0]:12.2f}{ratios[1]:9.2f}")
    spent = median["skeletons"], best["skeletons"]
    print(f"  {'drawing, in JAX':16}{spent[0]:9.4f}{spent[1]:9.4f}")


def make_batch(data) -> dict[str, np.ndarray]:
    """Pictures of noise; every point of every skeleton is to be drawn."""
    random, size = np.random.default_rng(0), (data.height, data.width, 3)
    frames = data.batch_size, data.frames
    points = random.random((*frames, 134, 3)) * [data.width, data.height, 0] + [0, 0, 1]
    return {
        "reference": random.integers(0, 256, (data.batch_size, *size), np.uint8),
        "frames": random.integers(0, 256, (*frames, *size), np.uint8),
        "keypoints": points.astype(np.float32),
        "record": np.zeros((data.batch_size, 3), np.int32),
    }


def take_turns(kinds: dict, steps: int) -> dict[str, list[float]]:
    """Seconds of every call of every kind."""
    times = {name: [] for name in kinds}
    for number in range(-WARM_UP, steps):
        for name, step in kinds.items():
            begin = time.perf_counter()
            step()
            if number >= 0:
                times[name].append(time.perf_counter() - begin)
    return times


def check(stage, kinds: dict) -> dict:
    """The kinds of steps that run here, after a few steps from the draws of the training.

    Exits where a loss or a norm of gradients is not JAX's.
    """
    expected = [kinds["JAX"]() for _ in range(CHECKED_STEPS)]
    running = {"JAX": kinds["JAX"]}
    for name, step in kinds.items():
        if name == "JAX":
            continue
        begin = time.perf_counter()
        try:
            found = [step(shared_draws(stage, number)) for number in range(CHECKED_STEPS)]
        except torch._dynamo.exc.TorchDynamoException as error:
            print(f"  {name} does not work here: {str(error).strip().splitlines()[0]}")
            continue
        difference = np.abs(np.divide(found, expected) - 1)
        (first, norm), (second, other_norm) = difference
        print(
            f"  {name}: ready in {time.perf_counter() - begin:.0f} s; losses differ from JAX's by"
            f" {first:.0e} and {second:.0e}, the gradients' norms by {max(norm, other_norm):.0e}"
        )
        if not (first <= LOSS_TOLERANCE and difference.max() <= TOLERANCE):
            sys.exit(f"{name} and JAX do not compute the same: {found}, {expected}")
        running[name] = step
    return running


class JaxStep:
    """The step of `animate-jax train`, compiled."""

    def __init__(self, stage, batch):
        parts = torch_model(stage).state_dicts()
        if stage.model.config.denoising_unet.motion is None:
            parts["motion_module"] = {}
        learned, frozen = split(convert_all(stage.model, parts), stage.learned)
        learned, self.frozen, self.batch = jax.device_put((learned, frozen, batch))
        self.state = stage.new_state(learned)
        begin = time.perf_counter()
        self.step = stage.make_step().lower(self.state, self.frozen, self.batch).compile()
        print(f"  JAX: compiled in {time.perf_counter() - begin:.0f} s")

    def __call__(self) -> tuple[float, float]:
        """Loss and norm of the gradients."""
        self.state, metrics = self.step(self.state, self.frozen, self.batch)
        jax.block_until_ready(self.state)
        return float(metrics.loss), float(metrics.gradient_norm)


class TorchStep:
    """The same in PyTorch."""

    def __init__(self, stage, batch, *, compiled=False):
        self.config, self.options = stage.config, stage.options
        self.model, schedule = torch_model(stage), stage.model.config.schedule
        self.loss = torch.compile(torch_losses) if compiled else torch_losses
        alphas = alphas_cumprod(schedule)
        weights = min_snr_weights(schedule, jnp.arange(len(alphas)), self.options.min_snr_gamma)
        tables = np.sqrt(alphas), np.sqrt(1 - alphas), np.array(weights)
        self.tables = [torch.tensor(table, dtype=torch.float32) for table in tables]
        skeletons = draw_batch(batch["keypoints"], *batch["frames"].shape[2:4])
        self.batch = [torch.from_numpy(batch[name]) for name in ("reference", "frames")]
        self.batch.append(channels_first(skeletons).contiguous())
        self.learned = learned_parameters(self.model, stage.learned)
        optimizer = stage.optimizer_config
        self.optimizer = torch.optim.AdamW(
            self.learned,
            optimizer.learning_rate,
            (optimizer.b1, optimizer.b2),
            optimizer.eps,
            optimizer.weight_decay,
            fused=True,
        )
        self.clip_norm = optimizer.clip_norm

    def __call__(self, draws: Draws | None = None) -> tuple[float, float]:
        """Loss and norm of the gradients."""
        draws = draws or self.draw()
        loss = self.loss(self.model, self.tables, *self.batch, draws).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.learned, self.clip_norm)
        if torch.isfinite(loss) and torch.isfinite(norm):
            self.optimizer.step()
        return loss.item(), norm.item()

    def draw(self) -> Draws:
        rows, frames, height, width = self.batch[1].shape[:4]
        shape = latent_shape(self.model.config, height, width)
        offset = self.options.noise_offset * torch.randn(rows, 1, shape[0], 1, 1)
        both, image, reference = torch.rand(3, rows)
        shown = both >= self.options.drop_both
        return Draws(
            torch.randn(rows * frames, *shape),
            torch.randint(len(self.tables[0]), (rows,)),
            torch.randn(rows, frames, *shape) + offset,
            shown & (image >= self.options.drop_image),
            shown & (reference >= self.options.drop_reference),
        )


def latent_shape(config, height, width) -> tuple[int, int, int]:
    """(C, h, w) of pictures."""
    scale = config.autoencoder.downscale
    return config.autoencoder.latent_channels, height // scale, width // scale


def shared_draws(stage, number: int) -> Draws:
    """Those of step `number` of the training."""
    data, model = stage.config.data, stage.model
    channels, *size = latent_shape(model.config, data.height, data.width)
    shape = (*size, channels)
    keys = sample_keys(stage.config.seed, number, jnp.arange(data.batch_size))
    frame_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, 0), data.frames))
    posterior = jax.vmap(lambda key: jax.random.normal(key, shape))(frame_keys(keys).reshape(-1))
    draws = draw_randomness(model, keys, (data.frames, *shape), stage.options)
    return Draws(
        channels_first(posterior),
        torch.from_numpy(np.asarray(draws.timesteps, np.int64)),
        channels_first(draws.noise),
        torch.from_numpy(np.array(draws.has_image)),
        torch.from_numpy(np.array(draws.has_reference)),
    )


def channels_first(x) -> torch.Tensor:
    """(..., H, W, C) -> (..., C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, -3)))


def torch_model(stage) -> TorchAnimateAnyone:
    """Random weights, the same whenever it is called."""
    model = TorchAnimateAnyone(tiny(), seed=0)
    model.use_motion = stage.model.config.denoising_unet.motion is not None
    model.state["has_reference"] = None
    for unet in (model.reference_unet, model.denoising_unet):
        for name, module in unet.named_modules():
            if name.endswith("attn1"):
                module.set_processor(ReferenceAttention(name, model.state))
    return model


class ReferenceAttention:
    """Self-attention that writes its tokens to the bank, or reads the reference's where a row has
    one; in PyTorch's fused version."""

    def __init__(self, path, state):
        self.path, self.state = path, state

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **options):
        state, mask = self.state, None
        query, key, value = (to(hidden_states) for to in (attn.to_q, attn.to_k, attn.to_v))
        if state["mode"] == "write":
            state["bank"][self.path] = hidden_states
        else:
            reference, frames = state["bank"][self.path], state["frames"]
            key = torch.cat([key, attn.to_k(reference).repeat_interleave(frames, 0)], 1)
            value = torch.cat([value, attn.to_v(reference).repeat_interleave(frames, 0)], 1)
            shown = state["has_reference"].repeat_interleave(frames, 0)[:, None]
            own = torch.ones(1, hidden_states.shape[1], dtype=torch.bool)
            own = own.expand(len(shown), -1)
            mask = torch.cat([own, shown.expand(-1, reference.shape[1])], 1)[:, None, None]
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value)
        )
        out = F.scaled_dot_product_attention(query, key, value, mask)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def learned_parameters(model: TorchAnimateAnyone, paths) -> list[torch.nn.Parameter]:
    """The parameters at these paths of ours; no others take gradients from now on."""
    names, learned = {(path[0], torch_name(path[1:])) for path in paths}, []
    for component in (*COMPONENTS, "motion"):
        ours = "denoising_unet" if component == "motion" else component
        for name, parameter in getattr(model, component).named_parameters():
            parameter.requires_grad_((ours, name) in names)
            if parameter.requires_grad:
                learned.append(parameter)
    assert len(learned) == len(paths)
    return learned


def torch_losses(model, tables, reference, frames, skeletons, draws: Draws) -> torch.Tensor:
    """The weighted mean squared errors of the clips (B,), as `denoising_loss` computes them."""
    signal, sigma, weights = (table[draws.timesteps] for table in tables)
    signal, sigma = (x[:, None, None, None, None] for x in (signal, sigma))
    count = frames.shape[1]
    with torch.no_grad():
        latents, reference_latents, tokens = encode(model, reference, frames, draws.posterior)
        tokens = tokens * draws.has_image[:, None, None]
    noisy = signal * latents + sigma * draws.noise
    target = signal * draws.noise - sigma * latents
    model.state["has_reference"] = draws.has_reference
    # Without the decorators that turn gradients off.
    write, denoise = (
        getattr(TorchAnimateAnyone, name).__wrapped__ for name in ("write_reference", "denoise")
    )
    write(model, reference_latents, tokens)
    pose = model.pose_guider(skeletons.flatten(0, 1)).unflatten(0, skeletons.shape[:2])
    timesteps = draws.timesteps.repeat_interleave(count)
    prediction = denoise(model, noisy, timesteps, tokens, pose)
    return ((prediction - target) ** 2).mean((1, 2, 3, 4)) * weights


def encode(model, reference, frames, posterior):
    """Latents (B, F, C, h, w), those of the references (B, C, h, w), image tokens (B, 1, E)."""
    scale, config = model.config.autoencoder.scaling_factor, model.config.image_encoder
    found = model.autoencoder.encode(signed(frames.flatten(0, 1))).latent_dist
    latents = (found.mean + found.std * posterior) * scale
    reference_latents = model.autoencoder.encode(signed(reference)).latent_dist.mean * scale
    pixels = F.interpolate(
        reference.permute(0, 3, 1, 2).float(),
        [config.image_size] * 2,
        mode="bicubic",
        antialias=True,
    )
    mean, std = (torch.tensor(x)[:, None, None] for x in (config.image_mean, config.image_std))
    pixels = (pixels.clamp(0, 255) / 255 - mean) / std
    tokens = model.image_encoder(pixels).image_embeds[:, None]
    return latents.unflatten(0, frames.shape[:2]), reference_latents, tokens


def signed(pictures):
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


if __name__ == "__main__":
    main()
