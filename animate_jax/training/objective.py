"""What the stages minimise: one loss per sample, of parameters, examples and keys.

Denoising (arXiv 2311.17117, section 3.3): predict the noise, or v, of noised latents, given the
reference and the skeletons. Everything random is drawn from the sample's own key, so a loss does
not depend on how the batch is split.
"""

from __future__ import annotations

import dataclasses
import typing

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from animate_jax.diffusion.schedule import (
    add_noise,
    min_snr_weights,
    mixed_noise,
    offset_noise,
    prediction_target,
)
from animate_jax.errors import UserError
from animate_jax.models.animate_anyone import COMPONENTS, AnimateAnyone
from animate_jax.parallel.mesh import BATCH_AXES
from animate_jax.pose.render import draw_skeletons


@dataclasses.dataclass(frozen=True)
class DenoisingLoss:
    """min_snr_gamma: of the loss weights, 0 for none. noise_offset: see `offset_noise`.
    timestep_shift: above 1, timesteps with much noise are drawn more often (arXiv 2403.03206,
    equation 23, of the timestep's share of the whole); 1 draws all alike.

    Per sample, `drop_both` is the probability that image token and reference are hidden together,
    as in the unconditional half of guidance; `drop_image` and `drop_reference` hide one more often.
    `drop_body` hides places on the body from a model that takes them, as where a picture's pose is
    not known.
    """

    min_snr_gamma: float = 5.0
    noise_offset: float = 0.05
    timestep_shift: float = 1.0
    drop_both: float = 0.1
    drop_image: float = 0.0
    drop_reference: float = 0.0
    drop_body: float = 0.0

    def __post_init__(self):
        for name in ("drop_both", "drop_image", "drop_reference", "drop_body"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"config.loss.{name} is {getattr(self, name)}; give a probability, 0 to 1"
                )
        for name in ("min_snr_gamma", "noise_offset"):
            if not getattr(self, name) >= 0:
                raise UserError(f"config.loss.{name} is {getattr(self, name)}; 0 is none, at least")
        if not self.timestep_shift > 0:
            raise UserError(
                f"config.loss.timestep_shift is {self.timestep_shift}; 1 shifts nothing, 0 and less"
                " are not possible"
            )


class Example(typing.NamedTuple):
    """What the frozen networks make of a batch; B samples of F frames."""

    latents: jax.Array  # (B, F, h, w, C), scaled
    reference_latents: jax.Array  # (B, h, w, C), scaled
    image_tokens: jax.Array  # (B, 1, E)
    skeletons: jax.Array  # (B, F, H, W, 3) in [0, 1]
    # Of clip (B, F, 134, 3) and reference (B, 134, 3), for models with body places.
    keypoints: tuple[jax.Array, jax.Array] | tuple[None, None] = (None, None)


class Draws(typing.NamedTuple):
    """All that is random about a batch."""

    timesteps: jax.Array  # int32 (B,)
    noise: jax.Array  # (B, F, h, w, C)
    has_image: jax.Array  # bool (B,)
    has_reference: jax.Array  # bool (B,)
    has_body: jax.Array | None = None  # bool (B,)


def sample_keys(seed: int, step: jax.Array, rows: jax.Array) -> jax.Array:
    """One key per row of the global batch, of the step alone: the same on any mesh."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def encode_batch(model: AnimateAnyone, params, batch, keys, shards: int, size: int) -> Example:
    """A training batch through the frozen networks, `size` pictures of each device at a time.

    batch: reference uint8 (B, H, W, 3), frames uint8 (B, F, H, W, 3), keypoints (B, F, 134, 3),
    and reference_keypoints (B, 134, 3) for a model with body places. The reference's latents are
    the posterior's mean, as in sampling; the frames' a sample of it.
    shards: into how many parts the mesh splits the batch.
    """
    batch_size, frames, height, width, _ = batch["frames"].shape
    frame_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, 0), frames))(keys)
    # References and frames in one call: a second encoder would be compiled as long again.
    pictures = jnp.concatenate([batch["reference"][:, None], batch["frames"]], 1)
    picture_keys = jnp.concatenate([frame_keys[:, :1], frame_keys], 1)

    def encode(pictures_and_keys):
        pictures, keys = pictures_and_keys
        mean, _, sampled = model.encode(params, _signed(pictures), keys)
        return mean, sampled

    rows = pictures.reshape(-1, height, width, 3), picture_keys.reshape(-1)
    mean, sampled = (
        x.reshape(batch_size, 1 + frames, *x.shape[1:]) * model.config.autoencoder.scaling_factor
        for x in in_slices(encode, rows, shards, size)
    )
    return Example(
        sampled[:, 1:],
        mean[:, 0],
        encode_image_tokens(model, params, batch["reference"], shards, size),
        draw_batch(batch["keypoints"], height, width),
        body_keypoints(model, batch),
    )


def body_keypoints(model: AnimateAnyone, batch):
    """Keypoints of clip and reference, where the model has use for them."""
    if not model.uses_body_places:
        return None, None
    return batch["keypoints"], batch["reference_keypoints"]


def encode_image_tokens(model: AnimateAnyone, params, pictures, shards: int, size: int):
    """uint8 (B, H, W, 3) -> image tokens (B, 1, E), `size` pictures of each device at a time."""

    def encode(pictures):
        return model.encode_image(params, image_encoder_input(pictures, model.config.image_encoder))

    return in_slices(encode, pictures, shards, size)


def draw_batch(keypoints: jax.Array, height: int, width: int) -> jax.Array:
    """Keypoints (B, F, 134, 3) -> skeletons (B, F, height, width, 3); each device draws its own."""
    rows = PartitionSpec(BATCH_AXES)
    draw = jax.shard_map(
        lambda points: draw_skeletons(points, height, width),
        in_specs=rows,
        out_specs=rows,
        check_vma=False,
    )
    return draw(keypoints)


def image_encoder_input(pictures: jax.Array, config) -> jax.Array:
    """uint8 (B, H, W, 3) -> normalised (B, S, S, 3), stretched as in sampling (bicubic)."""
    shape = (pictures.shape[0], config.image_size, config.image_size, 3)
    pixels = jax.image.resize(pictures.astype(jnp.float32), shape, "cubic", antialias=True)
    pixels = jnp.clip(pixels, 0, 255) / 255
    return (pixels - jnp.float32(config.image_mean)) / jnp.float32(config.image_std)


def _signed(pictures):
    return pictures.astype(jnp.float32) / 127.5 - 1


def in_slices(function, rows, shards: int, size: int):
    """`function(rows)`, where it treats every row alike, with bounded memory.

    rows: arrays (N, ...) in `shards` equal parts, one per device; `size` rows of each part go
    through at a time, or the largest divisor of a part's rows below.
    """
    part = jax.tree.leaves(rows)[0].shape[0] // shards
    size = max(n for n in range(1, max(1, min(size, part)) + 1) if part % n == 0)
    if size == part:
        return function(rows)
    out = jax.lax.map(function, to_slices(rows, shards, part // size))

    def back(x):
        x = x.reshape(part // size, shards, size, *x.shape[2:])
        return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[3:])

    return jax.tree.map(back, out)


def to_slices(rows, shards: int, slices: int):
    """Arrays (N, ...) -> (slices, N / slices, ...), every slice with rows of every device."""

    def split(x):
        x = x.reshape(shards, slices, -1, *x.shape[1:])
        return jnp.swapaxes(x, 0, 1).reshape(slices, -1, *x.shape[3:])

    return jax.tree.map(split, rows)


def draw_randomness(model: AnimateAnyone, keys, shape, options: DenoisingLoss) -> Draws:
    """Timesteps, noise and dropped conditions of B samples with latents of `shape` (F, h, w, C)."""

    schedule = model.config.schedule

    def draw(key):
        keys = jax.random.split(jax.random.fold_in(key, 1), 3)
        timesteps = schedule.num_train_timesteps
        timestep = jax.random.randint(keys[0], (), 0, timesteps, jnp.int32)
        if options.timestep_shift != 1:
            place = (timestep + 0.5) / timesteps
            place *= options.timestep_shift / (1 + (options.timestep_shift - 1) * place)
            timestep = (place * timesteps).astype(jnp.int32)
        noise = offset_noise(keys[1], (1, *shape), options.noise_offset)[0]
        if schedule.shared_noise:
            common = jax.random.fold_in(key, 3), (1, *shape[1:])
            noise = mixed_noise(schedule, noise, offset_noise(*common, options.noise_offset))
        uniform = jax.random.uniform(keys[2], (3,))
        both, image, reference = uniform >= jnp.array(
            [options.drop_both, options.drop_image, options.drop_reference]
        )
        body = jax.random.uniform(jax.random.fold_in(key, 2)) >= options.drop_body
        return Draws(timestep, noise, both & image, both & reference, body)

    return jax.vmap(draw)(keys)


def denoising_loss(
    model: AnimateAnyone, params, example: Example, draws: Draws, options: DenoisingLoss
) -> jax.Array:
    """Weighted mean squared error per sample: (B,) float32."""
    schedule = model.config.schedule
    noisy = add_noise(schedule, example.latents, draws.noise, draws.timesteps)
    target = prediction_target(schedule, example.latents, draws.noise, draws.timesteps)
    tokens = jnp.where(draws.has_image[:, None, None], example.image_tokens, 0)
    clip_keypoints, reference_keypoints = example.keypoints
    if clip_keypoints is not None and draws.has_body is not None:
        hide = jax.vmap(jnp.multiply)  # points without a score are nowhere
        clip_keypoints = hide(clip_keypoints, draws.has_body)
        reference_keypoints = hide(reference_keypoints, draws.has_body)
    reference = model.encode_reference(
        params, example.reference_latents, tokens, reference_keypoints
    )
    bound = model.bind(params, tokens, reference, draws.has_reference)
    pose_features = model.encode_pose(params, example.skeletons, clip_keypoints)
    prediction = model.denoise(params, noisy, draws.timesteps, bound, pose_features)
    loss = jnp.mean((prediction - target) ** 2, axis=tuple(range(1, target.ndim)))
    if options.min_snr_gamma:
        loss *= min_snr_weights(schedule, draws.timesteps, options.min_snr_gamma)
    return loss


@dataclasses.dataclass(frozen=True)
class ReconstructionLoss:
    """Of the autoencoder: mean absolute error, plus `squared_weight` times the mean squared one,
    which learns colours soonest, plus `gradient_weight` times the absolute error of differences
    between neighbouring pixels, which keeps edges, plus `kl_weight` times the posterior's distance
    from a unit Gaussian per latent value (arXiv 2112.10752, appendix G).

    Two terms are for the sake of the denoiser: `scale_weight` counts the error of what latents of
    half the size decode to, against the picture of half the size (arXiv 2502.09509), and
    `latent_noise` adds noise to what is decoded (arXiv 2510.11690), its standard deviation that of
    the picture's latents times this times |n|, n normal."""

    squared_weight: float = 0.0
    gradient_weight: float = 1.0
    kl_weight: float = 1e-6
    scale_weight: float = 0.0
    latent_noise: float = 0.0


def reconstruction_loss(
    model: AnimateAnyone, params, pictures: jax.Array, keys: jax.Array, options: ReconstructionLoss
) -> jax.Array:
    """Pictures (B, H, W, 3) in [-1, 1] and keys (B,) -> losses (B,) float32."""

    def mean_of(x):
        return jnp.mean(x, axis=(1, 2, 3))

    def decoded_error(latents, pictures):
        error = model.decode(params, latents) - pictures
        loss = mean_of(jnp.abs(error)) + options.squared_weight * mean_of(error**2)
        for axis in (1, 2):
            loss += options.gradient_weight * mean_of(jnp.abs(jnp.diff(error, axis=axis)))
        return loss

    mean, log_variance, latents = model.encode(params, pictures, keys)
    if options.latent_noise:
        latents += options.latent_noise * _noise_like(mean, keys)
    loss = decoded_error(latents, pictures)
    if options.scale_weight:
        loss += options.scale_weight * decoded_error(_halved(latents), _halved(pictures))
    divergence = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance)
    return loss + options.kl_weight * mean_of(divergence)


def _noise_like(latents, keys):
    """Noise (B, h, w, C) with the standard deviation of each picture's latents times |n|."""

    def one(latents, key):
        values, strength = jax.random.split(jax.random.fold_in(key, 1))
        scale = jax.lax.stop_gradient(jnp.std(latents)) * jnp.abs(jax.random.normal(strength))
        return scale * jax.random.normal(values, latents.shape)

    return jax.vmap(one)(latents, keys)


def _halved(x):
    """(B, H, W, C) -> (B, H // 2, W // 2, C): means of 2 x 2."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def batch_loss(model, params, batch, keys, options, shards: int, size: int) -> jax.Array:
    """Losses (B,) of a training batch; the kind of `options` says which."""
    if isinstance(options, ReconstructionLoss):
        return reconstruction_loss(model, params, _signed(batch["frames"][:, 0]), keys, options)
    example = encode_batch(model, params, batch, keys, shards, size)
    latents, reference = jax.lax.stop_gradient((example.latents, example.reference_latents))
    example = example._replace(latents=latents, reference_latents=reference)
    draws = draw_randomness(model, keys, latents.shape[1:], options)
    return denoising_loss(model, params, example, draws, options)


def fixed_loss(
    model, params, batch, number, options, shards: int, size: int, slices: int = 1
) -> jax.Array:
    """Losses (B,) of validation batch `number`: the same noise and timesteps whenever it is asked
    for, timesteps spread evenly, nothing dropped. The batch goes through in `slices` parts."""
    count = batch["frames"].shape[0]
    rows = jnp.arange(count)
    keys = sample_keys(VALIDATION_SEED, number, rows)
    # Multiples of the golden ratio cover [0, 1) evenly, however many there are.
    place = (number * count + rows + 0.5) * GOLDEN_RATIO % 1
    timesteps = (place * model.config.schedule.num_train_timesteps).astype(jnp.int32)

    def losses(part):
        batch, keys, timesteps = part
        if isinstance(options, ReconstructionLoss):
            return reconstruction_loss(model, params, _signed(batch["frames"][:, 0]), keys, options)
        example = encode_batch(model, params, batch, keys, shards, size)
        draws = draw_randomness(model, keys, example.latents.shape[1:], options)
        kept = jnp.ones(timesteps.shape, bool)
        draws = Draws(timesteps, draws.noise, kept, kept)
        return denoising_loss(model, params, example, draws, options)

    return in_slices(losses, (batch, keys, timesteps), shards, count // (shards * slices))


VALIDATION_SEED = 20311117  # the paper's number; no training seed is likely to meet it
GOLDEN_RATIO = 0.6180339887
LOSSES = {"denoising": DenoisingLoss, "reconstruction": ReconstructionLoss}
COMPONENTS_OF_LOSS = {"denoising": COMPONENTS, "reconstruction": ("autoencoder",)}
