"""Tensor names of other programs, turned into the names used here.

Stable Diffusion 1.x was released as a single file whose UNet and autoencoder number their layers
in a row (`input_blocks.4.1...`); diffusers names them by level (`down_blocks.1.attentions.0...`).
How many levels there are, how long each is and which have attention follows from the names
themselves. Motion modules use AnimateDiff's names here; diffusers' MotionAdapter has its own.

All functions take and return dictionaries from names to LazyTensors, and raise UserError where
something that should be there is not, or something is there that should not be.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from itertools import count

from animate_jax.errors import UserError, UserNote
from animate_jax.weights.lazy_tensor import LazyTensor

StateDict = dict[str, LazyTensor]

_UNET = "model.diffusion_model."
_AUTOENCODER = "first_stage_model."
_HINT_PREFIXES = ("control_model.input_hint_block.", "input_hint_block.")
_EMBEDDING_PREFIXES = ("controlnet_cond_embedding.", "")

_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_UNET_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_AUTOENCODER_PARTS = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
    "norm_out": "conv_norm_out",
}
_AUTOENCODER_RESNET = {"nin_shortcut": "conv_shortcut"}
_SINGLE_FILE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_MOTION_PARTS = {
    "attn1": "attention_blocks.0",
    "attn2": "attention_blocks.1",
    "norm1": "norms.0",
    "norm2": "norms.1",
    "norm3": "ff_norm",
}


def split_single_file(
    tensors: Mapping[str, LazyTensor], autoencoder: bool = True
) -> dict[str, StateDict]:
    """The UNet ("unet") and autoencoder ("vae") of a single-file checkpoint, by diffusers' names.

    A part that the file does not hold, or an autoencoder that is not wanted, is absent. The text
    encoder, averaged copies of the weights and the noise schedule are left out.
    """
    unet, vae = _below(_UNET, tensors), _below(_AUTOENCODER, tensors)
    parts = {"unet": unet and rename_unet(unet)}
    parts["vae"] = autoencoder and vae and rename_autoencoder(vae)
    return {name: part for name, part in parts.items() if part}


def rename_unet(tensors: Mapping[str, LazyTensor]) -> StateDict:
    """A UNet by diffusers' names, from the single-file layout (without prefix) or diffusers' own.

    Raises UserError for names that Stable Diffusion 1.x does not have.
    """
    if "input_blocks.0.0.weight" not in tensors:
        return dict(tensors)
    modules = {**_UNET_ENDS, **_down_modules(tensors), **_up_modules(tensors)}
    return {_rename(name, modules, _UNET_RESNET, "UNet"): t for name, t in tensors.items()}


def rename_autoencoder(tensors: Mapping[str, LazyTensor]) -> StateDict:
    """An AutoencoderKL by diffusers' current names.

    Takes the single-file layout (without prefix; what training left, its `loss.` weights and the
    counters `model_ema.`, is dropped) and diffusers' own with current or old attention names.
    Attention projections come out as matrices (out, in) also where they are stored as 1x1
    convolutions.
    """
    if "encoder.down.0.block.0.norm1.weight" in tensors:
        left = "loss.", "model_ema."
        tensors = {name: t for name, t in tensors.items() if not name.startswith(left)}
        modules = _autoencoder_modules(tensors)
        tensors = {
            _rename(name, modules, _AUTOENCODER_RESNET, "autoencoder"): tensor
            for name, tensor in tensors.items()
        }
    return dict(_modern_attention(name, tensor) for name, tensor in tensors.items())


def pose_guider_from_controlnet(tensors: Mapping[str, LazyTensor]) -> StateDict:
    """The embedding of a ControlNet's picture as `conv_in`, `blocks.0`.. and `conv_out`.

    Takes the original layout (`control_model.input_hint_block.{0,2,...}`: convolutions, with the
    activations between them counted) and diffusers' (`controlnet_cond_embedding.*`).
    """
    for prefix in _HINT_PREFIXES:
        if hint := _below(prefix, tensors):
            return _rename_hint(hint)
    for prefix in _EMBEDDING_PREFIXES:
        found = _below(prefix, tensors)
        found = {n: t for n, t in found.items() if re.match(r"(conv_in|blocks\.\d+|conv_out)\.", n)}
        if "blocks.0.weight" in found:
            return found
    raise UserError("the checkpoint is no ControlNet: it has no embedding of its picture")


def rename_motion_modules(tensors: Mapping[str, LazyTensor]) -> StateDict:
    """The motion modules of a checkpoint by AnimateDiff's names; all else is left out, with a note.

    Takes AnimateDiff's files (with or without a leading `module.`, also those that hold a whole
    UNet) and diffusers' MotionAdapter, whose one table of positions serves both attentions here.
    """
    motion = {n.removeprefix("module."): t for n, t in tensors.items() if ".motion_modules." in n}
    if not motion:
        raise UserError("the checkpoint holds no motion modules (no name has .motion_modules.)")
    if others := [name for name in tensors if ".motion_modules." not in name]:
        note = f"{len(others)} tensors are of no motion module and left out, such as {others[0]}"
        warnings.warn(note, UserNote, stacklevel=2)
    result = {}
    for name, tensor in motion.items():
        for new_name in _motion_names(name):
            result[new_name] = tensor
    return result


def _below(prefix: str, tensors: Mapping[str, LazyTensor]) -> StateDict:
    return {n[len(prefix) :]: tensor for n, tensor in tensors.items() if n.startswith(prefix)}


def _children(prefix: str, names: Iterable[str]) -> set[str]:
    """The next part of every dotted name under a prefix."""
    return {n[len(prefix) :].split(".")[0] for n in names if n.startswith(prefix)}


def _rename(name: str, modules: Mapping[str, str], inner: Mapping[str, str], what: str) -> str:
    """Replace the module a name begins with and, in a resnet, the layer inside it."""
    for module, new_module in modules.items():
        if name.startswith(f"{module}."):
            rest = name[len(module) + 1 :]
            if ".resnets." in new_module:
                layer, _, kind = rest.rpartition(".")
                rest = f"{inner.get(layer, layer)}.{kind}"
            return f"{new_module}.{rest}"
    raise UserError(f"the {what} has the name {name!r}, unknown in Stable Diffusion 1.x")


def _down_modules(names: Iterable[str]) -> dict[str, str]:
    """Modules of `input_blocks`: resnets of one level up to the block that only halves the size."""
    modules, level, layer = {}, 0, 0
    for index in count(1):
        block = f"input_blocks.{index}"
        children = _children(f"{block}.", names)
        if not children:
            return modules
        if "op" in _children(f"{block}.0.", names):
            modules[f"{block}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            level, layer = level + 1, 0
            continue
        modules[f"{block}.0"] = f"down_blocks.{level}.resnets.{layer}"
        if "1" in children:
            modules[f"{block}.1"] = f"down_blocks.{level}.attentions.{layer}"
        layer += 1


def _up_modules(names: Iterable[str]) -> dict[str, str]:
    """Modules of `output_blocks`: a level ends with the block that also doubles the size."""
    modules, level, layer = {}, 0, 0
    for index in count(0):
        block = f"output_blocks.{index}"
        children = _children(f"{block}.", names)
        if not children:
            return modules
        modules[f"{block}.0"] = f"up_blocks.{level}.resnets.{layer}"
        layer += 1
        for child in sorted(children - {"0"}):
            if "conv" in _children(f"{block}.{child}.", names):
                modules[f"{block}.{child}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
                level, layer = level + 1, 0
            else:
                modules[f"{block}.{child}"] = f"up_blocks.{level}.attentions.{layer - 1}"


def _autoencoder_modules(names: Iterable[str]) -> dict[str, str]:
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half, row, new_row, resize in (
        ("encoder", "down", "down_blocks", "downsample"),
        ("decoder", "up", "up_blocks", "upsample"),
    ):
        modules |= {f"{half}.conv_in": f"{half}.conv_in", f"{half}.conv_out": f"{half}.conv_out"}
        modules |= {f"{half}.{old}": f"{half}.{new}" for old, new in _AUTOENCODER_PARTS.items()}
        levels = {level for level in _children(f"{half}.{row}.", names) if level.isdecimal()}
        for level in levels:
            # The single file counts the decoder's levels by resolution, from the finest.
            new_level = int(level) if row == "down" else len(levels) - 1 - int(level)
            old, new = f"{half}.{row}.{level}", f"{half}.{new_row}.{new_level}"
            modules[f"{old}.{resize}.conv"] = f"{new}.{resize}rs.0.conv"
            for layer in _children(f"{old}.block.", names):
                modules[f"{old}.block.{layer}"] = f"{new}.resnets.{layer}"
    return modules


def _modern_attention(name: str, tensor: LazyTensor) -> tuple[str, LazyTensor]:
    if not (match := re.fullmatch(r"(.+\.attentions\.\d+)\.(.+)\.(weight|bias)", name)):
        return name, tensor
    layer = match[2]
    layer = _OLD_ATTENTION.get(layer, _SINGLE_FILE_ATTENTION.get(layer, layer))
    if layer.startswith("to_") and len(tensor.shape) > 2:
        if tensor.shape[2:] not in ((1,), (1, 1)):
            raise UserError(f"{name!r} of the autoencoder is no 1x1 convolution: {tensor.shape}")
        tensor = tensor.reshape(tensor.shape[:2])
    return f"{match[1]}.{layer}.{match[3]}", tensor


def _rename_hint(hint: StateDict) -> StateDict:
    indices = sorted(filter(str.isdecimal, _children("", hint)), key=int)
    modules = {index: f"blocks.{place}" for place, index in enumerate(indices, start=-1)}
    modules |= {index: "conv_out" for index in indices[-1:]}
    modules |= {index: "conv_in" for index in indices[:1]}
    return {_rename(name, modules, {}, "embedding of a ControlNet"): t for name, t in hint.items()}


def _motion_names(name: str) -> list[str]:
    """AnimateDiff's names of a tensor: two for MotionAdapter's positions, else one."""
    if ".temporal_transformer." in name:
        return [name]
    module, _, rest = name.partition(".motion_modules.")
    number, _, rest = rest.partition(".")
    prefix = f"{module}.motion_modules.{number}.temporal_transformer."
    if match := re.fullmatch(r"(transformer_blocks\.\d+)\.pos_embed\.pe", rest):
        blocks = f"{prefix}{match[1]}.attention_blocks"
        return [f"{blocks}.{attention}.pos_encoder.pe" for attention in (0, 1)]
    match = re.fullmatch(r"(transformer_blocks\.\d+)\.(\w+)\.(.+)", rest)
    if match:
        rest = f"{match[1]}.{_MOTION_PARTS.get(match[2], match[2])}.{match[3]}"
    return [prefix + rest]
