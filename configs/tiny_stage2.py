"""Stage 2 on a CPU: clips of eight frames, from what tiny_stage1.py has learnt."""

from configs import stage2, tiny_stage1


def get_config():
    config = tiny_stage1.small(stage2.get_config())
    config.after = "tiny_stage1.py"
    config.steps = 1000
    config.data.frames = 8
    config.data.stride = 1
    config.data.batch_size = 2
    return config
