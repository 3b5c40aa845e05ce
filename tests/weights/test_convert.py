"""Conversion of PyTorch files: every key is used, and files that do not fit are refused by name."""

import json
import re
import shutil

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from flax.traverse_util import flatten_dict
from moore_layout import FILES
from parity import randomize
from single_file import single_file_autoencoder, single_file_unet
from torch_animate_anyone import torch_autoencoder, torch_image_encoder, torch_unet

from animate_jax.config import AutoencoderConfig, ImageEncoderConfig, MotionConfig, tiny
from animate_jax.diffusion.schedule import NoiseSchedule, moore_sampling
from animate_jax.errors import UserError, UserNote
from animate_jax.weights import config_files, parts
from animate_jax.weights.convert import convert_moore, convert_sd15
from animate_jax.weights.lazy_tensor import LazyTensor
from animate_jax.weights.mappings import to_torch, torch_name
from animate_jax.weights.model_directory import load_model, read_config


def moore(source, out, **options):
    convert_moore(source, out, **dict(motion_heads=4, progress=False) | options)


def sd15(source, out, **options):
    convert_sd15(source, out, **dict(motion_heads=4, progress=False) | options)


def assert_holds(params, state_dict):
    """The parameters are exactly these tensors."""
    leaves = {torch_name(p): to_torch(p, np.asarray(x)) for p, x in flatten_dict(params).items()}
    assert set(leaves) == set(state_dict)
    for name, tensor in state_dict.items():
        np.testing.assert_array_equal(leaves[name], tensor.float().numpy(), err_msg=name)


def resave(folder, component, change):
    """Replace a file of a linked layout by a changed version of itself."""
    file = folder / FILES[component]
    pth = file.suffix == ".pth"
    state = dict(torch.load(file) if pth else safetensors.torch.load_file(file))
    change(state)
    file.unlink()
    torch.save(state, file) if pth else safetensors.torch.save_file(state, file)
    return str(file)


def change_json(file, **changes):
    values = json.loads(file.read_text()) | changes
    file.unlink()
    file.write_text(json.dumps(values))


def test_every_tensor_of_the_layout_is_at_its_place(moore_layout, model_directory):
    config, params = load_model(model_directory)
    expected = moore_layout.state_dicts
    assert_holds(
        params.pop("denoising_unet"), expected["denoising_unet"] | expected["motion_module"]
    )
    for component, tree in params.items():
        assert_holds(tree, expected[component])


def test_sizes_are_read_off_the_files(model_directory):
    config, expected = read_config(model_directory), tiny()
    assert config.denoising_unet == expected.denoising_unet
    assert config.reference_unet == expected.reference_unet
    assert config.pose_guider == expected.pose_guider
    assert config.autoencoder == expected.autoencoder
    assert config.image_encoder == expected.image_encoder
    assert (config.schedule, config.resolution) == (moore_sampling(), 512)


def test_motion_modules_may_lie_in_both_files(moore_layout, tmp_path):
    motion = moore_layout.state_dicts["motion_module"]
    names = sorted(motion)
    folder = moore_layout.linked(tmp_path / "mixed")
    inside = {name: torch.full_like(motion[name], 2.0) for name in names[: len(names) // 2]}
    unet_file = resave(folder, "denoising_unet", lambda state: state.update(inside))
    # What is in both comes from the UNet's file.
    resave(folder, "motion_module", lambda state: [state.pop(name) for name in names[:9]])
    moore(folder, tmp_path / "m")
    _, params = load_model(tmp_path / "m", components=["denoising_unet"])
    expected = moore_layout.state_dicts["denoising_unet"] | motion | inside
    assert_holds(params["denoising_unet"], expected)

    resave(folder, "motion_module", lambda state: [state.pop(n) for n in list(state)[:-1]])
    with pytest.raises(UserError, match=f"with {unet_file}: .* missing key"):
        moore(folder, tmp_path / "incomplete")
    assert not (tmp_path / "incomplete").exists()


def test_files_as_training_names_them(moore_layout, tmp_path):
    """Of several steps the last; `pose_guider.pth` itself comes before all."""
    stems = "denoising_unet", "reference_unet", "motion_module"
    folder = moore_layout.linked(tmp_path / "run", without=tuple(f"{stem}.pth" for stem in stems))
    for stem in stems:
        (folder / f"{stem}-9000.pth").write_bytes(b"an earlier step")
        (folder / f"{stem}-30000.pth").symlink_to(moore_layout.folder / f"{stem}.pth")
    (folder / "pose_guider-30000.pth").write_bytes(b"not asked for")
    with pytest.warns(UserNote) as notes:
        moore(folder, tmp_path / "m")
    told = [str(note.message) for note in notes if "taken for" in str(note.message)]
    assert told == [
        f"{folder / stem}-30000.pth: taken for {stem}.pth"
        for stem in ("denoising_unet", "motion_module", "reference_unet")
    ]
    _, params = load_model(tmp_path / "m", components=["reference_unet"])
    assert_holds(params["reference_unet"], moore_layout.state_dicts["reference_unet"])


def test_motion_modules_inside_the_unet_file_need_no_other(moore_layout, tmp_path):
    folder = moore_layout.linked(tmp_path / "inside", without=("motion_module.pth",))
    with pytest.raises(UserError, match="motion_module.pth is missing"):
        moore(folder, tmp_path / "m")
    moore(folder, tmp_path / "pictures", motion=False)
    assert read_config(tmp_path / "pictures").denoising_unet.motion is None
    motion = moore_layout.state_dicts["motion_module"]
    resave(folder, "denoising_unet", lambda state: state.update(motion))
    moore(folder, tmp_path / "m")
    _, params = load_model(tmp_path / "m", components=["denoising_unet"])
    assert_holds(params["denoising_unet"], moore_layout.state_dicts["denoising_unet"] | motion)


def test_what_is_of_no_use_is_left_out_knowingly(moore_layout, tmp_path):
    folder = moore_layout.linked(tmp_path / "more")
    output = {"conv_out.weight": torch.ones(4, 32, 3, 3), "conv_norm_out.bias": torch.ones(32)}
    resave(folder, "reference_unet", lambda state: state.update(output))
    positions = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    resave(folder, "image_encoder", lambda state: state.update(positions))
    moore(folder, tmp_path / "m")
    _, params = load_model(tmp_path / "m", components=["reference_unet", "image_encoder"])
    for component, tree in params.items():
        assert_holds(tree, moore_layout.state_dicts[component])


def test_old_attention_names_and_another_place_of_the_autoencoder(moore_layout, tmp_path):
    new = moore_layout.state_dicts["autoencoder"]
    old = {}
    for name, tensor in new.items():
        changed = name
        for modern, former in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            changed = changed.replace(f".{modern}.", f".{former}.")
        changed = changed.replace(".to_out.0.", ".proj_attn.")
        old[changed] = tensor[:, :, None, None] if changed != name and tensor.ndim == 2 else tensor
    assert sum(name not in new for name in old) == 16
    folder = moore_layout.linked(tmp_path / "bare", without=("sd-vae-ft-mse", "image_encoder"))
    with pytest.raises(UserError, match="add --vae hf:stabilityai/sd-vae-ft-mse"):
        moore(folder, tmp_path / "m")
    vae = tmp_path / "vae"
    vae.mkdir()
    shutil.copy(moore_layout.folder / "sd-vae-ft-mse" / "config.json", vae)
    torch.save(old, vae / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="add --image-encoder hf:lambdalabs/"):
        moore(folder, tmp_path / "m", vae=vae)
    moore(folder, tmp_path / "m", vae=vae, image_encoder=moore_layout.folder / "image_encoder")
    _, params = load_model(tmp_path / "m", components=["autoencoder"])
    assert_holds(params["autoencoder"], new)


def test_the_unet_config_may_lie_elsewhere(moore_layout, tmp_path):
    folder = moore_layout.linked(tmp_path / "bare", without=("stable-diffusion-v1-5",))
    moore(folder, tmp_path / "default")
    assert read_config(tmp_path / "default").denoising_unet.heads == (8, 8, 8, 8)
    moore(folder, tmp_path / "m", base=moore_layout.folder / "stable-diffusion-v1-5")
    assert read_config(tmp_path / "m").denoising_unet.heads == (4, 4, 4, 4)
    with pytest.raises(UserError, match="holds no config.json of a UNet"):
        moore(folder, tmp_path / "other", base=moore_layout.folder / "sd-vae-ft-mse" / "..")


def remove(state):
    del state[max(state)]


def add(state):
    state["surplus.weight"] = torch.ones(3)


def misshape(state):
    name = max(name for name in state if name.endswith(".weight"))
    state[name] = torch.ones(1, *state[name].shape)


def quantise(state):
    name = max(name for name in state if name.endswith(".bias"))
    state[name] = state[name].to(torch.int8)


@pytest.mark.parametrize("component", list(FILES))
@pytest.mark.parametrize("change", [remove, add, misshape, quantise])
def test_keys_that_do_not_fit_are_named(moore_layout, tmp_path, component, change):
    folder, keys = moore_layout.linked(tmp_path / "bad"), moore_layout.state_dicts[component]
    weights = max(name for name in keys if name.endswith(".weight"))
    biases = max(name for name in keys if name.endswith(".bias"))
    message = {
        remove: f"missing key.*{re.escape(max(keys))}",
        add: "surplus key.*surplus.weight",
        misshape: rf"{re.escape(weights)} has shape \(1, ",
        quantise: f"{re.escape(biases)} has dtype int8",
    }[change]
    resave(folder, component, change)
    where = FILES[component].split("/")[0]
    with pytest.raises(UserError, match=f"{where}.*{message}"):
        moore(folder, tmp_path / "m")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bad"]


@pytest.mark.parametrize("component", list(FILES))
def test_files_that_are_cut_off_or_missing_are_named(moore_layout, tmp_path, component):
    file = moore_layout.linked(tmp_path / "bad") / FILES[component]
    data = file.read_bytes()
    file.unlink()
    with pytest.raises(UserError, match=f"{component}.pth is missing|holds no weight files"):
        moore(tmp_path / "bad", tmp_path / "m")
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=re.escape(str(file))):
        moore(tmp_path / "bad", tmp_path / "m")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bad"]


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("unet", {"use_linear_projection": True}, "use_linear_projection is True"),
        ("unet", {"act_fn": "gelu"}, "act_fn is 'gelu'; only 'silu'"),
        ("unet", {"downsample_padding": 0}, "downsample_padding is 0"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
        ("unet", {"mid_block_type": None}, "mid_block_type is None"),
        ("unet", {"transformer_layers_per_block": [1, 2, 1, 1]}, "transformer_layers_per_block"),
        ("unet", {"dual_cross_attention": True}, "dual_cross_attention"),
        ("unet", {"addition_embed_type": "text"}, "addition_embed_type"),
        ("unet", {"a_new_option": 3}, "the option a_new_option = 3 is not implemented"),
        ("unet", {"_class_name": "AutoencoderKL"}, "describes a AutoencoderKL"),
        ("unet", {"down_block_types": ["AttnDownBlock2D"] * 4}, "has 'AttnDownBlock2D'"),
        ("unet", {"up_block_types": ["UpBlock2D"] * 4}, "do not mirror"),
        ("unet", {"block_out_channels": [32, 64, 64, 96]}, "but the weights have \\[32, 64"),
        ("unet", {"cross_attention_dim": 64}, "cross_attention_dim is 64, but the weights have 32"),
        ("unet", {"attention_head_dim": 7}, "7 attention heads do not fit"),
        ("unet", {"attention_head_dim": [4, 4]}, "do not fit"),
        ("unet", {"norm_num_groups": 5}, "norm_num_groups, 5, does not divide"),
        ("vae", {"latents_mean": [0.1] * 4}, "latents_mean"),
        ("vae", {"use_quant_conv": False}, "use_quant_conv"),
        ("vae", {"layers_per_block": 2}, "layers_per_block is 2, but the weights have 1"),
        ("vae", {"scaling_factor": "0.18"}, "scaling_factor is '0.18'"),
        ("vae", {"down_block_types": ["DownBlock2D"]}, "has 'DownBlock2D'"),
        ("clip", {"model_type": "siglip"}, "model_type is 'siglip'"),
        ("unet", {"down_block_types": 5}, "down_block_types is 5, not a list"),
        ("unet", {"up_block_types": 7}, "up_block_types do not mirror"),
        ("vae", {"up_block_types": 7}, "up_block_types is 7, not a list"),
        ("clip", {"hidden_act": "relu"}, "hidden_act 'relu' is not implemented"),
        ("clip", {"num_attention_heads": 5}, "is not a multiple of the number"),
        ("clip", {"hidden_size": 64}, "hidden_size is 64, but the weights have 32"),
    ],
)
def test_options_that_are_not_implemented_are_named(moore_layout, tmp_path, name, changes, message):
    folder = moore_layout.linked(tmp_path / "bad")
    places = {
        "unet": "stable-diffusion-v1-5/unet",
        "vae": "sd-vae-ft-mse",
        "clip": "image_encoder",
    }
    file = folder / places[name] / "config.json"
    change_json(file, **changes)
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}.*{message}"):
        moore(folder, tmp_path / "m")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bad"]


def test_what_diffusers_and_transformers_build_by_default_is_understood():
    unet = json.loads(diffusers.UNet2DConditionModel(block_out_channels=(32,) * 4).to_json_string())
    config_files.check_unet_options(unet, "config.json")
    autoencoder = json.loads(torch_autoencoder(tiny().autoencoder).to_json_string())
    config_files.check_autoencoder_options(autoencoder, "config.json")


def test_num_attention_heads_overrides_and_differs_by_level(moore_layout, tmp_path):
    folder = moore_layout.linked(tmp_path / "heads")
    file = folder / "stable-diffusion-v1-5/unet/config.json"
    change_json(file, num_attention_heads=[2, 4, 8, 16], attention_head_dim=8)
    moore(folder, tmp_path / "m")
    assert read_config(tmp_path / "m").denoising_unet.heads == (2, 4, 8, 16)


def test_an_image_encoder_may_be_a_whole_clip(moore_layout, tmp_path):
    vision = json.loads((moore_layout.folder / "image_encoder" / "config.json").read_text())
    folder = moore_layout.linked(tmp_path / "clip", without=("image_encoder/config.json",))
    whole = {"model_type": "clip", "projection_dim": 32, "vision_config": vision}
    (folder / "image_encoder" / "config.json").write_text(json.dumps(whole))
    text = {"text_model.final_layer_norm.bias": torch.ones(8), "logit_scale": torch.ones(())}
    text["text_projection.weight"] = torch.ones(32, 8)
    resave(folder, "image_encoder", lambda state: state.update(text))
    colours = {"image_mean": [0.5, 0.25, 0.125], "image_std": [1, 2, 3]}
    (folder / "image_encoder" / "preprocessor_config.json").write_text(json.dumps(colours))
    with pytest.warns(UserNote, match=r"normalised by mean \(0.5, 0.25, 0.125\)"):
        moore(folder, tmp_path / "m")
    config, params = load_model(tmp_path / "m", components=["image_encoder"])
    assert config.image_encoder.image_mean == (0.5, 0.25, 0.125)
    assert config.image_encoder.image_std == (1.0, 2.0, 3.0)
    assert ImageEncoderConfig.image_std != config.image_encoder.image_std
    assert_holds(params["image_encoder"], moore_layout.state_dicts["image_encoder"])


def test_networks_that_do_not_fit_each_other_are_refused(moore_layout, tmp_path):
    folder = moore_layout.linked(tmp_path / "bad", without=("image_encoder", "pose_guider"))
    wide = torch_image_encoder(ImageEncoderConfig(32, 64, 2, 4, 56, 14, projection_dim=48))
    wide.save_pretrained(folder / "image_encoder")
    guider = ControlNetConditioningEmbedding(32, 3, (8, 16, 24, 32))
    torch.save(guider.state_dict(), folder / "pose_guider.pth")
    with pytest.raises(UserError, match="tokens of width 32, the image encoder: 48"):
        moore(folder, tmp_path / "m")
    encoder = moore_layout.folder / "image_encoder"
    guider = ControlNetConditioningEmbedding(64, 3, (8, 16, 24, 32))
    torch.save(guider.state_dict(), folder / "pose_guider.pth")
    with pytest.raises(UserError, match="the pose guider gives 64 channels, the UNet: 32"):
        moore(folder, tmp_path / "m", image_encoder=encoder)
    guider = ControlNetConditioningEmbedding(32, 3, (8, 16, 24))
    torch.save(guider.state_dict(), folder / "pose_guider.pth")
    with pytest.raises(UserError, match="4 times smaller, the autoencoder: 8"):
        moore(folder, tmp_path / "m", image_encoder=encoder)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bad"]


def test_stored_dtype_follows_the_source_or_the_wish(moore_layout, tmp_path, capsys):
    folder = moore_layout.linked(tmp_path / "half")
    halve = lambda state: state.update({n: t.half() for n, t in state.items()})  # noqa: E731
    resave(folder, "pose_guider", halve)
    moore(folder, tmp_path / "m", progress=True)
    assert "converting: 100%" in capsys.readouterr().err
    _, params = load_model(tmp_path / "m", components=["pose_guider", "autoencoder"])
    dtypes = {c: {x.dtype.name for x in flatten_dict(tree).values()} for c, tree in params.items()}
    assert dtypes == {"pose_guider": {"float16"}, "autoencoder": {"float32"}}
    moore(folder, tmp_path / "m", dtype="bfloat16", overwrite=True)
    _, params = load_model(tmp_path / "m", components=["pose_guider", "autoencoder"])
    for component, tree in params.items():
        state = moore_layout.state_dicts[component]
        if component == "pose_guider":
            state = {name: tensor.half() for name, tensor in state.items()}
        assert {x.dtype.name for x in flatten_dict(tree).values()} == {"bfloat16"}
        as_float = {n: t.bfloat16().float() for n, t in state.items()}
        assert_holds({k: v for k, v in tree.items()}, as_float)
    assert capsys.readouterr().err == ""


def test_what_can_be_refused_is_refused_before_any_work(model_directory, moore_layout, tmp_path):
    with pytest.raises(UserError, match="holds a model already"):
        moore(tmp_path / "absent", model_directory)
    with pytest.raises(UserError, match="stored as 'int8'"):
        moore(moore_layout.folder, tmp_path / "m", dtype="int8")
    with pytest.raises(UserError, match="3, does not divide"):
        moore(moore_layout.folder, tmp_path / "m", motion_heads=3)
    with pytest.raises(UserError, match="does not exist"):
        moore(tmp_path / "absent", tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    """A diffusers directory, and the models in it."""
    folder, config = tmp_path_factory.mktemp("sd") / "diffusers", tiny()
    # 32 groups, which is what is assumed where no config.json says another number.
    autoencoder = AutoencoderConfig(block_out_channels=(32,) * 4, layers_per_block=1)
    models = {
        "unet": randomize(torch_unet(config.denoising_unet), 1),
        "vae": randomize(torch_autoencoder(autoencoder), 2),
        "image_encoder": randomize(torch_image_encoder(config.image_encoder), 3),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return folder, models


def test_a_start_for_training_from_a_diffusers_directory(stable_diffusion, tmp_path):
    folder, models = stable_diffusion
    sd15(folder, tmp_path / "m")
    config, params = load_model(tmp_path / "m")
    assert config.denoising_unet.motion is None and config.schedule == NoiseSchedule()
    assert config.denoising_unet.heads == (4, 4, 4, 4)
    unet = models["unet"].state_dict()
    assert_holds(params["denoising_unet"], unet)
    body = {n: t for n, t in unet.items() if not n.startswith(("conv_norm_out", "conv_out"))}
    assert_holds(params["reference_unet"], body)
    assert_holds(params["autoencoder"], models["vae"].state_dict())
    assert_holds(params["image_encoder"], models["image_encoder"].state_dict())
    guider = params["pose_guider"]
    assert not guider["conv_out"]["kernel"].any()
    assert guider["blocks_5"]["kernel"].shape == (3, 3, 96, 256)
    assert 0.9 < float(guider["blocks_5"]["kernel"].std()) * (9 * 96) ** 0.5 < 1.1


def test_single_file_controlnet_and_animatediff(stable_diffusion, moore_layout, tmp_path):
    folder, models = stable_diffusion
    whole = {f"model.diffusion_model.{n}": t for n, t in single_file_unet(models["unet"]).items()}
    for name, tensor in single_file_autoencoder(models["vae"]).items():
        whole[f"first_stage_model.{name}"] = tensor
    whole["cond_stage_model.transformer.text_model.final_layer_norm.bias"] = torch.ones(8)
    (tmp_path / "files").mkdir()
    safetensors.torch.save_file(
        {name: t.contiguous() for name, t in whole.items()}, tmp_path / "files" / "v1.safetensors"
    )
    embedding = moore_layout.state_dicts["pose_guider"]
    controlnet = {f"controlnet_cond_embedding.{n}": t for n, t in embedding.items()}
    torch.save(controlnet | {"conv_in.weight": torch.ones(2)}, tmp_path / "files" / "control.pth")
    motion = moore_layout.state_dicts["motion_module"]
    prefixed = {f"module.{name}": tensor for name, tensor in motion.items()}
    torch.save({"epoch": 1, "state_dict": prefixed}, tmp_path / "files" / "mm.ckpt")

    with pytest.warns(UserNote, match="do not show the number of attention heads; 8 are assumed"):
        sd15(
            tmp_path / "files" / "v1.safetensors",
            tmp_path / "m",
            controlnet=tmp_path / "files" / "control.pth",
            motion=tmp_path / "files" / "mm.ckpt",
            image_encoder=folder / "image_encoder",
        )
    config, params = load_model(tmp_path / "m")
    assert_holds(params["autoencoder"], models["vae"].state_dict())
    assert config.denoising_unet.heads == (8, 8, 8, 8)  # a single file has no config.json
    assert config.denoising_unet.motion == MotionConfig(heads=4)
    assert_holds(params["denoising_unet"], models["unet"].state_dict() | motion)
    last = params["pose_guider"].pop("conv_out")
    assert not last["kernel"].any() and not last["bias"].any()
    body = {n: t for n, t in embedding.items() if not n.startswith("conv_out.")}
    assert_holds(params["pose_guider"], body)


def test_a_file_of_the_unet_alone_with_the_autoencoder_of_another(stable_diffusion, tmp_path):
    folder, models = stable_diffusion
    files = {
        "unet": {f"model.diffusion_model.{n}": t for n, t in single_file_unet(
            models["unet"]).items()},
        "vae": {f"first_stage_model.{n}": t for n, t in single_file_autoencoder(
            models["vae"]).items()},
    }  # fmt: skip
    for name, tensors in files.items():
        torch.save(tensors, tmp_path / f"{name}.ckpt")
    given = dict(image_encoder=folder / "image_encoder")
    with pytest.raises(UserError, match="add --vae"):
        sd15(tmp_path / "unet.ckpt", tmp_path / "m", **given)
    sd15(tmp_path / "unet.ckpt", tmp_path / "m", vae=tmp_path / "vae.ckpt", **given)
    _, params = load_model(tmp_path / "m", components=["autoencoder", "denoising_unet"])
    assert_holds(params["autoencoder"], models["vae"].state_dict())
    assert_holds(params["denoising_unet"], models["unet"].state_dict())


def test_a_file_with_names_of_something_else_is_named(stable_diffusion, tmp_path):
    folder, models = stable_diffusion
    whole = {f"model.diffusion_model.{n}": t for n, t in single_file_unet(models["unet"]).items()}
    surplus = {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1)}
    torch.save(whole | surplus, tmp_path / "sdxl.ckpt")
    with pytest.raises(UserError, match=r"sdxl\.ckpt: the UNet has the name 'label_emb"):
        sd15(tmp_path / "sdxl.ckpt", tmp_path / "m")
    torch.save({"lora.weight": torch.zeros(1)}, tmp_path / "lora.ckpt")
    with pytest.raises(UserError, match=r"lora\.ckpt: the checkpoint holds no motion modules"):
        sd15(folder, tmp_path / "m", motion=tmp_path / "lora.ckpt")
    with pytest.raises(UserError, match=r"lora\.ckpt: the checkpoint is no ControlNet"):
        sd15(folder, tmp_path / "m", controlnet=tmp_path / "lora.ckpt")


def test_motion_modules_without_tables_of_positions(stable_diffusion, moore_layout, tmp_path):
    """AnimateDiff's training no longer saves them: they are sines."""
    folder, _ = stable_diffusion
    motion = moore_layout.state_dicts["motion_module"]
    bare = {name: t for name, t in motion.items() if not name.endswith(".pe")}
    assert len(bare) < len(motion)
    torch.save(bare, tmp_path / "bare.ckpt")
    sd15(folder, tmp_path / "m", motion=tmp_path / "bare.ckpt")
    config, params = load_model(tmp_path / "m", components=["denoising_unet"])
    assert config.denoising_unet.motion.max_frames == 32
    adapter = diffusers.MotionAdapter(block_out_channels=(32,), motion_max_seq_length=32)
    table = adapter.state_dict()["down_blocks.0.motion_modules.0.transformer_blocks.0.pos_embed.pe"]
    module = params["denoising_unet"]["down_blocks_0"]["motion_modules_0"]["temporal_transformer"]
    block = module["transformer_blocks_0"]["attention_blocks_0"]
    np.testing.assert_allclose(block["pos_encoder"]["pe"], table, atol=1e-6)
    short = {n: t[:, :24] if n.endswith(".pe") else t for n, t in motion.items()}
    torch.save(short, tmp_path / "short.ckpt")
    with pytest.warns(UserNote, match="AnimateDiff's first version"):
        sd15(folder, tmp_path / "m", motion=tmp_path / "short.ckpt", overwrite=True)


def test_a_motion_adapter_tells_its_heads_and_groups(stable_diffusion, tmp_path):
    folder, _ = stable_diffusion
    adapter = diffusers.MotionAdapter(
        block_out_channels=(32, 64, 64, 64),
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=16,
    )
    adapter.save_pretrained(tmp_path / "adapter")
    sd15(folder, tmp_path / "m", motion=tmp_path / "adapter")
    motion = read_config(tmp_path / "m").denoising_unet.motion
    assert (motion.heads, motion.norm_groups) == (2, 16)
    # The same in the words of the whole video UNet, with a number for every level.
    change_json(
        tmp_path / "adapter" / "config.json",
        _class_name="UNetMotionModel",
        norm_num_groups=8,
        motion_num_attention_heads=[4, 4],
    )
    sd15(folder, tmp_path / "m", motion=tmp_path / "adapter", overwrite=True)
    motion = read_config(tmp_path / "m").denoising_unet.motion
    assert (motion.heads, motion.norm_groups) == (4, 8)
    change_json(tmp_path / "adapter" / "config.json", _class_name="ControlNetModel")
    with pytest.raises(UserError, match="describes a ControlNetModel"):
        sd15(folder, tmp_path / "m", motion=tmp_path / "adapter", overwrite=True)


def test_an_autoencoder_that_is_given_replaces_one_that_cannot_be_read(stable_diffusion, tmp_path):
    whole, folder = stable_diffusion[0], tmp_path / "sd"
    shutil.copytree(whole, folder)
    for file in (folder / "vae").glob("*.safetensors"):
        file.unlink()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_text(pointer)
    with pytest.raises(UserError, match="vae.*Git LFS pointer"):
        sd15(folder, tmp_path / "m")
    sd15(folder, tmp_path / "m", vae=whole / "vae")


def test_a_unet_with_the_notes_of_its_averaging_is_taken():
    unet = json.loads(diffusers.UNet2DConditionModel(block_out_channels=(32,) * 4).to_json_string())
    notes = dict(decay=0.9999, min_decay=0.0, optimization_step=7, update_after_step=0)
    notes |= dict(use_ema_warmup=False, inv_gamma=1.0, power=0.67)
    config_files.check_unet_options(unet | notes, "config.json")


def test_weights_given_as_the_base_are_not_read(moore_layout, tmp_path):
    with open(tmp_path / "v1-5.safetensors", "wb") as file:
        file.truncate(2**40)  # more than any memory
    with pytest.raises(UserError, match="v1-5.safetensors: .* give a config.json"):
        moore(moore_layout.folder, tmp_path / "m", base=tmp_path / "v1-5.safetensors")


def test_musepose_asks_for_other_betas(moore_layout, tmp_path):
    def longer(state):
        for name in [n for n in state if n.endswith(".pos_encoder.pe")]:
            state[name] = state[name][:, :1].repeat(1, 128, 1)

    folder = moore_layout.linked(tmp_path / "muse")
    resave(folder, "motion_module", longer)
    with pytest.warns(UserNote, match="128 frames, as MusePose's.*--betas scaled_linear"):
        moore(folder, tmp_path / "m")
    moore(folder, tmp_path / "n", betas="scaled_linear")
    assert read_config(tmp_path / "n").schedule.beta_schedule == "scaled_linear"
    assert read_config(tmp_path / "m").schedule.beta_schedule == "linear"


def test_a_config_that_does_not_name_its_class_counts(tmp_path):
    (tmp_path / "config.json").write_text('{"attention_head_dim": [2, 4]}')
    assert config_files.find_options(tmp_path)[0] == {"attention_head_dim": [2, 4]}
    (tmp_path / "config.json").write_text('{"downloads": 7}')
    assert config_files.find_options(tmp_path)[0] == {}


def test_values_that_a_precision_does_not_hold_are_refused():
    large = LazyTensor.of(np.float32([7e4, 1e-9, 1]))
    with pytest.raises(UserError, match="conv_in/kernel: 70000 is too large for float16"):
        parts._cast(large, np.dtype("float16"), "conv_in/kernel").read()
    assert parts._cast(large, np.dtype("float64"), "conv_in/kernel").read()[0] == 7e4


def test_new_motion_modules_change_nothing_at_first_and_depend_on_the_seed(
    stable_diffusion, tmp_path
):
    folder, models = stable_diffusion
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sd15(folder, tmp_path / name, motion="new", seed=seed, pose_guider="latent")
    a, b, c = (
        flatten_dict(load_model(tmp_path / name, components=["denoising_unet"])[1])
        for name in "abc"
    )
    config = read_config(tmp_path / "a")
    assert config.denoising_unet.motion == MotionConfig(heads=4)
    assert (config.pose_guider.variant, config.pose_guider.out_channels) == ("latent", 4)
    motion = [path for path in a if any(part.startswith("motion_modules") for part in path)]
    assert len(motion) == 13 * 28
    assert all(np.array_equal(a[path], b[path]) for path in a)
    kernels = [path for path in motion if path[-1] == "kernel" and path[-2] != "proj_out"]
    assert not any(np.array_equal(a[path], c[path]) for path in kernels)
    assert not any(a[path].any() for path in motion if path[-2:] == ("proj_out", "kernel"))
    tables = [path for path in motion if path[-1] == "pe"]
    assert len(tables) == 26 and all(a[p][0, 0, 1] == 1 and a[p][0, 0, 0] == 0 for p in tables)


def test_a_start_for_training_needs_networks_that_fit(stable_diffusion, tmp_path):
    folder, _ = stable_diffusion
    with pytest.raises(UserError, match="add --image-encoder hf:lambdalabs/sd-image-var"):
        sd15(folder / "unet", tmp_path / "m", vae=folder / "vae")
    with pytest.raises(UserError, match="add --vae"):
        sd15(folder / "unet", tmp_path / "m", image_encoder=folder / "image_encoder")
    wide = torch_image_encoder(ImageEncoderConfig(32, 64, 2, 4, 56, 14, projection_dim=48))
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(UserError, match="tokens of width 32, the image encoder: 48"):
        sd15(folder, tmp_path / "m", image_encoder=tmp_path / "wide")
    with pytest.raises(UserError, match="'latent', which takes no ControlNet"):
        sd15(folder, tmp_path / "m", pose_guider="latent", controlnet=folder)
    with pytest.raises(UserError, match="new motion modules: the number of motion heads, 3"):
        sd15(folder, tmp_path / "m", motion="new", motion_heads=3)
    assert not (tmp_path / "m").exists()
