"""What the parity tests share: random PyTorch weights, their conversion, and the error measure."""

import numpy as np
import torch
from flax.traverse_util import unflatten_dict

from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.weights.mappings import check_names, from_torch, torch_shapes


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights everywhere, also where layers start at zero, of a size that keeps signals."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim > 1:
                p.normal_(0, p[0].numel() ** -0.5, generator=generator)
            else:
                p.normal_(1.0 if name.endswith("weight") else 0.0, 0.2, generator=generator)
    return module.eval()


def convert(model: AnimateAnyone, component: str, state_dict: dict) -> dict:
    """The component's parameter tree from a PyTorch state dict; every key must be used."""
    shapes = torch_shapes(model.shapes(component))
    check_names(state_dict, shapes, component)
    leaves = {}
    for name, (path, shape) in shapes.items():
        assert tuple(state_dict[name].shape) == shape, name
        leaves[path] = from_torch(path, state_dict[name].numpy())
    return unflatten_dict(leaves)


def relative_l2(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def channels_last(x: torch.Tensor) -> np.ndarray:
    """(B, C, ...) -> (B, ..., C)."""
    return np.moveaxis(x.detach().numpy(), 1, -1)


def convert_all(model: AnimateAnyone, state_dicts: dict) -> dict:
    """The whole parameter tree from the state dicts of torch_animate_anyone."""
    parts = dict(state_dicts)
    parts["denoising_unet"] = parts["denoising_unet"] | parts.pop("motion_module")
    return {component: convert(model, component, parts[component]) for component in parts}
