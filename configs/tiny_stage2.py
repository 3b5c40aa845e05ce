"""Stage 2 of the bundled model, on a CPU: motion modules, from what tiny_stage1.py has learnt."""

from configs import stage2, tiny_stage1


def get_config():
    config = tiny_stage1.small(stage2.get_config())
    config.after = "tiny_stage1.py"
    config.steps = 2000
    config.optimizer.learning_rate = 8e-4
    config.optimizer.schedule, config.optimizer.warmup = "cosine", 200
    config.optimizer.average_decay = 0.99
    config.loss.noise_offset = 0.0
    config.data.frames, config.data.stride = 12, 1
    config.data.batch_size = 2
    return config
