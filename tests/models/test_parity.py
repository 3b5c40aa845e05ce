"""UNet, autoencoder, image encoder and pose guider equal diffusers and transformers in float32."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from parity import channels_last, convert, randomize, relative_l2
from torch_animate_anyone import torch_autoencoder, torch_image_encoder, torch_unet

from animate_jax.config import ModelConfig, PoseGuiderConfig, sd15, tiny
from animate_jax.models.animate_anyone import AnimateAnyone

BOUND = 1e-5


def picture_unet(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(
        config, denoising_unet=dataclasses.replace(config.denoising_unet, motion=None)
    )


def unet_error(config, size, tokens, batch=2):
    model = AnimateAnyone(picture_unet(config))
    theirs = randomize(torch_unet(config.denoising_unet))
    params = {"denoising_unet": convert(model, "denoising_unet", theirs.state_dict())}
    torch.manual_seed(1)
    x = torch.randn(batch, 4, *size)
    t = torch.tensor([999, 41, 500][:batch])
    context = torch.randn(batch, tokens, config.denoising_unet.cross_attention_dim)
    with torch.no_grad():
        expected = theirs(x, t, context).sample

    @jax.jit
    def ours(params, x, t, context):
        return model.denoise(params, x, t, model.bind(params, context))

    out = ours(params, channels_last(x)[:, None], t.numpy(), context.numpy())
    return relative_l2(out[:, 0], channels_last(expected))


@pytest.mark.parametrize(
    "size, tokens", [((8, 8), 1), ((8, 16), 5), ((10, 7), 3)], ids=["one", "many", "odd"]
)
def test_unet(size, tokens):
    assert unet_error(tiny(), size, tokens) <= BOUND


@pytest.mark.slow
def test_full_size_unet():
    assert unet_error(sd15(), (64, 64), 1, batch=1) <= BOUND


def test_unet_with_two_layers_and_other_heads():
    config = tiny()
    unet = dataclasses.replace(
        config.denoising_unet,
        layers_per_block=2,
        block_out_channels=(32, 64, 96),
        attention_levels=(False, True, True),
        heads=(2, 4, 8),
        norm_groups=16,
    )
    assert unet_error(dataclasses.replace(config, denoising_unet=unet), (12, 8), 2) <= BOUND


def test_autoencoder_both_ways():
    model = AnimateAnyone(tiny())
    theirs = randomize(torch_autoencoder(model.config.autoencoder))
    params = {"autoencoder": convert(model, "autoencoder", theirs.state_dict())}
    torch.manual_seed(1)
    pictures, latents = torch.rand(2, 3, 48, 64) * 2 - 1, torch.randn(2, 4, 6, 8)
    with torch.no_grad():
        posterior = theirs.encode(pictures).latent_dist
        decoded = theirs.decode(latents).sample
    mean, log_variance = model._apply(
        "autoencoder", params, channels_last(pictures), method="encode"
    )
    assert relative_l2(mean, channels_last(posterior.mean)) <= BOUND
    assert relative_l2(log_variance, channels_last(posterior.logvar)) <= BOUND
    ours = model._apply("autoencoder", params, channels_last(latents), method="decode")
    assert relative_l2(ours, channels_last(decoded)) <= BOUND
    scaled = model.encode_latents(params, channels_last(pictures))
    np.testing.assert_allclose(scaled, mean * 0.18215, rtol=1e-6)
    finished = model.decode_latents(params, channels_last(latents) * 0.18215)
    expected = channels_last((decoded / 2 + 0.5).clamp(0, 1))
    np.testing.assert_allclose(finished, expected, atol=1e-5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_image_encoder(activation):
    config = dataclasses.replace(tiny().image_encoder, activation=activation)
    model = AnimateAnyone(dataclasses.replace(tiny(), image_encoder=config))
    theirs = randomize(torch_image_encoder(config))
    params = {"image_encoder": convert(model, "image_encoder", theirs.state_dict())}
    torch.manual_seed(1)
    pixels = torch.randn(3, 3, config.image_size, config.image_size)
    with torch.no_grad():
        expected = theirs(pixels).image_embeds
    ours = model.encode_image(params, channels_last(pixels))
    assert relative_l2(ours[:, 0], expected) <= BOUND


def test_feature_pose_guider_is_the_controlnet_embedding():
    config = tiny().pose_guider
    model = AnimateAnyone(tiny())
    theirs = randomize(
        ControlNetConditioningEmbedding(config.out_channels, 3, block_out_channels=config.channels)
    )
    params = {"pose_guider": convert(model, "pose_guider", theirs.state_dict())}
    torch.manual_seed(1)
    skeletons = torch.rand(5, 3, 40, 64)
    with torch.no_grad():
        expected = theirs(skeletons)
    ours = model.encode_pose(params, channels_last(skeletons)[None])
    assert ours.shape == (1, 5, 5, 8, config.out_channels)
    assert relative_l2(ours[0], channels_last(expected)) <= BOUND


def test_latent_pose_guider_meets_the_latents():
    config = dataclasses.replace(
        tiny(), pose_guider=PoseGuiderConfig("latent", (16, 32, 64, 128), 4)
    )
    model = AnimateAnyone(config)
    params = model.init(0, ("pose_guider",))
    kernels = params["pose_guider"]
    assert [kernels[f"conv_layers_{i}"]["kernel"].shape for i in range(4)] == [
        (4, 4, 3, 16), (4, 4, 16, 32), (4, 4, 32, 64), (4, 4, 64, 128)
    ]  # fmt: skip
    skeletons = jax.random.uniform(jax.random.key(1), (1, 2, 40, 64, 3))
    features = model.encode_pose(params, skeletons)
    assert features.shape == (1, 2, 5, 8, 4)
    assert not features.any()  # the projection starts at zero
    assert kernels["final_proj"]["kernel"].shape == (1, 1, 128, 4)
    assert 0.019 < np.std(kernels["conv_layers_3"]["kernel"]) < 0.021
