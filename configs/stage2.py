"""Stage 2 of the paper (arXiv 2311.17117, section 4.1): clips of 24 frames, motion modules only.

`--config.init_from=STAGE1_WORKDIR --config.motion_from=models/sd15 --config.data.path=RECORDS`,
where models/sd15 was converted with `--motion` from AnimateDiff's weights.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.steps = 10_000
    config.motion = True
    config.learned = (r"^denoising_unet/.*motion_modules_",)
    config.data.frames = 24
    config.data.batch_size = 4
    config.remat = "kernels"  # as "full" but on TPUs, where a clip of 512x512 leaves room for it
    return config
