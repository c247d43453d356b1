"""A ModelDeployment in the middle of a rollout, for the pure tests of what becomes of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.operator.objects import World, model_deployment
from twolane.operator.names import REVISION_LABEL
from twolane.operator.resources.shape import Json
from twolane.operator.scrape import Reading, Sample

PAIRS = {"prefill": {"shared": {"replicas": 2}}, "decode": {"replicas": 2}}


def settled(**spec: Any) -> World:
    """One revision of two workers a pool, or of the spec given, which serves."""
    world = World(model_deployment(**({"pools": PAIRS, "rollout": rollout()} | spec)))
    world.settle()
    return world


def rollout(**rollback: Any) -> Json:
    """Ten minutes for progress, one to prove itself."""
    return {"progressDeadlineSeconds": 600, "rollback": {"soakSeconds": 60} | rollback}


def change(world: World, image: str = "registry.example/twolane:2") -> tuple[str, str]:
    """Declares another image; returns the old revision and the new one."""
    old = world.md["status"]["revision"]
    world.md["spec"]["image"] = image
    world.md["metadata"]["generation"] += 1
    world.turn()
    return old, world.md["status"]["revision"]


def wait(world: World, seconds: float) -> None:
    """Time passes."""
    world.now += timedelta(seconds=seconds)


def counts(world: World, revision: str) -> dict[str, int]:
    """Pods asked for of a revision, by the names of its Deployments without it."""
    return {
        name.removesuffix(f"-{revision}"): child["spec"]["replicas"]
        for (kind, name), child in world.children.items()
        if kind == "Deployment" and child["metadata"]["labels"][REVISION_LABEL] == revision
    }


def report(world: World, revision: str, **outcomes: float) -> None:
    """What the routers of a revision say from now on."""
    samples = tuple(
        Sample("twolane_router_requests_total", {"outcome": outcome, "lane": "short"}, count)
        for outcome, count in outcomes.items()
    )
    names = [pod["metadata"]["name"] for pod in world.pods]
    for name in names:
        if name.startswith(f"demo-router-{revision}"):
            world.readings[name] = Reading(0.0, samples)
            samples = ()
