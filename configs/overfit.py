"""A check that everything learns: one puppet clip, from random weights, on a CPU.

`animate-jax train --config configs/overfit.py --workdir DIR` draws the clip, trains an autoencoder
and then the model on it. `validation_loss` and `sample_psnr` in DIR/metrics.jsonl tell how far it
came, DIR/samples shows it.
"""

import dataclasses

from animate_jax.config import (
    AutoencoderConfig,
    ImageEncoderConfig,
    ModelConfig,
    MotionConfig,
    PoseGuiderConfig,
    UNetConfig,
    to_dict,
)
from configs import stage1


def get_config():
    config = stage1.get_config()
    config.after = "overfit_autoencoder.py"
    config.puppets.clips = 1
    config.puppets.validation = 0.0
    config.mesh.data, config.mesh.fsdp = -1, 1
    config.loss.min_snr_gamma = 0.0
    config.loss.noise_offset = 0.0
    return one_clip(config, steps=3000, learning_rate=2e-3)


def one_clip(config, steps, learning_rate):
    """The settings of both stages."""
    config.model = to_dict(model())
    config.steps = steps
    config.dtype, config.remat = "float32", "none"
    config.encode_pictures = 8
    config.optimizer.learning_rate = learning_rate
    config.optimizer.schedule, config.optimizer.warmup = "cosine", 100
    config.optimizer.average_decay = 0.99
    config.data.height = config.data.width = 64
    config.data.batch_size = 8
    config.data.workers = 2
    config.data.crop, config.data.zoom, config.data.flip = "pad", (1.0, 1.0), 0.0
    config.data.margin = 0
    config.log_every = config.checkpoint_every = 250
    config.validation.every = steps // 2
    config.validation.split = "train"
    config.validation.videos, config.validation.frames = 1, 16
    config.validation.guidance = 1.0
    return config


def model() -> ModelConfig:
    """Sizes for 64x64 pixels."""
    unet = UNetConfig(
        block_out_channels=(32, 64),
        attention_levels=(True, True),
        layers_per_block=1,
        heads=(4, 4),
        cross_attention_dim=32,
        norm_groups=8,
    )
    return ModelConfig(
        denoising_unet=dataclasses.replace(unet, motion=MotionConfig(heads=4, norm_groups=8)),
        reference_unet=dataclasses.replace(unet, output=False),
        pose_guider=PoseGuiderConfig(channels=(8, 16, 24, 32), out_channels=32),
        autoencoder=AutoencoderConfig(
            block_out_channels=(8, 16, 32, 64), layers_per_block=1, norm_groups=4
        ),
        image_encoder=ImageEncoderConfig(
            hidden_size=32,
            intermediate_size=64,
            layers=1,
            heads=4,
            image_size=56,
            patch_size=14,
            projection_dim=32,
        ),
        resolution=64,
    )
