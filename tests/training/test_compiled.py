"""Programs compiled beforehand are those that training and sampling ask for."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from quick_training import CONFIG, LEARNED, quick_loss
from small_model import small_model

from animate_jax import compiled
from animate_jax.inference.pipeline import AnimateAnyonePipeline
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.parallel.mesh import make_mesh
from animate_jax.tpu.plan import lower_sampling, lower_step
from animate_jax.training import train as loop
from animate_jax.training.config import load_config
from animate_jax.training.stages import Stage, make_stage
from animate_jax.weights.model_directory import save_model


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """An empty directory that everything compiled goes to."""
    monkeypatch.setattr(compiled, "LEAST_SECONDS", 0.0)
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    compiled.keep_compiled(tmp_path / "programs")
    yield tmp_path / "programs"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_training_starts_with_what_was_planned(programs, records, tmp_path, monkeypatch):
    monkeypatch.setattr(Stage, "loss", property(lambda stage: quick_loss))
    overrides = ["steps=1", "validation.every=0", "accumulate=2"]
    config = load_config(CONFIG, [f"data.path={records}", LEARNED, *overrides])
    stage = make_stage(config, make_mesh(config.mesh.to_dict()))
    lower_step(stage).compile()
    (planned,) = programs.glob("jit_step-*-cache")
    loop.train(config, tmp_path / "run", progress=False)
    assert list(programs.glob("jit_step-*-cache")) == [planned]


@pytest.mark.parametrize("downscale, on_body", [(8, False), (4, False), (8, True)])
def test_sampling_starts_with_what_was_planned(programs, tmp_path, downscale, on_body):
    config = small_model()
    if on_body:
        known = dict(positions=True, body_places=True, body_values=True)
        unets = {
            name: dataclasses.replace(getattr(config, name), **known)
            for name in ("denoising_unet", "reference_unet")
        }
        config = dataclasses.replace(config, **unets)
    channels = config.autoencoder.block_out_channels[: {8: 4, 4: 3}[downscale]]
    autoencoder = dataclasses.replace(config.autoencoder, block_out_channels=channels)
    config = dataclasses.replace(config, autoencoder=autoencoder)
    if downscale != 8:
        guider = dataclasses.replace(config.pose_guider, channels=config.pose_guider.channels[:3])
        config = dataclasses.replace(config, pose_guider=guider)
    assert config.autoencoder.downscale == downscale
    save_model(tmp_path / "model", config, AnimateAnyone(config).init(0).items())
    pipeline = AnimateAnyonePipeline.from_pretrained(tmp_path / "model", "bfloat16")
    size = {"width": 64, "height": 64}
    lower_sampling(config, 4, 64, 64, 2, 3.5, jax.devices()[0])[0].compile()
    (planned,) = programs.glob("jit_sample_clip-*-cache")
    picture, motion = np.zeros((64, 64, 3), np.uint8), np.zeros((4, 134, 3), np.float32)
    pipeline(picture, motion, **size, steps=2, guidance=3.5)
    assert list(programs.glob("jit_sample_clip-*-cache")) == [planned]


def test_sizes_that_are_no_multiple_of_a_latent_are_planned():
    """Rounded down, of latents and skeletons alike."""
    lowered, *_ = lower_sampling(small_model(), 2, 68, 64, 1, 1.0, jax.devices()[0])
    (shape,) = {x.shape for x in jax.tree.leaves(lowered.out_info) if x.ndim == 5}
    assert shape[:4] == (1, 2, 8, 8)
