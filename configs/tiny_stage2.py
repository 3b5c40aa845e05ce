"""Stage 2 of the bundled model, on a CPU: motion modules, from what tiny_stage1.py has learnt."""

import dataclasses

from animate_jax.diffusion.schedule import NoiseSchedule
from configs import stage2, tiny_stage1


def get_config():
    config = tiny_stage1.small(stage2.get_config())
    config.after = "tiny_stage1.py"
    config.steps = 230
    config.optimizer.learning_rate = 1e-2
    tiny_stage1.every_timestep(config)
    config.loss.drop_body = 0.1
    config.data.frames, config.data.stride = 16, 1
    config.data.batch_size = 2
    # One noise for all frames: what stands still does not shimmer.
    config.schedule = dataclasses.asdict(NoiseSchedule(shared_noise=1.0))
    return config
