"""Animate Anyone assembled from PyTorch pieces, the truth the Flax model is held to.

diffusers' UNets with attention processors and forward hooks, a motion module written here, and a
plain sampling loop.
"""

import math

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from parity import randomize
from torch import nn

from animate_jax.config import ModelConfig, UNetConfig


def torch_unet(config: UNetConfig) -> diffusers.UNet2DConditionModel:
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention_levels]
    return diffusers.UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=down,
        up_block_types=[d.replace("Down", "Up") for d in reversed(down)],
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.heads,
        cross_attention_dim=config.cross_attention_dim,
        norm_num_groups=config.norm_groups,
    )


def torch_autoencoder(config) -> diffusers.AutoencoderKL:
    count = len(config.block_out_channels)
    return diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * count,
        up_block_types=["UpDecoderBlock2D"] * count,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
        scaling_factor=config.scaling_factor,
    )


def torch_image_encoder(config) -> transformers.CLIPVisionModelWithProjection:
    return transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            projection_dim=config.projection_dim,
            hidden_act=config.activation,
        )
    )


class PositionalEncoding(nn.Module):
    def __init__(self, channels, length):
        super().__init__()
        angles = torch.arange(length)[:, None] * torch.exp(
            torch.arange(0, channels, 2) * (-math.log(10000.0) / channels)
        )
        table = torch.stack([angles.sin(), angles.cos()], -1).reshape(1, length, channels)
        self.register_buffer("pe", table)


class TemporalSelfAttention(nn.Module):
    def __init__(self, channels, heads, length):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels, False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.pos_encoder = PositionalEncoding(channels, length)

    def forward(self, x):  # (sequences, frames, channels)
        x = x + self.pos_encoder.pe[:, : x.shape[1]]
        q, k, v = (
            to(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for to in (self.to_q, self.to_k, self.to_v)
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * width)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels):
        super().__init__()
        width = 4 * channels
        self.net = nn.ModuleList(
            [GEGLU(channels, width), nn.Identity(), nn.Linear(width, channels)]
        )

    def forward(self, x):
        return self.net[2](self.net[0](x))


class TemporalTransformerBlock(nn.Module):
    def __init__(self, channels, heads, length):
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            [TemporalSelfAttention(channels, heads, length) for _ in range(2)]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(2)])
        self.ff = FeedForward(channels)
        self.ff_norm = nn.LayerNorm(channels)

    def forward(self, x):
        for attend, norm in zip(self.attention_blocks, self.norms):
            x = x + attend(norm(x))
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    def __init__(self, channels, heads, length, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TemporalTransformerBlock(channels, heads, length)])
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x, frames):  # (batch * frames, channels, h, w), each frame normed by itself
        rows, channels, h, w = x.shape
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (b f) (h w) c
        tokens = tokens.unflatten(0, (-1, frames)).transpose(1, 2)  # b (h w) f c
        shape = tokens.shape
        tokens = self.transformer_blocks[0](tokens.flatten(0, 1)).reshape(shape)
        tokens = self.proj_out(tokens.transpose(1, 2).flatten(0, 1))
        return x + tokens.transpose(1, 2).reshape(rows, channels, h, w)


class MotionModule(nn.Module):
    def __init__(self, channels, config):
        super().__init__()
        self.temporal_transformer = TemporalTransformer(
            channels, config.heads, config.max_frames, config.norm_groups
        )

    def forward(self, x, frames):
        return self.temporal_transformer(x, frames)


class Level(nn.Module):
    def __init__(self, channels, count, config):
        super().__init__()
        self.motion_modules = nn.ModuleList([MotionModule(channels, config) for _ in range(count)])


class Motion(nn.Module):
    """All motion modules, named as in the released file."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        layers, widths, motion = config.layers_per_block, config.block_out_channels, config.motion
        self.down_blocks = nn.ModuleList([Level(c, layers, motion) for c in widths])
        self.up_blocks = nn.ModuleList([Level(c, layers + 1, motion) for c in widths[::-1]])
        self.mid_block = Level(widths[-1], 1, motion)


class ReferenceProcessor:
    """Self-attention that writes its tokens to `bank[path]`, or reads the reference's from it."""

    def __init__(self, path, state):
        self.path, self.state = path, state

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        tokens, state = hidden_states, self.state
        if state["mode"] == "write":
            state["bank"][self.path] = tokens
            keys = tokens
        else:
            reference = state["bank"].get(self.path)
            if reference is None:
                keys = tokens
            else:  # (rows with a reference) repeated over frames, after the rows without
                reference = reference.repeat_interleave(state["frames"], 0)
                alone = tokens.shape[0] - reference.shape[0]
                with_reference = torch.cat([tokens[alone:], reference], 1)
                out = self.attend(attn, tokens[alone:], with_reference)
                if alone:
                    out = torch.cat([self.attend(attn, tokens[:alone], tokens[:alone]), out])
                return out
        return self.attend(attn, tokens, keys)

    def attend(self, attn, queries, keys):
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(queries), attn.to_k(keys), attn.to_v(keys))
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


class TorchAnimateAnyone:
    """The whole model with random weights; `config` as in the package."""

    def __init__(self, config: ModelConfig, seed=0):
        self.config = config
        self.denoising_unet = randomize(torch_unet(config.denoising_unet), seed)
        self.reference_unet = randomize(torch_unet(config.reference_unet), seed + 1)
        self.motion = randomize(Motion(config.denoising_unet), seed + 2)
        pose = config.pose_guider
        self.pose_guider = randomize(
            ControlNetConditioningEmbedding(pose.out_channels, 3, pose.channels), seed + 3
        )
        self.autoencoder = randomize(torch_autoencoder(config.autoencoder), seed + 4)
        self.image_encoder = randomize(torch_image_encoder(config.image_encoder), seed + 5)
        self.state = {"mode": "read", "bank": {}, "frames": 1}
        self.pose_features = None
        self.use_motion = True
        for unet in (self.denoising_unet, self.reference_unet):
            for name, module in unet.named_modules():
                if name.endswith("attn1"):
                    path = name.removesuffix(".transformer_blocks.0.attn1")
                    module.set_processor(ReferenceProcessor(path, self.state))
        self._hook_motion()
        self.denoising_unet.conv_in.register_forward_hook(self._add_pose)

    def _hook_motion(self):
        unet = self.denoising_unet
        pairs = [(unet.mid_block.attentions, self.motion.mid_block.motion_modules)]
        for ours, theirs in (
            (self.motion.down_blocks, unet.down_blocks),
            (self.motion.up_blocks, unet.up_blocks),
        ):
            for motion, block in zip(ours, theirs):
                attentions = getattr(block, "attentions", None)
                pairs.append((attentions or block.resnets, motion.motion_modules))
        for layers, modules in pairs:
            for layer, module in zip(layers, modules, strict=True):
                layer.register_forward_hook(self._after(module))

    def _after(self, module):
        def hook(layer, inputs, output):
            if not self.use_motion:
                return output
            if torch.is_tensor(output):
                return module(output, self.state["frames"])
            return (module(output[0], self.state["frames"]), *output[1:])

        return hook

    def _add_pose(self, layer, inputs, output):
        return output if self.pose_features is None else output + self.pose_features

    def state_dicts(self):
        """One state dict per released file or folder."""
        reference = self.reference_unet.state_dict()
        return {
            "denoising_unet": self.denoising_unet.state_dict(),
            "reference_unet": {
                k: v
                for k, v in reference.items()
                if not k.startswith(("conv_norm_out", "conv_out"))
            },
            "motion_module": self.motion.state_dict(),
            "pose_guider": self.pose_guider.state_dict(),
            "autoencoder": self.autoencoder.state_dict(),
            "image_encoder": self.image_encoder.state_dict(),
        }

    @torch.no_grad()
    def write_reference(self, latents, tokens):
        """Features of the reference by layer path; latents (B, 4, h, w), tokens (B, T, E)."""
        self.state.update(mode="write", bank={}, frames=1)
        self.reference_unet(latents, torch.zeros(latents.shape[0]), tokens)
        self.state["mode"] = "read"
        return self.state["bank"]

    @torch.no_grad()
    def denoise(self, latents, t, tokens, pose=None):
        """latents (B, F, 4, h, w), tokens (B, T, E), pose (B, F, C, h, w) -> like latents."""
        batch, frames = latents.shape[:2]
        self.state["frames"] = frames
        self.pose_features = None if pose is None else pose.flatten(0, 1)
        tokens = tokens.repeat_interleave(frames, 0)
        out = self.denoising_unet(latents.flatten(0, 1), t, tokens).sample
        return out.unflatten(0, (batch, frames))

    @torch.no_grad()
    def animate(self, reference, skeletons, noise, scheduler, steps, guidance, windows=None):
        """reference: PIL picture; skeletons (F, 3, H, W) in [0, 1]; noise (F, 4, h, w);
        windows: lists of frames, whose predictions are averaged flat; one of all by default.

        Returns frames (F, H, W, 3) in [0, 1], as the public reproduction computes them.
        """
        height, width = skeletons.shape[-2:]
        size = self.config.image_encoder.image_size
        processor = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )
        pixels = processor.preprocess(reference.resize((size, size)), return_tensors="pt")
        tokens = self.image_encoder(pixels.pixel_values).image_embeds[:, None]

        picture = diffusers.image_processor.VaeImageProcessor(do_convert_rgb=True)
        picture = picture.preprocess(reference, height=height, width=width)
        latents = self.autoencoder.encode(picture).latent_dist.mean * 0.18215
        self.write_reference(latents, tokens)

        pose = self.pose_guider(skeletons)[None].repeat(2, 1, 1, 1, 1)
        tokens = torch.cat([torch.zeros_like(tokens), tokens])
        scheduler.set_timesteps(steps)
        x = noise[None]
        for t in scheduler.timesteps:
            out, count = torch.zeros_like(x.repeat(2, 1, 1, 1, 1)), torch.zeros(x.shape[1])
            for window in windows or [list(range(len(noise)))]:
                part = x[:, window].repeat(2, 1, 1, 1, 1)
                out[:, window] += self.denoise(part, t, tokens, pose[:, window])
                count[window] += 1
            out = out / count[:, None, None, None]
            unconditional, conditional = out.chunk(2)
            out = unconditional + guidance * (conditional - unconditional)
            x = scheduler.step(out, t, x).prev_sample
        frames = self.autoencoder.decode(x[0] / 0.18215).sample
        return np.moveaxis((frames / 2 + 0.5).clamp(0, 1).numpy(), 1, -1)
