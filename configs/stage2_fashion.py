"""Stage 2 on UBC Fashion, after stage1_fashion.py."""

from configs import stage2


def get_config():
    config = stage2.get_config()
    config.data.height, config.data.width = 768, 576
    config.data.crop, config.data.zoom = "pad", (1.0, 1.0)
    return config
