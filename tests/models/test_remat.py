"""What the backward pass computes again, by policy."""

import jax
import jax.numpy as jnp
import pytest

from animate_jax.models.attention import BoundLayer, SpatialTransformer
from animate_jax.models.unet import checkpoint_policy, rematerialised

KERNEL = 'kernel_name = "spatial_attention_forward"'


def attentions(policy):
    """How often a TPU's program for value and gradient attends in its forward pass."""
    block = rematerialised(SpatialTransformer, policy)(64, 2, 8, jnp.bfloat16)
    x = jax.ShapeDtypeStruct((1, 8, 16, 16, 64), jnp.bfloat16)
    bound = BoundLayer(cross_output=jnp.zeros((1, 1, 64), jnp.bfloat16))
    params = jax.eval_shape(block.init, jax.random.key(0), x, bound)

    def value(params, x):
        # Not linear, so that the result is wanted too.
        return jnp.square(block.apply(params, x, bound)[0].astype(jnp.float32)).sum()

    traced = jax.jit(jax.value_and_grad(value, argnums=(0, 1))).trace(params, x)
    return traced.lower(lowering_platforms=("tpu",)).as_text().count(KERNEL)


def test_attention_is_computed_again_unless_kept():
    assert {policy: attentions(policy) for policy in ("none", "attention", "full")} == {
        "none": 1,
        "attention": 1,
        "full": 2,
    }


def test_unknown_policies_are_refused():
    with pytest.raises(ValueError, match="choose one of"):
        checkpoint_policy("everything")
