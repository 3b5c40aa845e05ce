"""Animate Anyone (arXiv 2311.17117), composed of pure functions over one parameter tree.

    reference = model.encode_reference(params, reference_latents, image_tokens)
    bound     = model.bind(params, image_tokens, reference)          # once per clip
    noise     = model.denoise(params, latents, timesteps, bound, pose)

Training and sampling call the same three. The tree has one entry per component: `denoising_unet`
(motion modules inside), `reference_unet`, `pose_guider`, `autoencoder`, `image_encoder`; the first
three also work without the last two.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from animate_jax.config import ModelConfig
from animate_jax.models.attention import BoundLayer
from animate_jax.models.autoencoder import Autoencoder
from animate_jax.models.image_encoder import ImageEncoder
from animate_jax.models.initialize import initialize
from animate_jax.models.layers import Dtype
from animate_jax.models.pose_guider import PoseGuider
from animate_jax.models.unet import BODY_PLACES, UNet, checkpoint_policy
from animate_jax.pose.body_places import body_places

COMPONENTS = ("denoising_unet", "reference_unet", "pose_guider", "autoencoder", "image_encoder")


def _module(component, config, dtype=jnp.float32, remat="none"):
    kinds = {"pose_guider": PoseGuider, "autoencoder": Autoencoder, "image_encoder": ImageEncoder}
    if component in kinds:
        return kinds[component](config, dtype)
    return UNet(config, dtype, remat)


@functools.lru_cache(maxsize=32)  # tracing a UNet takes seconds, and this is asked for often
def _shapes(component, config) -> dict:
    """{path: jax.ShapeDtypeStruct} of one component's parameters; nothing is computed."""
    module, method = _module(component, config), None
    if isinstance(module, UNet):
        # Two image tokens, for with one the cross-attention leaves its queries and keys unused.
        size = 2 ** (len(config.block_out_channels) - 1)
        latents = jnp.zeros((1, 1, size, size, config.in_channels))
        image_tokens = jnp.zeros((1, 2, config.cross_attention_dim))
        inputs, method = (latents, jnp.zeros(1, jnp.int32), image_tokens), "bind_and_call"
    else:
        size = config.image_size if component == "image_encoder" else 64
        inputs = (jnp.zeros((1, size, size, 3)),)
    init = functools.partial(module.init, method=method)
    return flatten_dict(jax.eval_shape(init, jax.random.key(0), *inputs)["params"])


@dataclasses.dataclass(frozen=True)
class AnimateAnyone:
    """A model's sizes and compute dtype; hashable, so it can be a static argument of jit.

    Letters in shapes: B clips, F frames, H and W pixels, h and w latents (an eighth), C latent
    channels, T image tokens, E their width.
    """

    config: ModelConfig
    dtype: Dtype = jnp.float32
    remat: str = "none"  # of the UNets and the pose guider in training, see models.unet

    def module(self, component: str):
        """The Flax module of one component."""
        return _module(component, getattr(self.config, component), self.dtype, self.remat)

    def shapes(self, component: str) -> dict:
        """The parameter tree of one component as jax.ShapeDtypeStruct, float32."""
        return unflatten_dict(_shapes(component, getattr(self.config, component)))

    def init(self, seed: int, components: tuple[str, ...] = COMPONENTS) -> dict:
        """Random parameters of the components, as one tree of float32 numpy arrays."""
        return {c: initialize(self.shapes(c), seed, c) for c in components}

    def _apply(self, component, params, *inputs, **options):
        return self.module(component).apply({"params": params[component]}, *inputs, **options)

    def encode_image(self, params, pixels: jax.Array) -> jax.Array:
        """Normalised pictures (B, S, S, 3) -> image tokens (B, 1, E) float32."""
        return self._apply("image_encoder", params, pixels)[:, None].astype(jnp.float32)

    def encode_latents(self, params, pictures: jax.Array, keys: jax.Array | None = None):
        """Pictures (B, H, W, 3) in [-1, 1] -> scaled latents (B, h, w, C) float32.

        The posterior's mean, or a sample of it where keys (B,) are given.
        """
        posterior = self._apply("autoencoder", params, pictures, method="encode")
        latents = posterior[0] if keys is None else _sample_posterior(*posterior, keys)
        return latents * self.config.autoencoder.scaling_factor

    def encode(self, params, pictures: jax.Array, keys: jax.Array):
        """Pictures (B, H, W, 3) in [-1, 1] and keys (B,) -> the posterior's mean and log-variance
        and a sample of it, (B, h, w, C) each, unscaled."""
        mean, log_variance = self._apply("autoencoder", params, pictures, method="encode")
        return mean, log_variance, _sample_posterior(mean, log_variance, keys)

    def decode(self, params, latents: jax.Array) -> jax.Array:
        """Unscaled latents (B, h, w, C) -> pictures (B, H, W, 3) in about [-1, 1], not clipped."""
        return self._apply("autoencoder", params, latents, method="decode")

    def decode_latents(self, params, latents: jax.Array) -> jax.Array:
        """Scaled latents (B, h, w, C) -> pictures (B, H, W, 3) float32 in [0, 1]."""
        latents = latents / self.config.autoencoder.scaling_factor
        return jnp.clip(self.decode(params, latents) / 2 + 0.5, 0, 1)

    @property
    def uses_body_places(self) -> bool:
        """Whether it wants to know where on the body things are, see UNetConfig."""
        return self.config.denoising_unet.body_places

    def encode_pose(self, params, skeletons: jax.Array, keypoints=None) -> jax.Array:
        """Drawn skeletons (B, F, H, W, 3) in [0, 1] -> pose features (B, F, h, w, channels).

        A model with body places takes these from keypoints (B, F, 134, 3) in pixels, and knows none
        without; they are the last 3 of its pose features, which are float32 then.
        """
        encode = functools.partial(self._apply, "pose_guider")
        if self.remat != "none":
            encode = jax.checkpoint(encode, policy=checkpoint_policy(self.remat))
        features = encode(params, skeletons)
        if not self.uses_body_places:
            return features
        places = self._body_places(keypoints, features.shape[:-1])
        return jnp.concatenate([features.astype(places.dtype), places], -1)

    def _body_places(self, keypoints, shape):
        if keypoints is None:
            return jnp.zeros((*shape, 3))
        return body_places(keypoints, *shape[-2:], self.config.autoencoder.downscale)

    def encode_reference(
        self, params, reference_latents: jax.Array, image_tokens: jax.Array, keypoints=None
    ):
        """Features of the reference, {layer path: (B, tokens, channels)}; once per clip.

        reference_latents (B, h, w, C) scaled and clean, image_tokens (B, T, E); keypoints
        (B, 134, 3) in pixels of the reference, of which models with body places make use: these are
        among the features, (B, h, w, 3). None for a denoiser that has no use for a reference.
        """
        if self.config.denoising_unet.reference == "none":
            return None
        bound = self._apply("reference_unet", params, image_tokens, method="bind")
        timesteps = jnp.zeros(reference_latents.shape[0], jnp.int32)
        places = {}
        if self.uses_body_places:
            places[BODY_PLACES] = self._body_places(keypoints, reference_latents.shape[:-1])
        _, features = self._apply(
            "reference_unet",
            params,
            reference_latents[:, None],
            timesteps,
            bound,
            **{name: x[:, None] for name, x in places.items()},
        )
        return {path: tokens[:, 0] for path, tokens in features.items()} | places

    def bind(
        self,
        params,
        image_tokens: jax.Array,
        reference: dict[str, jax.Array] | None = None,
        has_reference: jax.Array | None = None,
    ) -> dict[str, BoundLayer]:
        """All that the denoiser needs of image and reference; see `UNet.bind`.

        For guidance, image_tokens has twice the rows of the reference: first the unconditional ones
        (zeros), which attend to themselves only.
        """
        unet = "denoising_unet"
        return self._apply(unet, params, image_tokens, reference, has_reference, method="bind")

    def denoise(self, params, latents, timesteps, bound, pose_features=None) -> jax.Array:
        """The denoiser's prediction, (B, F, h, w, C) float32.

        latents (B, F, h, w, C), timesteps (B,), pose_features (B, F, h, w, channels) or None.
        """
        places = None
        if pose_features is not None and self.uses_body_places:
            pose_features, places = pose_features[..., :-3], pose_features[..., -3:]
        if pose_features is not None and self.config.pose_guider.variant == "latent":
            latents, pose_features = latents + pose_features, None
        out, _ = self._apply(
            "denoising_unet", params, latents, timesteps, bound, pose_features, places
        )
        return out.astype(jnp.float32)

    def guided_denoise(self, params, latents, timestep, bound, pose_features, guidance):
        """Classifier-free guidance (arXiv 2207.12598): unconditional + guidance * difference.

        latents (B, F, h, w, C), timestep (), pose_features (B, F, h, w, channels); bound has 2B
        rows, the unconditional first, or B rows, and then the prediction is taken as it is. Or it
        is a pair, unconditional and conditional, of B rows each, which go through one after the
        other: rows that are spread over devices would move to others where they are joined.
        """
        if isinstance(bound, tuple):
            timesteps = jnp.full(latents.shape[0], timestep)
            both = jax.lax.map(
                lambda one: self.denoise(params, latents, timesteps, one, pose_features),
                jax.tree.map(lambda *x: jnp.stack(x), *bound),
            )
            return both[0] + guidance * (both[1] - both[0])
        rows = bound_rows(bound)
        repeats = rows // latents.shape[0]
        latents, pose_features = (
            jnp.concatenate([x] * repeats) if x is not None else None
            for x in (latents, pose_features)
        )
        out = self.denoise(params, latents, jnp.full(rows, timestep), bound, pose_features)
        if repeats == 1:
            return out
        unconditional, conditional = jnp.split(out, 2)
        return unconditional + guidance * (conditional - unconditional)


def _sample_posterior(mean, log_variance, keys):
    draw = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], jnp.float32))
    return mean + jnp.exp(0.5 * log_variance) * draw(keys)


def bound_rows(bound: dict[str, BoundLayer]) -> int:
    """How many rows `bind` was given image tokens for."""
    layer = next(iter(bound.values()))
    return jax.tree.leaves((layer.cross_output, layer.cross))[0].shape[0]
