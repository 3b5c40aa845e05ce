"""What the backward pass computes again, by policy."""

import jax
import jax.numpy as jnp
import pytest

from animate_jax.models.attention import BoundLayer, SpatialTransformer
from animate_jax.models.unet import checkpoint_policy, rematerialised

KERNELS = "spatial_attention_forward", "feed_forward"


def forward_kernels(policy):
    """How often a TPU's program for value and gradient attends and feeds forward."""
    block = rematerialised(SpatialTransformer, policy)(64, 2, 8, jnp.bfloat16)
    x = jax.ShapeDtypeStruct((1, 8, 16, 16, 64), jnp.bfloat16)
    bound = BoundLayer(cross_output=jnp.zeros((1, 1, 64), jnp.bfloat16))
    params = jax.eval_shape(block.init, jax.random.key(0), x, bound)

    def value(params, x):
        # Not linear, so that the result is wanted too.
        return jnp.square(block.apply(params, x, bound)[0].astype(jnp.float32)).sum()

    traced = jax.jit(jax.value_and_grad(value, argnums=(0, 1))).trace(params, x)
    program = traced.lower(lowering_platforms=("tpu",)).as_text()
    return tuple(program.count(f'kernel_name = "{kernel}"') for kernel in KERNELS)


def test_kernels_run_again_unless_their_results_are_kept():
    assert forward_kernels("full") == (2, 2)
    assert forward_kernels("attention") == (1, 2)
    assert forward_kernels("kernels") == forward_kernels("none") == (1, 1)


def test_unknown_policies_are_refused():
    with pytest.raises(ValueError, match="choose one of"):
        checkpoint_policy("everything")
