"""Readings of running pods: what is asked, how often, and what a dead pod costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from twolane.operator import scrape
from twolane.operator.resources.shape import Json
from twolane.operator.scrape import Scraper, metrics_url

TEXT = """# TYPE twolane_router_requests counter
twolane_router_requests_total{outcome="ok",lane="short"} 7.0
twolane_router_requests_total{outcome="ok",lane="long"} 2.0
twolane_router_requests_total{outcome="internal",lane="short"} 1.0
twolane_router_held_requests 3.0
"""


def _pod(name: str, port: int, address: str = "127.0.0.1", phase: str = "Running") -> Json:
    ports = [{"name": "grpc", "containerPort": 1}, {"name": "http", "containerPort": port}]
    return {
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "side"}, {"name": "twolane", "ports": ports}]},
        "status": {"podIP": address, "phase": phase},
    }


class _Metrics:
    """A pod's HTTP server."""

    def __init__(self, text: str, status: int = 200) -> None:
        self.text, self.status = text, status
        self.asked = 0
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        """GET /metrics."""
        del request
        self.asked += 1
        return web.Response(text=self.text, status=self.status)


@pytest.fixture
async def serve() -> AsyncIterator[Any]:
    """Starts servers on free ports."""
    runners: list[web.AppRunner] = []

    async def start(metrics: _Metrics) -> _Metrics:
        app = web.Application()
        app.router.add_get("/metrics", metrics.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runners.append(runner)
        metrics.port = runner.addresses[0][1]
        return metrics

    yield start
    for runner in runners:
        await runner.cleanup()


async def test_sums_follow_labels(serve: Any) -> None:
    """A total over some labels, and sums by the values of one."""
    router = await serve(_Metrics(TEXT))
    scraper = Scraper()
    reading = (await scraper.read([_pod("r", router.port)]))["r"]
    await scraper.close()
    assert reading.total("twolane_router_requests_total", outcome="ok") == 9
    assert reading.by("twolane_router_requests_total", "lane") == {"short": 8, "long": 2}
    assert reading.total("twolane_router_held_requests") == 3
    assert reading.total("nothing") == 0


async def test_a_pod_is_asked_once_for_all_who_want_to_know(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reconciliations come in bursts; the pod has requests to serve."""
    router = await serve(_Metrics(TEXT))
    scraper = Scraper()
    for _ in range(5):
        await scraper.read([_pod("r", router.port)])
    assert router.asked == 1
    monkeypatch.setattr(scrape, "AGE_S", 0.0)
    await scraper.read([_pod("r", router.port)])
    assert router.asked == 2
    await scraper.close()


async def test_what_does_not_answer_is_left_out_and_not_asked_again_at_once(serve: Any) -> None:
    """An error, no exposition, nobody there; the others' readings come all the same."""
    good, ill, odd = [await serve(m) for m in (_Metrics(TEXT), _Metrics("no", 500), _Metrics("a{b 1\n"))]
    free = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    gone = free.sockets[0].getsockname()[1]
    free.close()
    await free.wait_closed()
    pods = [_pod(str(port), port) for port in (good.port, ill.port, odd.port, gone)]
    scraper = Scraper()
    for _ in range(2):
        assert set(await scraper.read(pods)) == {str(good.port)}
    await scraper.close()
    assert (ill.asked, odd.asked) == (1, 1)


@pytest.mark.parametrize(
    ("pod", "url"),
    [
        (_pod("r", 8000, "10.0.0.7"), "http://10.0.0.7:8000/metrics"),
        (_pod("r", 9400, "fd00::7"), "http://[fd00::7]:9400/metrics"),
        (_pod("r", 8000, ""), None),
        (_pod("r", 8000, phase="Pending"), None),
        ({"metadata": {"name": "r"}}, None),
    ],
)
def test_the_address_is_the_pods_own(pod: Json, url: str | None) -> None:
    """The port named http of our container, of IPv6 pods too."""
    assert metrics_url(pod) == url
