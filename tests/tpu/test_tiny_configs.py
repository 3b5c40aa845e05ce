"""The bundled model's stages compile for real TPUs, and stay within a budget of memory."""

import pytest
from test_plan import compiled

GIB = 2**30


@pytest.mark.parametrize("topology", ["v5e:1x1", "v6e:1x1"])
@pytest.mark.parametrize("config, budget", [("tiny_stage1", 3 * GIB), ("tiny_stage2", 3 * GIB)])
def test_it_fits_its_budget(config, budget, topology):
    plan = compiled(f"configs/{config}.py", topology)
    assert plan["fits"] and plan["devices"] == 1
    assert plan["parameters"] + plan["optimizer"] < plan["needed"] < budget
    assert plan["flops"] > 1e10 and plan["seconds"] > 0
