"""A stage that starts quickly, for tests: few small pictures, a checkpoint every second step."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from small_model import small_model  # noqa: E402

from animate_jax.config import to_dict  # noqa: E402
from configs import stage1  # noqa: E402


def get_config():
    config = stage1.get_config()
    config.model = to_dict(small_model())
    config.steps = 12
    config.dtype, config.remat = "float32", "none"
    config.mesh.data, config.mesh.fsdp = -1, 1
    config.optimizer.learning_rate = 1e-3
    config.data.height = config.data.width = 32
    config.data.batch_size = 8
    config.data.workers = 1
    config.log_every = 1
    config.checkpoint_every = 2
    config.encode_pictures = 8
    config.validation.every = 0
    return config
