"""A model that compiles quickly: two levels, several channels in every norm group."""

import dataclasses

from animate_jax.config import (
    AutoencoderConfig,
    ImageEncoderConfig,
    ModelConfig,
    MotionConfig,
    PoseGuiderConfig,
    UNetConfig,
)


def small_model() -> ModelConfig:
    unet = UNetConfig(
        block_out_channels=(16, 32),
        attention_levels=(True, False),
        layers_per_block=1,
        heads=(2, 4),
        cross_attention_dim=16,
        norm_groups=4,
    )
    motion = MotionConfig(heads=2, max_frames=8, norm_groups=4)
    return ModelConfig(
        denoising_unet=dataclasses.replace(unet, motion=motion),
        reference_unet=dataclasses.replace(unet, output=False),
        pose_guider=PoseGuiderConfig(channels=(4, 8, 8, 8), out_channels=16),
        autoencoder=AutoencoderConfig(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=4
        ),
        image_encoder=ImageEncoderConfig(
            hidden_size=16,
            intermediate_size=32,
            layers=1,
            heads=2,
            image_size=28,
            patch_size=14,
            projection_dim=16,
        ),
        resolution=32,
    )
