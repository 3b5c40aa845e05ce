"""What each part of the method is worth: the same budget for models that lack one (ablations.py in
benchmarks/ trains and compares them all).

The bundled model's networks on 64x64 pixels, of which one frame costs a quarter. Every model sees
12000 + 4000 frames of the same puppets, whose autoencoder is that of `config.init_from`.
"""

import dataclasses

from animate_jax.config import to_dict
from configs import tiny_stage1, tiny_stage2

STAGE1_FRAMES, STAGE2_FRAMES = 12_000, 4_000


def first_stage(reference="attended", frames=STAGE1_FRAMES):
    """Single frames, of a denoiser that takes the reference in this way."""
    config = tiny_stage1.get_config()
    # Small pictures: more of them for one step of the optimizer, whose cost stays.
    config.data.batch_size = 12
    _same(config, reference, frames)
    config.after, config.init_components = "", ("autoencoder",)
    return config


def second_stage(after, reference="attended", frames=STAGE2_FRAMES):
    """Clips, for motion modules in the model of another config beside this one."""
    config = tiny_stage2.get_config()
    _same(config, reference, frames)
    config.after = after
    return config


def _same(config, reference, frames):
    model = tiny_stage1.model()
    unet = dataclasses.replace(model.denoising_unet, reference=reference)
    config.model = to_dict(dataclasses.replace(model, denoising_unet=unet, resolution=64))
    config.data.height = config.data.width = 64
    config.puppets.clips = 1000
    config.steps = frames // (config.data.batch_size * config.data.frames)
    config.validation.videos = 0
    config.loss.timestep_shift = 1.0  # in both stages, so that `joint` minimises the same
