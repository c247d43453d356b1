"""A watch that expires, breaks off or is throttled is taken up again, and nothing that happened is missed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from kubernetes.aio import client
from prometheus_client import CollectorRegistry

from twolane.operator.cluster import Cluster
from twolane.operator.metrics import OperatorMetrics
from twolane.operator.names import GROUP, MODEL_DEPLOYMENT, VERSION
from twolane.operator.store import Store
from twolane.operator.watches import Watches

DEADLINE_S = 40.0
FIRST = "first"


class _ApiServer:
    """As much of an API server as a watch needs; ModelDeployments are watched as the test says.

    Attributes:
        names: ModelDeployments there are, with the resource version of their birth.
        version: of the newest.
        ends: how the next watches end, one after the other: then they stay open.
        watched: resource versions that watches asked for.
        lists: how often a list was asked for.
    """

    def __init__(self, ends: list[str]) -> None:
        self.names = {FIRST: 7}
        self.version = 7
        self.ends = ends
        self.watched: list[str] = []
        self.lists = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Lists and watches of ModelDeployments; the cluster has no other kind."""
        if not request.path.endswith("/modeldeployments"):
            return web.json_response({"kind": "Status", "code": 404}, status=404)
        if "watch" in request.query:
            return await self._watch(request)
        self.lists += 1
        items = [_object(name, version) for name, version in self.names.items()]
        metadata = {"resourceVersion": str(self.version)}
        return web.json_response({"apiVersion": f"{GROUP}/{VERSION}", "metadata": metadata, "items": items})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        known = int(request.query["resourceVersion"])
        self.watched.append(str(known))
        end = self.ends.pop(0) if self.ends else ""
        if end == "throttled":
            self._change(end)
            return web.json_response({"code": 429}, status=429, headers={"Retry-After": "0"})
        response = web.StreamResponse()
        await response.prepare(request)
        if end == "expired":
            error = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            await _tell(response, "ERROR", error)
        else:
            for name, version in self.names.items():
                if version > known:
                    await _tell(response, "ADDED", _object(name, version))
            await _tell(response, "BOOKMARK", _object("", self.version))
        if end == "cut":
            await response.write(b'{"type": "ADD')
        if end:
            self._change(end)
        else:
            await asyncio.sleep(DEADLINE_S)
        return response

    def _change(self, end: str) -> None:
        """Something happens while nobody watches."""
        self.version += 100
        self.names[f"after-{end}-{self.version}"] = self.version
        if end == "expired":
            # Nobody is ever told of it.
            self.names.pop(FIRST, None)


async def _tell(response: web.StreamResponse, kind: str, body: dict[str, object]) -> None:
    await response.write(json.dumps({"type": kind, "object": body}).encode() + b"\n")


def _object(name: str, version: int) -> dict[str, object]:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": MODEL_DEPLOYMENT,
        "metadata": {"name": name, "namespace": "team", "uid": name, "resourceVersion": str(version)},
        "spec": {},
    }


@asynccontextmanager
async def _watching(api: _ApiServer, kinds: tuple[str, ...]) -> AsyncIterator[tuple[Store, Watches]]:
    """Watches of a server, and the store that they keep."""
    app = web.Application()
    app.router.add_get("/{path:.*}", api.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    store = Store()
    metrics = OperatorMetrics(CollectorRegistry())
    cluster = Cluster(client.ApiClient(client.Configuration(host=host)), metrics, store)
    watches = Watches(cluster, ["team"], kinds, pause_s=0.01)
    running = asyncio.create_task(watches.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield store, watches
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await cluster.close()
        await runner.cleanup()


@pytest.mark.parametrize(
    "ends",
    [["expired"], ["broken"], ["cut"], ["throttled"], ["throttled", "expired", "broken", "cut", "expired"]],
)
async def test_a_watch_that_ends_is_taken_up_without_a_gap(ends: list[str]) -> None:
    """By a list after an expiry, and only then; what came or went meanwhile is known."""
    api, expiries = _ApiServer(list(ends)), ends.count("expired")
    async with _watching(api, (MODEL_DEPLOYMENT,)) as (store, watches):
        await watches.complete()
        # The watch is a task of its own; only what it brings can be seen.
        while {name for _, name in store.models()} != set(api.names) or api.ends:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    # No watch goes back, and none begins with a list that need not.
    versions = [int(version) for version in api.watched]
    assert versions == sorted(versions)
    assert api.lists == 1 + expiries
    assert any(name != FIRST for name in api.names)


async def test_kinds_that_a_cluster_lacks_are_no_obstacle() -> None:
    """No Gateway API: the first look need not wait for it."""
    async with _watching(_ApiServer([]), (MODEL_DEPLOYMENT, "HTTPRoute", "Ingress")) as (store, watches):
        await watches.complete()
        assert store.models() == [("team", FIRST)]
        assert store.of_model("HTTPRoute", "team", FIRST) == []
