"""A whole look: objects from the store, numbers from running routers, and the plan that follows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from tests.operator.objects import IMAGE, World, model_deployment
from twolane.operator.actions import WriteStatus
from twolane.operator.names import REVISION_LABEL
from twolane.operator.observe import observe
from twolane.operator.plan import plan
from twolane.operator.scrape import Scraper
from twolane.operator.store import Store


def _stored(world: World) -> Store:
    """A store that holds a world."""
    store, seen = Store(), world.observe()
    for version, body in enumerate([seen.model_deployment, *seen.children.values(), *seen.pods], 1):
        metadata = {"namespace": "team", "uid": f"u-{version}", **body["metadata"]}
        store.put({"kind": "Pod", **body, "metadata": {**metadata, "resourceVersion": str(version)}})
    return store


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
    observed = await observe(_stored(world), scraper, "team", "demo")
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
    assert await observe(_stored(World(model_deployment())), scraper, "team", "other") is None
    await scraper.close()
