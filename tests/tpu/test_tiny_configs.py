"""The bundled model's stages, compiled for one chip as they would be trained there."""

import pytest
from compile_for_tpu import compiled

BUDGET = 2**30  # bytes that such a small model should not need


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, topology", [("tiny_stage1.py", "v5e:1x1"), ("tiny_stage2.py", "v6e:1x1")]
)
def test_tiny_configs_fit(config, topology):
    plan = compiled(f"configs/{config}", topology, "dtype=bfloat16")
    assert plan["fits"] and plan["parameters"] + plan["optimizer"] < plan["needed"] < BUDGET
    assert plan["flops"] > 1e11 and 0 < plan["seconds"] < 0.1
    assert not plan["messages"] and "picture_sums" in plan["kernels"]
