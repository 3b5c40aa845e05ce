"""Stage 1 of the bundled model, on a CPU: from random weights, on puppets of 128x128 pixels.

`animate-jax train --config configs/tiny_stage1.py --workdir DIR` draws the puppets, trains the
autoencoder first, and needs nothing else.
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
    config = small(stage1.get_config())
    config.after = "tiny_autoencoder.py"
    # Nothing is known beforehand here, not even what a picture is.
    config.learned += (r"^image_encoder/",)
    config.steps = 3300
    config.optimizer.learning_rate = 1e-2
    every_timestep(config)
    # Where much noise is, reference and skeleton are all there is to go by.
    config.loss.timestep_shift = 3.0
    config.loss.drop_body = 0.1
    # Several frames for one look at the reference: half the work of as many pairs of pictures.
    config.data.frames, config.data.stride = 3, 10
    config.data.batch_size = 6
    return config


def every_timestep(config):
    """One weight for all timesteps, and no offset of the noise: without Stable Diffusion's
    knowledge the fine details, of which little noise is left, have to be learnt too."""
    config.loss.min_snr_gamma = config.loss.noise_offset = 0.0


def small(config):
    """What the tiny stages have in common."""
    config.model = to_dict(model())
    config.puppets.clips, config.puppets.size, config.puppets.frames = 2400, 128, 32
    config.puppets.validation = 0.04
    config.dtype, config.remat = "float32", "none"
    config.encode_pictures = 32
    config.mesh.data, config.mesh.fsdp = -1, 1
    config.optimizer.name = "muon"
    config.optimizer.schedule, config.optimizer.warmup = "cosine", 50
    config.optimizer.average_decay = 0.99
    config.data.height = config.data.width = 128
    # Puppets are drawn at this size, and parts of the picture would be enlarged.
    config.data.zoom = (1.0, 1.0)
    config.data.body_only = 0.3
    config.data.workers = 2
    config.checkpoint_every = config.validation.every = 500
    config.validation.videos = 2
    config.validation.guidance = 1.0
    return config


def model() -> ModelConfig:
    """Sizes for 128x128 pixels, 32x32 latents of 4 numbers each: 12 million parameters."""
    unet = UNetConfig(
        block_out_channels=(32, 64, 128),
        # The finest level too: what no attention reads there, only upsampling could bring.
        attention_levels=(True, True, True),
        layers_per_block=1,
        heads=(1, 4, 4),
        cross_attention_dim=64,
        norm_groups=16,
        positions=True,
        body_places=True,
        body_values=True,
    )
    return ModelConfig(
        denoising_unet=dataclasses.replace(
            unet, motion=MotionConfig(heads=4, max_frames=16, norm_groups=16)
        ),
        reference_unet=dataclasses.replace(unet, output=False),
        pose_guider=PoseGuiderConfig(channels=(8, 16, 32), out_channels=32),
        autoencoder=AutoencoderConfig(
            block_out_channels=(16, 32, 64),
            layers_per_block=1,
            norm_groups=1,
        ),
        image_encoder=ImageEncoderConfig(
            hidden_size=64,
            intermediate_size=256,
            layers=2,
            heads=4,
            image_size=112,
            patch_size=14,
            projection_dim=64,
        ),
        resolution=128,
        # More is steadier from frame to frame and further from the truth.
        guidance=1.0,
    )
