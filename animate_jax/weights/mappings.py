"""Parameter paths of this package and the names that PyTorch files give the same tensors.

The trees are built parallel to the PyTorch modules, so one rule serves all: a path such as
`down_blocks_0/attentions_1/proj_in/kernel` is `down_blocks.0.attentions.1.proj_in.weight`, with the
axes of kernels moved: convolutions from (out, in, height, width) to (height, width, in, out),
linear layers from (out, in) to (in, out).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict

from animate_jax.errors import UserError

_IN_LISTS = re.compile(
    r"(down_blocks|up_blocks|resnets|attentions|motion_modules|downsamplers|upsamplers"
    r"|transformer_blocks|attention_blocks|norms|to_out|net|layers|blocks|conv_layers)_(\d+)"
)
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def torch_name(path: tuple[str, ...]) -> str:
    """The PyTorch name of a parameter path."""
    names = [_IN_LISTS.sub(r"\1.\2", name) if _IN_LISTS.fullmatch(name) else name for name in path]
    return ".".join([*names[:-1], _LEAVES.get(names[-1], names[-1])])


def to_torch(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """A parameter with its axes in PyTorch's order."""
    if path[-1] != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def from_torch(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """A PyTorch tensor with its axes in our order, contiguous."""
    if path[-1] == "kernel":
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return np.ascontiguousarray(array)


def torch_shapes(tree: Mapping) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """{PyTorch name: (path, PyTorch shape)} of a tree of arrays or of their shapes."""
    shapes = {}
    for path, leaf in flatten_dict(tree).items():
        shape = tuple(leaf.shape)
        if path[-1] == "kernel":
            shape = (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]
        shapes[torch_name(path)] = path, shape
    return shapes


def check_names(found: Mapping, expected: Mapping, what: str) -> None:
    """Raises UserError unless both have the same keys."""
    for kind, names in (("missing", expected.keys() - found), ("surplus", found.keys() - expected)):
        if names:
            raise UserError(
                f"{what}: {len(names)} {kind} key(s), first {min(names)!r}; "
                "is it from another architecture?"
            )
