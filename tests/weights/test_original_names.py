"""Names of other programs: diffusers' own conversions are the truth for ours."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, MotionAdapter, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from single_file import single_file_autoencoder, single_file_unet

from animate_jax.errors import UserError, UserNote
from animate_jax.weights.lazy_tensor import LazyTensor
from animate_jax.weights.original_names import (
    pose_guider_from_controlnet,
    rename_autoencoder,
    rename_motion_modules,
    rename_unet,
    split_single_file,
)

UNETS = {
    "sd15": {"widths": (8, 16, 16, 16), "attention": (1, 1, 1, 0), "layers": 2},
    "short": {"widths": (8, 16), "attention": (0, 1), "layers": 1},
    "deep": {"widths": (8, 8, 16), "attention": (1, 0, 1), "layers": 3},
    "one level": {"widths": (8,), "attention": (1,), "layers": 2},
}


def unet(widths, attention, layers) -> UNet2DConditionModel:
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention]
    up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)]
    return UNet2DConditionModel(
        block_out_channels=widths,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=layers,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def autoencoder(widths=(8, 16, 16, 16), layers=2) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=layers,
        norm_num_groups=4,
        latent_channels=4,
    )


def lazy(state: dict[str, torch.Tensor]) -> dict[str, LazyTensor]:
    return {name: LazyTensor.of(tensor.numpy()) for name, tensor in state.items()}


def assert_same(ours: dict[str, LazyTensor], theirs: dict[str, torch.Tensor]):
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(ours[name].read(), tensor.numpy())


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("size", list(UNETS))
def test_single_file_unet_becomes_what_diffusers_makes_of_it(size):
    model = unet(**UNETS[size])
    original = single_file_unet(model)
    truth = single_file_utils.convert_ldm_unet_checkpoint(
        prefixed("model.diffusion_model.", original), dict(model.config)
    )
    assert_same(rename_unet(lazy(original)), truth)
    assert_same(rename_unet(lazy(original)), model.state_dict())


@pytest.mark.parametrize("widths, layers", [((8, 16, 16, 16), 2), ((8, 16), 1), ((8,), 3)])
def test_single_file_autoencoder_becomes_what_diffusers_makes_of_it(widths, layers):
    model = autoencoder(widths, layers)
    original = single_file_autoencoder(model)
    truth = single_file_utils.convert_ldm_vae_checkpoint(
        copy.copy(prefixed("first_stage_model.", original)), dict(model.config)
    )
    left = {name: torch.zeros(()) for name in ("loss.logvar", "model_ema.decay")}
    ours = rename_autoencoder(lazy({**original, **left}))
    assert_same(ours, truth)
    assert_same(ours, model.state_dict())
    assert ours["encoder.mid_block.attentions.0.to_q.weight"].shape == (widths[-1],) * 2


def test_a_single_file_splits_into_unet_and_autoencoder():
    models = {"unet": unet(**UNETS["sd15"]), "vae": autoencoder()}
    checkpoint = lazy(
        prefixed("model.diffusion_model.", single_file_unet(models["unet"]))
        | prefixed("first_stage_model.", single_file_autoencoder(models["vae"]))
        | {
            "cond_stage_model.transformer.embeddings.weight": torch.zeros(2),
            "model_ema.diffusion_modelout2bias": torch.zeros(2),
            "alphas_cumprod": torch.zeros(1000),
        }
    )
    parts = split_single_file(checkpoint)
    assert set(parts) == set(models)
    for name, model in models.items():
        assert_same(parts[name], model.state_dict())
    for prefix, left in {"model.": {"vae"}, "first_": {"unet"}}.items():
        part = {n: t for n, t in checkpoint.items() if not n.startswith(prefix)}
        assert set(split_single_file(part)) == left


def test_diffusers_names_stay_and_unknown_ones_are_refused():
    for rename, model, original in (
        (rename_unet, unet(**UNETS["short"]), single_file_unet),
        (rename_autoencoder, autoencoder((8, 16), 1), single_file_autoencoder),
    ):
        assert_same(rename(lazy(model.state_dict())), model.state_dict())
        for name in ("label_emb.0.0.weight", "encoder.down.x.block.0.conv1.weight"):
            with pytest.raises(UserError, match=f"'{name}', unknown in Stable Diffusion 1"):
                rename(lazy({**original(model), name: torch.zeros(1)}))


def convolution(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, :, None, None] if tensor.ndim == 2 else tensor


@pytest.mark.parametrize("store", [torch.clone, convolution])
def test_old_attention_names_of_autoencoders_become_the_current_ones(store: Callable):
    model = autoencoder((8, 16), 1)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in model.state_dict().items():
        for new, former in names.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{former}.")
        old[name] = store(tensor)
    assert sum(".proj_attn." in name for name in old) == 4
    assert_same(rename_autoencoder(lazy(old)), model.state_dict())
    key = "encoder.mid_block.attentions.0.query.weight"
    with pytest.raises(UserError, match="no 1x1 convolution"):
        rename_autoencoder(lazy({**old, key: torch.zeros(16, 16, 3, 3)}))


def control_net() -> dict[str, torch.Tensor]:
    model = ControlNetModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(t.shape, generator=generator) for n, t in model.state_dict().items()}


def test_controlnet_embedding_agrees_with_diffusers_conversion():
    state = control_net()
    places = ["conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out"]
    truth = {
        f"{place}.{kind}": state[f"controlnet_cond_embedding.{place}.{kind}"]
        for place in places
        for kind in ("weight", "bias")
    }
    assert_same(pose_guider_from_controlnet(lazy(state)), truth)
    assert_same(pose_guider_from_controlnet(lazy(truth)), truth)

    hint = {
        f"control_model.input_hint_block.{2 * index}.{kind}": truth[f"{place}.{kind}"]
        for index, place in enumerate(places)
        for kind in ("weight", "bias")
    }
    converted = single_file_utils.convert_controlnet_checkpoint(hint, {"layers_per_block": 1})
    prefix = "controlnet_cond_embedding."
    theirs = {n.removeprefix(prefix): t for n, t in converted.items() if n.startswith(prefix)}
    ours = pose_guider_from_controlnet(lazy({**hint, "control_model.out.0.bias": torch.zeros(1)}))
    assert_same(ours, theirs)
    assert_same(ours, truth)


def test_what_is_no_controlnet_is_refused():
    with pytest.raises(UserError, match="no ControlNet"):
        pose_guider_from_controlnet(lazy({"conv_in.weight": torch.zeros(2)}))
    hint = {f"input_hint_block.{i}.weight": torch.zeros(1) for i in ("0", "2", "x")}
    with pytest.raises(UserError, match="'x.weight', unknown"):
        pose_guider_from_controlnet(lazy(hint))


@pytest.fixture(scope="module")
def motion_adapter() -> dict[str, torch.Tensor]:
    model = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=6,
        motion_norm_num_groups=4,
    )
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(t.shape, generator=generator) for n, t in model.state_dict().items()}


def test_motion_adapter_becomes_animatediff_and_diffusers_turns_it_back(motion_adapter):
    ours = rename_motion_modules(lazy(motion_adapter))
    positions = {n: t for n, t in ours.items() if n.endswith("pos_encoder.pe")}
    back = single_file_utils.convert_animatediff_checkpoint_to_diffusers(ours)
    assert_same(back, {n: t for n, t in motion_adapter.items() if not n.endswith("pos_embed.pe")})

    # Two attentions share each of the adapter's tables of positions.
    tables = {n: t for n, t in motion_adapter.items() if n.endswith("pos_embed.pe")}
    assert len(positions) == 2 * len(tables) == 2 * (2 * 2 + 1 + 2 * 3)
    for name, table in tables.items():
        block = name.removesuffix(".pos_embed.pe").replace(
            ".transformer_blocks.", ".temporal_transformer.transformer_blocks."
        )
        for attention in (0, 1):
            place = f"{block}.attention_blocks.{attention}.pos_encoder.pe"
            np.testing.assert_array_equal(positions[place].read(), table.numpy())


def test_motion_modules_have_the_names_of_the_released_files(motion_adapter):
    block = "temporal_transformer.transformer_blocks.0"
    parts = ["norm", "proj_in", "proj_out", f"{block}.ff.net.0.proj", f"{block}.ff.net.2"]
    parts += [f"{block}.norms.0", f"{block}.norms.1", f"{block}.ff_norm"]
    parts += [f"{block}.attention_blocks.{i}.to_out.0" for i in (0, 1)]
    module = "down_blocks.1.motion_modules.0."
    expected = {
        module + (part if "." in part else f"temporal_transformer.{part}") + f".{kind}"
        for part in parts
        for kind in ("weight", "bias")
    }
    for attention in (0, 1):
        layer = f"{module}{block}.attention_blocks.{attention}"
        expected |= {f"{layer}.{part}.weight" for part in ("to_q", "to_k", "to_v")}
        expected |= {f"{layer}.pos_encoder.pe"}
    names = set(rename_motion_modules(lazy(motion_adapter)))
    assert {name for name in names if name.startswith(module)} == expected
    assert any(
        name.startswith("mid_block.motion_modules.0.temporal_transformer.") for name in names
    )


@pytest.mark.parametrize("prefix", ["", "module."])
def test_animatediff_files_keep_their_names_and_lose_other_weights(motion_adapter, prefix):
    released = rename_motion_modules(lazy(motion_adapter))
    others = {"conv_in.weight": torch.zeros(1), "mid_block.resnets.0.conv1.bias": torch.zeros(1)}
    whole = prefixed(prefix, {**released, **lazy(others)})
    with pytest.warns(UserNote, match="2 tensors are of no motion module .*conv_in.weight"):
        assert rename_motion_modules(whole) == released
    with pytest.raises(UserError, match="holds no motion modules"):
        rename_motion_modules(lazy(others))
