"""Sizes of every part as frozen dataclasses, and their JSON form.

A model's `config.json` is `to_dict(ModelConfig)`. Unknown keys fail on reading, so a file written
by a newer version, or a typing error, is never half understood.
"""

from __future__ import annotations

import dataclasses
import types
import typing

from animate_jax.diffusion.schedule import NoiseSchedule
from animate_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class MotionConfig:
    """Temporal layers (AnimateDiff, arXiv 2307.04725) inside a UNet."""

    heads: int = 8
    transformer_blocks: int = 1
    attentions: int = 2  # temporal self-attentions in one transformer block
    max_frames: int = 32
    norm_groups: int = 32
    mid_block: bool = True


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Stable Diffusion 1.5's UNet; a denoiser with `motion`, a ReferenceNet without `output`.

    reference: what a denoiser does with the ReferenceNet's features. The paper attends to them; the
    others are what it compares with: "added" at the same place (as ControlNet does, arXiv
    2302.05543), or "none", which leaves the image token alone.

    positions: tell every attention over space where in the picture a token is. Stable Diffusion's
    weights find that out from the borders; random ones would have to learn it.

    body_places: beside positions, tell it where on the body a token is (pose.body_places), of the
    clip by its skeletons and of the reference by its own: attention begins at the same place of the
    body. For models too small, or trained too little, to find that out from pictures.

    body_values: beside body_places, as many values once more, rotated by the way between places on
    the body (kernels.spatial_block.BodyValues), for what has to be moved by less than a token.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    layers_per_block: int = 2
    heads: tuple[int, ...] = (8, 8, 8, 8)  # per level; diffusers calls this attention_head_dim
    cross_attention_dim: int = 768
    norm_groups: int = 32
    output: bool = True
    motion: MotionConfig | None = None
    reference: typing.Literal["attended", "added", "none"] = "attended"
    positions: bool = False
    body_places: bool = False
    body_values: bool = False

    def __post_init__(self):
        if self.body_places and not self.positions:
            raise UserError("body_places without positions is not possible; set both")
        if self.body_values and not self.body_places:
            raise UserError("body_values without body_places is not possible; set both")
        widths = [c // h for c, h in zip(self.block_out_channels, self.heads)]
        if self.body_values and any(width % 2 for width in widths):
            raise UserError(f"body_values are pairs; heads have {widths} channels: give even ones")


@dataclasses.dataclass(frozen=True)
class PoseGuiderConfig:
    """`feature`: added after the denoiser's first convolution; `latent`: to the noisy latent."""

    variant: typing.Literal["feature", "latent"] = "feature"
    channels: tuple[int, ...] = (16, 32, 96, 256)
    out_channels: int = 320


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    in_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    scaling_factor: float = 0.18215

    @property
    def downscale(self) -> int:
        """Pixels per latent along one axis."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig:
    """CLIP vision tower with projection; mean and std are those of its training pictures."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    layers: int = 24
    heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    projection_dim: int = 768
    activation: typing.Literal["quick_gelu", "gelu"] = "quick_gelu"
    norm_eps: float = 1e-5
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How pictures reach the model; every resize stretches to the target, as in training.

    reference: to the video's size, [-1, 1]. image_encoder: to the encoder's square, normalised.
    pose: drawn skeletons of another size than the video's, [0, 1].
    """

    reference: typing.Literal["lanczos", "bicubic", "bilinear"] = "lanczos"
    image_encoder: typing.Literal["lanczos", "bicubic", "bilinear"] = "bicubic"
    pose: typing.Literal["lanczos", "bicubic", "bilinear"] = "lanczos"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole Animate Anyone model. `resolution` is the side of the square it was trained near,
    `guidance` what it is sampled with where nothing else is asked for."""

    denoising_unet: UNetConfig = UNetConfig(motion=MotionConfig())
    reference_unet: UNetConfig = UNetConfig(output=False)
    pose_guider: PoseGuiderConfig = PoseGuiderConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    image_encoder: ImageEncoderConfig = ImageEncoderConfig()
    schedule: NoiseSchedule = NoiseSchedule()
    preprocessing: Preprocessing = Preprocessing()
    resolution: int = 512
    guidance: float = 3.5


def sd15() -> ModelConfig:
    """The sizes of the paper and of the released PyTorch weights."""
    return ModelConfig()


def tiny() -> ModelConfig:
    """The same structure, small enough for tests."""
    unet = UNetConfig(
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        heads=(4, 4, 4, 4),
        cross_attention_dim=32,
    )
    motion = MotionConfig(heads=4, max_frames=32)
    return ModelConfig(
        denoising_unet=dataclasses.replace(unet, motion=motion),
        reference_unet=dataclasses.replace(unet, output=False),
        pose_guider=PoseGuiderConfig(channels=(8, 16, 24, 32), out_channels=32),
        autoencoder=AutoencoderConfig(
            block_out_channels=(16, 32, 32, 32), layers_per_block=1, norm_groups=8
        ),
        image_encoder=ImageEncoderConfig(
            hidden_size=32,
            intermediate_size=64,
            layers=2,
            heads=4,
            image_size=56,
            patch_size=14,
            projection_dim=32,
        ),
        resolution=64,
    )


PRESETS = {"sd15": sd15, "tiny": tiny}


def to_dict(config) -> dict:
    """Nested plain dictionary of a config, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(cls, values: dict, where: str = "config"):
    """The config of type `cls` that `to_dict` (or JSON) describes.

    Raises UserError for an unknown key, a value of the wrong kind, or a value outside a Literal.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} should be an object, not {values!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"{where} has unknown keys {unknown}; known are {sorted(hints)}")
    return cls(**{k: _value(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def _value(hint, value, where):
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin in (types.UnionType, typing.Union):  # only `X | None` is used
        return None if value is None else _value(arguments[0], value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise UserError(f"{where} is {value!r}; it can be one of {list(arguments)}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where} should be a list, not {value!r}")
        return tuple(_value(arguments[0], v, where) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where} should be a {hint.__name__}, not {value!r}")
    return value
