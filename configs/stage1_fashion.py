"""Stage 1 on UBC Fashion: whole figures before white, upright pictures.

Records: `python -m data_prep build --layout ubc-fashion --videos DIR --out OUT`.
"""

from configs import stage1


def get_config():
    config = stage1.get_config()
    config.data.height, config.data.width = 768, 576
    config.data.crop, config.data.zoom = "pad", (1.0, 1.0)
    return config
