"""Pools that somebody besides the planner scales: what people are told about it."""

from __future__ import annotations

from tests.operator.objects import World, model_deployment


def test_the_condition_says_which_scaler_has_a_pool() -> None:
    """Without a planner too: who looks for the cause of a count looks there first."""
    world = World(model_deployment(model={"imagePath": "/m"}))
    world.settle()
    assert world.condition("ScalingActive")["reason"] == "ManualScale"
    owner = {"subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    for pool, manager in (("demo-prefill", "kube-controller-manager"), ("demo-decode", "keda")):
        world.children["WorkerPool", pool]["metadata"]["managedFields"] = [owner | {"manager": manager}]
    world.turn()
    condition = world.condition("ScalingActive")
    assert (condition["status"], condition["reason"]) == ("True", "OtherScaler")
    assert "prefill is scaled by a HorizontalPodAutoscaler" in condition["message"]
    assert "decode is scaled by keda" in condition["message"]
