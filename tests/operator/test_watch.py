"""A watch that expires, breaks off or is throttled is taken up again, and nothing that happened is missed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import kopf
import pytest
import yaml
from aiohttp import web

from twolane.operator.handlers import registry, settings
from twolane.operator.names import GROUP, VERSION

KINDS = {
    "api/v1": ["services", "pods", "namespaces", "events"],
    f"apis/{GROUP}/{VERSION}": ["modeldeployments", "workerpools"],
    "apis/apps/v1": ["deployments", "statefulsets"],
    "apis/policy/v1": ["poddisruptionbudgets"],
    "apis/networking.k8s.io/v1": ["networkpolicies"],
}
DEADLINE_S = 40.0


class _ApiServer:
    """As much of an API server as a watch needs; ModelDeployments are watched as the test says.

    Attributes:
        names: ModelDeployments there are, with the resource version of their birth.
        version: of the newest.
        ends: how the next watches of ModelDeployments end, one after the other: then they stay open.
        watched: resource versions that watches of ModelDeployments asked for.
    """

    def __init__(self, ends: list[str]) -> None:
        self.names = {"first": 7}
        self.version = 7
        self.ends = ends
        self.watched: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Discovery, lists and watches."""
        path = request.path.strip("/")
        if path == "api":
            return web.json_response({"versions": ["v1"]})
        if path == "apis":
            groups = [place.split("/")[1:] for place in KINDS if place != "api/v1"]
            return web.json_response({"groups": [_group(name, version) for name, version in groups]})
        if path in KINDS:
            return web.json_response({"resources": [_resource(plural) for plural in KINDS[path]]})
        ours = path.endswith("/modeldeployments")
        if "watch" in request.query:
            return await self._watch(request, ours)
        items = [_object(name, version) for name, version in self.names.items()] if ours else []
        metadata = {"resourceVersion": str(self.version)}
        return web.json_response({"metadata": metadata, "items": items})

    async def _watch(self, request: web.Request, ours: bool) -> web.StreamResponse:
        if ours:
            self.watched.append(request.query.get("resourceVersion", ""))
        end = self.ends.pop(0) if ours and self.ends else ""
        if end == "throttled":
            return web.json_response({"code": 429}, status=429, headers={"Retry-After": "1"})
        response = web.StreamResponse()
        await response.prepare(request)
        if end == "expired":
            error = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            await _tell(response, "ERROR", error)
        elif ours:
            known = int(request.query["resourceVersion"])
            for name, version in self.names.items():
                if version > known:
                    await _tell(response, "ADDED", _object(name, version))
        if end:
            # While nobody watches.
            self.version += 100
            self.names[f"after-{end}-{self.version}"] = self.version
        else:
            await asyncio.sleep(DEADLINE_S)
        return response


async def _tell(response: web.StreamResponse, kind: str, body: dict[str, object]) -> None:
    await response.write(json.dumps({"type": kind, "object": body}).encode() + b"\n")


def _group(name: str, version: str) -> dict[str, object]:
    known = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [known], "preferredVersion": known}


def _resource(plural: str) -> dict[str, object]:
    verbs = ["get", "list", "watch", "patch"]
    return {"name": plural, "singularName": "", "namespaced": True, "kind": plural.title(), "verbs": verbs}


def _object(name: str, version: int) -> dict[str, object]:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": "team", "uid": name, "resourceVersion": str(version)},
        "spec": {},
    }


@pytest.fixture
async def api(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[_ApiServer]:
    """A server that kopf logs in to."""
    server = _ApiServer(list(request.param))
    app = web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    access = {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": "t"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(access), encoding="utf-8")
    # The client looks at KUBECONFIG once, when it is imported.
    place = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(place, str(tmp_path / "kubeconfig"))
    yield server
    await runner.cleanup()


@pytest.mark.parametrize(
    "api", [["expired"], ["broken"], ["throttled", "expired", "broken", "expired"]], indirect=True
)
async def test_a_watch_that_ends_is_taken_up_without_a_gap(api: _ApiServer) -> None:
    """By a list after an expiry; what came into being meanwhile is asked for."""
    ends, asked, over = len(api.ends), Counter[str](), asyncio.Event()

    async def ask(key: tuple[str, str]) -> None:
        asked[key[1]] += 1

    chosen = settings()
    chosen.watching.reconnect_backoff = 0.01
    chosen.networking.error_backoffs = [0.01] * 10
    ours = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=registry(ask),
        settings=chosen,
        standalone=True,
        clusterwide=False,
        namespaces=["team"],
        stop_flag=over,
    )
    running = asyncio.create_task(kopf.run_tasks(tasks, ignored=ours))
    try:
        async with asyncio.timeout(DEADLINE_S):
            # kopf's tasks are its own; only what they ask can be seen.
            while api.ends or len(api.watched) <= ends or set(asked) != set(api.names):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        over.set()
        await asyncio.wait({running}, timeout=10)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    # Nothing is asked for by a version that had expired, and no watch begins anew without need.
    versions = [int(version) for version in api.watched]
    assert versions == sorted(versions)
    assert len(api.names) > 1
