"""Pools with everything that a declaration may hold."""

from __future__ import annotations

from tests.operator.objects import World, model_deployment


def test_a_pool_with_resources_and_a_template_of_its_own_is_made() -> None:
    """Both hold dictionaries, which must not keep a plan from being made."""
    pool = {
        "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
        "podTemplate": {"spec": {"priorityClassName": "high"}},
    }
    world = World(model_deployment(pools={"prefill": {"shared": pool}, "decode": pool}))
    world.settle()
    template = world.deployment("demo-decode")["spec"]["template"]["spec"]
    assert template["priorityClassName"] == "high"
    assert template["containers"][0]["resources"]["requests"] == {"cpu": "1"}
