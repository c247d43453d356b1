"""A whole look: objects from an API server, numbers from running routers, and the plan that follows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from aiohttp import web

from tests.operator.objects import IMAGE, World, model_deployment
from twolane.operator.actions import WriteStatus
from twolane.operator.cluster import Cluster
from twolane.operator.names import REVISION_LABEL
from twolane.operator.observe import observe
from twolane.operator.plan import plan
from twolane.operator.resources.shape import Json
from twolane.operator.scrape import Scraper


class _Reader:
    """Reads a world as the operator's client reads a cluster."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def get(self, kind: str, namespace: str, name: str) -> Json | None:
        """The ModelDeployment, if it is the one asked for."""
        del kind, namespace
        return self._world.observe().model_deployment if name == "demo" else None

    async def list(self, kind: str, namespace: str, selector: str = "") -> list[Json]:
        """Everything of a kind."""
        del namespace, selector
        seen = self._world.observe()
        if kind == "Pod":
            return list(seen.pods)
        return [child for (found, _), child in seen.children.items() if found == kind]


@pytest.fixture
async def routers() -> AsyncIterator[tuple[int, dict[str, str]]]:
    """A server that plays routers: its port, and the text of its metrics."""
    said = {"text": ""}

    async def answer(request: web.Request) -> web.Response:
        del request
        return web.Response(text=said["text"])

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1], said
    await runner.cleanup()


def _rolling() -> tuple[World, str]:
    """A world in the middle of a rollout whose new revision serves, and its name."""
    pools: Any = {"mixed": {"replicas": 1}}
    world = World(model_deployment(pools=pools, rollout={"rollback": {"soakSeconds": 600}}))
    world.settle()
    world.md["spec"]["image"] = "registry.example/twolane:2"
    for _ in range(6):
        world.turn()
        world.follow()
    return world, world.md["status"]["revision"]


@pytest.mark.parametrize(("failed", "reason"), [(30, "RolledBack"), (0, "Soaking")])
async def test_errors_that_new_routers_report_over_http_end_a_rollout(
    routers: tuple[int, dict[str, str]], failed: int, reason: str
) -> None:
    """From the text of a metric to the condition; the old routers' numbers do not count."""
    port, said = routers
    world, new = _rolling()
    for pod in world.pods:
        name, ports = pod["metadata"]["name"], [{"name": "http", "containerPort": port}]
        if name.startswith("demo-router") and pod["metadata"]["labels"][REVISION_LABEL] == new:
            pod["spec"] = {"containers": [{"name": "twolane", "ports": ports}]}
            pod["status"]["podIP"] = "127.0.0.1"
    said["text"] = (
        'twolane_router_requests_total{outcome="ok",lane="short"} 100\n'
        f'twolane_router_requests_total{{outcome="internal",lane="short"}} {failed}\n'
    )
    scraper = Scraper()
    observed = await observe(cast(Cluster, _Reader(world)), scraper, "team", "demo")
    await scraper.close()
    assert observed is not None
    assert len(observed.readings) >= 1
    written = [action for action in plan(observed, IMAGE).actions if isinstance(action, WriteStatus)]
    status = next((action.status for action in written if action.name == "demo"), world.md["status"])
    conditions = {item["type"]: item["reason"] for item in status["conditions"]}
    assert conditions["RolloutComplete"] == reason


async def test_what_is_gone_is_nothing_to_look_at() -> None:
    """The reconciler forgets it."""
    scraper = Scraper()
    assert await observe(cast(Cluster, _Reader(World(model_deployment()))), scraper, "team", "other") is None
    await scraper.close()
