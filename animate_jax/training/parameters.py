"""Which parameters a stage learns, where all of them come from, and where they lie.

Learned and frozen parameters are two trees: gradients and optimizer state exist for the first only,
which is float32; the second is kept in the compute dtype.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from animate_jax.config import ModelConfig, UNetConfig
from animate_jax.errors import UserError
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.weights.model_directory import in_motion

Path = tuple[str, ...]


def unused(path: Path, config: ModelConfig) -> bool:
    """Whether no loss depends on the parameter.

    Softmax over a single image token is 1, so cross-attention has no use for queries and keys; of
    the ReferenceNet's last transformer nothing after its first norm is handed on; frame positions
    are a table; and a denoiser may have no use for a ReferenceNet.
    """
    if path[-1] == "pe":
        return True
    if path[0] == "reference_unet" and config.denoising_unet.reference == "none":
        return True
    if "transformer_blocks_0" in path and "motion_modules" not in "/".join(path):
        inside = path[path.index("transformer_blocks_0") + 1 :]
        if inside[0] == "norm2" or inside[:2] in (("attn2", "to_q"), ("attn2", "to_k")):
            return True
    last = _last_attention(config.reference_unet)
    if path[:3] == ("reference_unet", *last):
        return path[3] == "proj_out" or (path[3] == "transformer_blocks_0" and path[4] != "norm1")
    return False


def _last_attention(unet: UNetConfig) -> tuple[str, str]:
    """The last attention that runs: level and layer. The top level is the last up block."""
    level = next(i for i, attends in enumerate(unet.attention_levels) if attends)
    up_block = len(unet.block_out_channels) - 1 - level
    return f"up_blocks_{up_block}", f"attentions_{unet.layers_per_block}"


def learned_paths(
    shapes: dict, config: ModelConfig, learned: Sequence[str], frozen: Sequence[str] = ()
) -> frozenset[Path]:
    """The paths that a pattern of `learned` finds and none of `frozen`, without unused ones.

    Raises UserError where a pattern of `learned` finds nothing.
    """
    paths = {"/".join(path): path for path in flatten_dict(shapes)}
    for pattern in learned:
        if not any(re.search(pattern, name) for name in paths):
            raise UserError(f"config.learned: {pattern!r} matches no parameter of this model")
    return frozenset(
        path
        for name, path in paths.items()
        if any(re.search(pattern, name) for pattern in learned)
        and not any(re.search(pattern, name) for pattern in frozen)
        and not unused(path, config)
    )


def split(tree: dict, learned: frozenset[Path]) -> tuple[dict, dict]:
    """(learned, frozen) parts of a parameter tree."""
    leaves = flatten_dict(tree)
    parts = ({p: x for p, x in leaves.items() if (p in learned) is kind} for kind in (True, False))
    first, second = (unflatten_dict(part) for part in parts)
    return first, second


def merge(learned: dict, frozen: dict) -> dict:
    """The whole tree again."""
    return unflatten_dict(flatten_dict(frozen) | flatten_dict(learned))


def shapes_of(config: ModelConfig, components: Sequence[str]) -> dict:
    """{component: tree of float32 jax.ShapeDtypeStruct}."""
    model = AnimateAnyone(config)
    return {component: model.shapes(component) for component in components}


def without_motion(config: ModelConfig) -> ModelConfig:
    """The model of single pictures: its denoiser has no motion modules."""
    unet = dataclasses.replace(config.denoising_unet, motion=None)
    return dataclasses.replace(config, denoising_unet=unet)


def drop_motion(params: dict) -> dict:
    """The parameter tree without motion modules."""
    return unflatten_dict({p: x for p, x in flatten_dict(params).items() if not in_motion(p)})


def cast(tree: dict, dtype) -> dict:
    """Every array in `dtype`, where it lies."""
    return jax.tree.map(lambda x: x if x.dtype == dtype else x.astype(jnp.dtype(dtype)), tree)
