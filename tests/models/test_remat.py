"""What the backward pass computes again, by policy."""

import jax
import jax.numpy as jnp
import pytest

from animate_jax.config import UNetConfig
from animate_jax.models.attention import BoundLayer, SpatialTransformer
from animate_jax.models.layers import ResnetBlock
from animate_jax.models.unet import checkpoint_policy, rematerialised

KERNELS = "spatial_attention_forward", "feed_forward"


def lowered_gradient(block, x, *args):
    """A TPU's program for value and gradient, for parameters and `x`."""
    params = jax.eval_shape(block.init, jax.random.key(0), x, *args)

    def value(params, x):
        # Not linear, so that the result is wanted too.
        y = jax.tree.leaves(block.apply(params, x, *args))[0]
        return jnp.square(y.astype(jnp.float32)).sum()

    traced = jax.jit(jax.value_and_grad(value, argnums=(0, 1))).trace(params, x)
    return traced.lower(lowering_platforms=("tpu",)).as_text()


def forward_kernels(policy):
    """How often it attends and feeds forward."""
    config = UNetConfig(norm_groups=8)
    block = rematerialised(SpatialTransformer, policy)(64, 2, config, jnp.bfloat16)
    x = jax.ShapeDtypeStruct((1, 8, 16, 16, 64), jnp.bfloat16)
    bound = BoundLayer(cross_output=jnp.zeros((1, 1, 64), jnp.bfloat16))
    program = lowered_gradient(block, x, bound)
    return tuple(program.count(f'kernel_name = "{kernel}"') for kernel in KERNELS)


def test_kernels_run_again_unless_their_results_are_kept():
    assert forward_kernels("full") == (2, 2)
    assert forward_kernels("attention") == (1, 2)
    for policy in ("kernels", "convolutions", "none"):
        assert forward_kernels(policy) == (1, 1)


def convolutions(policy):
    block = rematerialised(ResnetBlock, policy)(64, 8, 1e-5, jnp.bfloat16)
    x = jax.ShapeDtypeStruct((1, 8, 16, 16, 64), jnp.bfloat16)
    return lowered_gradient(block, x).count("stablehlo.convolution")


def test_convolutions_run_again_unless_their_results_are_kept():
    # Two, and two for the gradient of each; of the second nothing but the result is wanted.
    assert convolutions("full") == convolutions("kernels") == 7
    assert convolutions("convolutions") == convolutions("none") == 6


def test_unknown_policies_are_refused():
    with pytest.raises(ValueError, match="choose one of"):
        checkpoint_policy("everything")
