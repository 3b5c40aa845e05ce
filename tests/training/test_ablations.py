"""The ablations differ in what they are named after, and in nothing else that counts."""

from pathlib import Path

import pytest

from animate_jax.training.config import load_config

FOLDER = Path("configs/ablations")
MODELS = {  # the reference in the denoiser, and whether motion is learnt
    "full": ("attended", True),
    "noise_apart": ("attended", True),
    "image_token": ("none", True),
    "added": ("added", True),
    "no_motion": ("attended", False),
    "joint": ("attended", True),
}


def stages(name):
    """The config and those it comes after."""
    config = load_config(FOLDER / f"{name}.py")
    return [config, *(stages(Path(config.after).stem) if config.after else [])]


def test_all_are_there():
    names = {path.stem for path in FOLDER.glob("[a-z]*.py")}
    assert {name for name in names if not name.endswith("_stage1")} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_budget_and_difference(name):
    reference, motion = MODELS[name]
    configs = stages(name)
    frames = [c.steps * c.data.batch_size * c.data.frames for c in configs]
    assert 0 <= 16_000 - sum(frames) < 2 * 36  # whole steps
    assert configs[0].motion == motion
    full = stages("full")
    for config in configs:
        assert config.model["denoising_unet"]["reference"] == reference
        assert (config.data.height, config.data.width) == (64, 64)
        assert config.puppets == full[0].puppets and config.optimizer == full[0].optimizer
        assert config.loss == full[0].loss
    assert configs[-1].init_components == ("autoencoder",)
    assert configs[-1].learned == full[-1].learned  # all begin with all but motion modules
    common = motion and name != "noise_apart"  # only clips have noise in common
    assert configs[0].schedule == (full[0].schedule if common else None)
    assert full[0].schedule["shared_noise"] == 1
    if name == "joint":
        assert len(configs) == 1 and configs[0].motion
