"""Last of the bundled model: its decoder learns to forgive what a small denoiser gets wrong.

The encoder stays, and with it the latents that the denoiser knows.
"""

from configs import tiny_autoencoder


def get_config():
    config = tiny_autoencoder.get_config()
    config.after = "tiny_stage2.py"
    config.motion = True
    config.measure_scaling_factor = False
    config.learned = (r"^autoencoder/(decoder|post_quant_conv)/",)
    config.loss.latent_noise = 0.5
    config.steps = 2000
    config.optimizer.learning_rate = 8e-3
    return config
