"""Export is the way back: bit for bit, and into what PyTorch's libraries load."""

import dataclasses
import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
import transformers
from moore_layout import FILES, read_moore_file, write_moore_layout
from small_model import small_model

from animate_jax.config import PoseGuiderConfig, Preprocessing, tiny
from animate_jax.diffusion.schedule import NoiseSchedule
from animate_jax.errors import UserError, UserNote
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.weights.convert import convert_moore
from animate_jax.weights.export import export_moore
from animate_jax.weights.lazy_tensor import LazyTensor
from animate_jax.weights.model_directory import read_config, save_model
from animate_jax.weights.safetensors_writer import write_safetensors_file


@pytest.fixture(scope="module")
def exported(model_directory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "moore"
    export_moore(model_directory, folder)
    return folder


def assert_bit_equal(folder, state_dicts):
    for component in FILES:
        ours, theirs = read_moore_file(folder, component), state_dicts[component]
        assert set(ours) == set(theirs), component
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype, (component, name)
            assert torch.equal(ours[name], tensor), (component, name)


def test_float32_comes_back_bit_equal(exported, moore_layout):
    assert_bit_equal(exported, moore_layout.state_dicts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_bit_equal(dtype, tmp_path):
    layout = write_moore_layout(tmp_path / "a", tiny(), dtype, seed=7)
    convert_moore(tmp_path / "a", tmp_path / "m", motion_heads=4, progress=False)
    export_moore(tmp_path / "m", tmp_path / "b")
    assert_bit_equal(tmp_path / "b", layout.state_dicts)
    assert (
        layout.state_dicts["motion_module"][
            "mid_block.motion_modules.0.temporal_transformer"
            ".transformer_blocks.0.attention_blocks.1.pos_encoder.pe"
        ].dtype
        == dtype
    )


def test_pytorch_libraries_load_it_and_find_nothing_missing(exported, moore_layout):
    autoencoder, info = diffusers.AutoencoderKL.from_pretrained(
        exported / "sd-vae-ft-mse", output_loading_info=True
    )
    assert not any(info.values())
    assert autoencoder.config["scaling_factor"] == 0.18215
    encoder, info = transformers.CLIPVisionModelWithProjection.from_pretrained(
        exported / "image_encoder", output_loading_info=True
    )
    assert not any(info.values())
    for model, component in ((autoencoder, "autoencoder"), (encoder, "image_encoder")):
        theirs = moore_layout.state_dicts[component]
        assert all(torch.equal(t, theirs[n]) for n, t in model.state_dict().items())
    processor = transformers.CLIPImageProcessorPil.from_pretrained(exported / "image_encoder")
    assert processor.crop_size == {"height": 56, "width": 56}
    options = json.loads((exported / "stable-diffusion-v1-5/unet/config.json").read_text())
    unet = diffusers.UNet2DConditionModel.from_config(options)
    unet.load_state_dict(torch.load(exported / "denoising_unet.pth", weights_only=True))
    reference = torch.load(exported / "reference_unet.pth", weights_only=True)
    missing, surplus = unet.load_state_dict(reference, strict=False)
    assert {name.split(".")[0] for name in missing} == {"conv_norm_out", "conv_out"}
    assert not surplus


def test_converting_an_export_gives_the_same_model(exported, model_directory, tmp_path):
    convert_moore(exported, tmp_path / "again", progress=False)
    assert read_config(tmp_path / "again") == read_config(model_directory)


def test_what_the_files_have_no_place_for_is_noted_down(tmp_path):
    config = dataclasses.replace(
        tiny(), resolution=96, guidance=2.0, schedule=NoiseSchedule(steps_offset=0)
    )
    save_model(tmp_path / "m", config, AnimateAnyone(config).init(0).items())
    with pytest.warns(UserNote, match="beta_schedule is scaled_linear, not linear"):
        export_moore(tmp_path / "m", tmp_path / "out", progress=False)
    convert_moore(tmp_path / "out", tmp_path / "again", progress=False)
    assert read_config(tmp_path / "again") == config
    convert_moore(tmp_path / "out", tmp_path / "linear", betas="linear", progress=False)
    assert read_config(tmp_path / "linear").schedule.beta_schedule == "linear"


def test_what_pytorch_has_to_be_told(tmp_path):
    schedule = NoiseSchedule(
        beta_schedule="cosine",
        prediction="sample",
        zero_terminal_snr=False,
        timestep_spacing="leading",
        shared_noise=0.5,
    )
    encoder = dataclasses.replace(small_model().image_encoder, image_std=(0.5, 0.5, 0.5))
    config = dataclasses.replace(
        small_model(),
        schedule=schedule,
        image_encoder=encoder,
        preprocessing=Preprocessing(pose="bilinear"),
    )
    save_model(tmp_path / "m", config, AnimateAnyone(config).init(0).items())
    with pytest.warns(UserNote) as notes:
        export_moore(tmp_path / "m", tmp_path / "out", progress=False)
    told = [str(note.message).split(": ")[1].split(" (its ")[0] for note in notes]
    assert told == [
        "beta_schedule is squaredcos_cap_v2, not linear",
        "prediction_type is sample, not v_prediction",
        "rescale_betas_zero_snr is False, not True",
        "timestep_spacing is leading, not trailing",
        "the part of their noise that frames share is 0.5, not 0.0",
        "num_attention_heads of motion modules is 2, not 8",
        "temporal_position_encoding_max_len is 8, not 32",
        "norm_num_groups of motion modules is 4, not 32",
        "image_std of its CLIPImageProcessor is (0.5, 0.5, 0.5), not"
        " (0.26862954, 0.26130258, 0.27577711)",
        "resample of its cond_image_processor is bilinear, not lanczos",
    ]


def test_a_model_without_motion_has_no_motion_file(moore_layout, tmp_path):
    convert_moore(moore_layout.folder, tmp_path / "m", motion=False, progress=False)
    export_moore(tmp_path / "m", tmp_path / "out")
    assert not (tmp_path / "out" / "motion_module.pth").exists()
    ours = read_moore_file(tmp_path / "out", "denoising_unet")
    assert set(ours) == set(moore_layout.state_dicts["denoising_unet"])


def test_a_latent_pose_guider_cannot_be_exported(tmp_path):
    guider = PoseGuiderConfig("latent", (8, 8, 8, 8), 4)
    config = tiny().__class__(**vars(tiny()) | {"pose_guider": guider})
    save_model(tmp_path / "m", config, AnimateAnyone(config).init(0).items())
    with pytest.raises(UserError, match="pose guider is of the 'latent' kind"):
        export_moore(tmp_path / "m", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"positions": True}, {"reference": "added"}])
def test_what_the_reproductions_lack_cannot_be_exported(tmp_path, change):
    config = small_model()
    unet = dataclasses.replace(config.denoising_unet, **change)
    config = dataclasses.replace(config, denoising_unet=unet)
    save_model(tmp_path / "m", config, AnimateAnyone(config).init(0).items())
    with pytest.raises(UserError, match="after the paper can be exported"):
        export_moore(tmp_path / "m", tmp_path / "out")


def test_only_an_earlier_export_is_overwritten(exported, model_directory, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        export_moore(model_directory, exported)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is no earlier export"):
        export_moore(model_directory, tmp_path / "mine", overwrite=True)
    # The reproductions' folder of weights, which holds more than an export.
    shutil.copytree(exported, tmp_path / "theirs")
    (tmp_path / "theirs" / "DWPose").mkdir()
    (tmp_path / "theirs" / "DWPose" / "yolox_l.onnx").write_text("theirs")
    with pytest.raises(UserError, match="is no earlier export"):
        export_moore(model_directory, tmp_path / "theirs", overwrite=True)
    shutil.rmtree(tmp_path / "theirs" / "DWPose")
    (tmp_path / "theirs" / "image_encoder" / "config.json").unlink()  # downloaded without it
    with pytest.raises(UserError, match="is no earlier export"):
        export_moore(model_directory, tmp_path / "theirs", overwrite=True)
    with pytest.raises(UserError, match="there is no such model directory"):
        export_moore(tmp_path / "absent", tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mine", "theirs"]
    before = {file: file.stat().st_ino for file in exported.rglob("*.pth")}
    export_moore(model_directory, exported, overwrite=True)
    assert len(before) == 4 and all(file.stat().st_ino != i for file, i in before.items())


def test_safetensors_files_are_written_whole_or_not_at_all(tmp_path):
    def fails():
        raise UserError("the source is cut off")

    path, good = tmp_path / "w.safetensors", LazyTensor.of(np.ones(3, np.float32))
    broken = LazyTensor((3,), np.dtype(np.float32), fails)
    with pytest.raises(UserError, match="cut off"):
        write_safetensors_file(path, {"a": good, "b": broken})
    with pytest.raises(UserError, match="'c' has dtype int8"):
        write_safetensors_file(path, {"c": LazyTensor.of(np.ones(3, np.int8))})
    assert not list(tmp_path.iterdir())
