"""What a stage has learnt so far: a loss that is comparable over time, and pictures to look at."""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

from animate_jax.data.input import FILLER, validation_batches
from animate_jax.data.records import record_splits
from animate_jax.diffusion.samplers import sampling_steps
from animate_jax.errors import UserError, UserNote
from animate_jax.inference.sampling import clip_noise, sample_clip
from animate_jax.parallel.mesh import (
    batch_shards,
    compiler_options,
    input_share,
    place_batch,
    replicated,
)
from animate_jax.training.objective import (
    VALIDATION_SEED,
    body_keypoints,
    draw_batch,
    encode_image_tokens,
    fixed_loss,
    in_slices,
    sample_keys,
)
from animate_jax.training.parameters import merge
from animate_jax.training.stages import Stage, input_config
from animate_jax.video.writing import write_video

VIDEO_FPS = 8.0
SHEET_FRAMES = 4  # of each video


class Validation:
    """A stage's validation records, and the compiled functions that need them."""

    def __init__(self, stage: Stage):
        config = stage.config
        path = config.validation.path or config.data.path
        if not path:
            raise UserError("config.validation.path is empty; name records, or set every=0")
        if config.validation.split not in (known := record_splits(path)):
            raise UserError(
                f"{path}: has no split {config.validation.split!r} to validate on, but"
                f" {', '.join(known)}; add --config.validation.split=train, or"
                " --config.validation.every=0 to train without"
            )
        clip = config.data.frames > 1
        sets = ({"path": path, "split": config.validation.split},)
        fixed = {"path": "", "sets": sets, "flip": 0.0, "zoom": (1.0, 1.0)}
        shards = batch_shards(stage.mesh)
        videos = -(-config.validation.videos // shards) * shards
        self._stage = stage
        self._loss_input = input_config(config, **fixed)
        self._video_input = input_config(
            config,
            **fixed,
            batch_size=max(videos, shards),
            frames=config.data.frames if clip else config.validation.frames,
        )
        told = dict(
            out_shardings=replicated(stage.mesh), compiler_options=compiler_options(stage.mesh)
        )
        self._losses = jax.jit(self._fixed_losses, **told)
        self._sample = jax.jit(functools.partial(sample_videos, stage), **told)

    def loss(self, learned: dict, frozen: dict) -> float:
        """The mean over the records, at most `validation.batches` batches of them."""
        total = count = 0.0
        for number, batch in enumerate(self._batches(self._loss_input)):
            losses, records = self._losses(learned, frozen, batch, np.int32(number))
            losses, real = np.asarray(losses), np.asarray(records)[:, 0] != FILLER
            total, count = total + losses[real].sum(), count + real.sum()
        return float(total / count)

    def videos(self, learned: dict, frozen: dict, target: epath.Path) -> dict[str, float]:
        """Samples videos from fixed references and noise and writes them to `target`.

        Each shows reference, skeleton, sample and truth side by side; `sheet.png` shows them all.
        Returns their mean PSNR against the truth, in dB.
        """
        batch = next(iter(self._batches(self._video_input)))
        shown = self._sample(learned, frozen, batch)
        sampled, skeletons, truth, reference = map(np.asarray, shown)
        error = (sampled.astype(np.float64) - truth) ** 2
        psnr = 10 * np.log10(255**2 / np.maximum(error.mean(axis=(1, 2, 3, 4)), 1e-6))
        if jax.process_index() == 0:
            columns = [np.broadcast_to(reference[:, None], truth.shape), skeletons, sampled, truth]
            try:
                _write(target, np.concatenate(columns, axis=3))
            except Exception as error:  # a bucket's are of many kinds; training goes on without
                reason = " ".join(str(error).split())
                warnings.warn(f"{target}: cannot be written ({reason})", UserNote, stacklevel=2)
        return {"sample_psnr": float(psnr.mean())}

    def _batches(self, config):
        batches = validation_batches(config, **input_share(self._stage.mesh))
        limit = self._stage.config.validation.batches
        for batch in itertools.islice(batches, min(limit, len(batches))):
            yield place_batch(self._stage.mesh, batch)

    def _fixed_losses(self, learned, frozen, batch, number):
        stage = self._stage
        losses = fixed_loss(
            stage.model,
            merge(learned, frozen),
            batch,
            number,
            stage.options,
            batch_shards(stage.mesh),
            stage.config.encode_pictures,
            # What fits in training has to fit here.
            stage.config.accumulate,
        )
        return losses, batch["record"]


def sample_videos(stage: Stage, learned: dict, frozen: dict, batch: dict) -> list[jax.Array]:
    """Sampled videos, skeletons, truth (B, F, H, W, 3) and references (B, H, W, 3), all uint8."""
    options = stage.config.validation
    params, model = merge(learned, frozen), stage.model
    slices = functools.partial(
        in_slices, shards=batch_shards(stage.mesh), size=stage.config.encode_pictures
    )
    rows, frames, height, width, _ = batch["frames"].shape
    if stage.config.objective == "reconstruction":
        pictures = batch["frames"].reshape(-1, height, width, 3)

        def reconstruct(x):
            return model.decode_latents(params, model.encode_latents(params, x / 127.5 - 1))

        sampled = slices(reconstruct, pictures)
        skeletons = batch["frames"]
    else:
        reference_latents = slices(
            lambda x: model.encode_latents(params, x / 127.5 - 1), batch["reference"]
        )
        image_tokens = encode_image_tokens(
            model,
            params,
            batch["reference"],
            batch_shards(stage.mesh),
            stage.config.encode_pictures,
        )
        skeletons = draw_batch(batch["keypoints"], height, width)
        keys = sample_keys(VALIDATION_SEED, 0, jnp.arange(rows))

        def sample(part):
            return sample_examples(model, params, *part, options.steps, options.guidance)

        # One clip of each device at a time, which takes little more than a step of training.
        known = reference_latents, image_tokens, skeletons, body_keypoints(model, batch), keys
        latents = in_slices(sample, known, batch_shards(stage.mesh), 1)
        flat = latents.reshape(-1, *latents.shape[2:])
        sampled = slices(lambda x: model.decode_latents(params, x), flat)
        skeletons = jnp.round(skeletons * 255).astype(jnp.uint8)
    sampled = jnp.round(sampled * 255).astype(jnp.uint8).reshape(batch["frames"].shape)
    # Every process gets the result: no more of it than is shown, on a pod with many shards.
    results = sampled, skeletons, batch["frames"], batch["reference"]
    return [x[: options.videos] for x in results]


def sample_examples(
    model,
    params,
    reference_latents,
    image_tokens,
    skeletons,
    keypoints,
    keys,
    steps: int,
    guidance: float,
) -> jax.Array:
    """Latents (B, F, h, w, C) of B clips, by DDIM from the noise of their keys (B,); the other
    arguments as in `Example`."""
    frames, shape = skeletons.shape[1], reference_latents.shape[1:]
    schedule = model.config.schedule
    noise = jax.vmap(lambda key: clip_noise(schedule, key, frames, shape))(keys)
    clip_keypoints, reference_keypoints = keypoints
    reference = model.encode_reference(params, reference_latents, image_tokens, reference_keypoints)
    bound = model.bind(params, image_tokens, reference)
    if guidance > 1:
        hidden = jnp.zeros(image_tokens.shape[0], bool)
        neither = model.bind(params, jnp.zeros_like(image_tokens), reference, hidden)
        bound = neither, model.bind(params, image_tokens, reference, ~hidden)
    pose_features = model.encode_pose(params, skeletons, clip_keypoints)
    table = sampling_steps(schedule, steps, "ddim", 0.0)
    state = noise, jnp.zeros_like(noise)
    known = bound, pose_features, table, np.int32(0), np.float32(guidance), keys[0]
    return sample_clip(model, params, state, *known)[0]


def _write(target: epath.Path, videos: np.ndarray) -> None:
    """Videos (count, frames, height, width, 3) to `target`, local or in a bucket."""
    with tempfile.TemporaryDirectory() as directory:
        for number, video in enumerate(videos):
            if len(video) > 1:
                write_video(Path(directory) / f"{number:02d}.mp4", video, VIDEO_FPS)
        chosen = np.linspace(0, videos.shape[1] - 1, min(SHEET_FRAMES, videos.shape[1])).astype(int)
        rows = [np.concatenate(list(video[chosen]), axis=1) for video in videos]
        Image.fromarray(np.concatenate(rows)).save(Path(directory) / "sheet.png")
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(Path(directory).iterdir()):
            epath.Path(os.fspath(file)).copy(target / file.name, overwrite=True)
