"""Networks of diffusers by the names of single-file Stable Diffusion checkpoints."""

import re

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel


def single_file_unet_name(name: str, layers: int) -> str:
    """diffusers' name to the single file's, by counting layers in a row."""
    place = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if place:
        row, level, kind, layer, rest = place.groups()
        start = int(level) * (layers + 1)
        if row == "down":
            index, child = start + 1 + int(layer), {"resnets": "0", "attentions": "1"}.get(kind)
            if kind == "downsamplers":
                index, child, rest = start + 1 + layers, "0", rest.replace("conv", "op")
            name = f"input_blocks.{index}.{child}.{rest}"
        else:
            index, child = start + int(layer), {"resnets": "0", "attentions": "1"}.get(kind, "up")
            if kind == "upsamplers":
                index = start + layers
            name = f"output_blocks.{index}.{child}.{rest}"
    heads = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for new, old in heads.items():
        name = re.sub(rf"^{re.escape(new)}\.", f"{old}.", name)
    resnet = r"((?:input|output)_blocks\.\d+\.0|middle_block\.[02])\."
    for new, old in {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }.items():
        name = re.sub(rf"^{resnet}{new}\.", rf"\1.{old}.", name)
    return name


def single_file_unet(model: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    layers = model.config["layers_per_block"]
    state = {single_file_unet_name(n, layers): t for n, t in model.state_dict().items()}
    # An upsampler is the block's second or third part, after the attention if there is one.
    attended = {m[1] for n in state if (m := re.match(r"(output_blocks\.\d+)\.1\.norm\.", n))}
    for name in [n for n in state if ".up." in n]:
        child = 2 if name.split(".up.")[0] in attended else 1
        state[name.replace(".up.", f".{child}.")] = state.pop(name)
    return state


def single_file_autoencoder(model: AutoencoderKL) -> dict[str, torch.Tensor]:
    levels, state = len(model.config["block_out_channels"]), {}
    for name, tensor in model.state_dict().items():
        attention = ".attentions." in name
        for new, old in (
            (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
            (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
            (r"mid_block\.resnets\.0", "mid.block_1"),
            (r"mid_block\.resnets\.1", "mid.block_2"),
            (r"mid_block\.attentions\.0", "mid.attn_1"),
            (r"conv_norm_out", "norm_out"),
            (r"conv_shortcut", "nin_shortcut"),
        ):
            name = re.sub(new, old, name)
        if up := re.search(r"up_blocks\.(\d+)\.(resnets\.|upsamplers\.0)", name):
            kind = "block." if up[2] == "resnets." else "upsample"
            name = name.replace(up[0], f"up.{levels - 1 - int(up[1])}.{kind}")
        if attention:
            for new, old in {
                "group_norm": "norm",
                "to_q": "q",
                "to_k": "k",
                "to_v": "v",
                "to_out.0": "proj_out",
            }.items():
                name = name.replace(f"attn_1.{new}.", f"attn_1.{old}.")
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        state[name] = tensor
    return state
