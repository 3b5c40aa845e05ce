"""Stage 1 of the paper (arXiv 2311.17117, section 4.1): single frames at 768x768.

Start from Stable Diffusion: `animate-jax convert sd15 ... models/sd15`, then
`--config.init_from=models/sd15 --config.data.path=RECORDS`.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.learned = (r"^denoising_unet/", r"^reference_unet/", r"^pose_guider/")
    config.data.height = config.data.width = 768
    config.data.batch_size = 64
    config.remat = "convolutions"
    config.mesh.fsdp = -1
    config.mesh.data = 1
    return config
