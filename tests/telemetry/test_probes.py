"""The probe server over real HTTP: alive, ready or why not, metrics in both formats."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from twolane.core.errors import ConfigError
from twolane.telemetry import metrics
from twolane.telemetry.probes import ProbeServer


class Readiness:
    """Answers what the test has set."""

    def __init__(self) -> None:
        self.reason: str | None = "still loading"

    def __call__(self) -> str | None:
        if self.reason == "defect":
            raise RuntimeError("defect")
        return self.reason


@pytest.fixture
async def probes() -> AsyncIterator[Any]:
    """A running server, what it says about readiness, and a client for its paths."""
    registry, readiness = CollectorRegistry(), Readiness()
    Counter("twolane_test_things", "Things.", registry=registry).inc(3)
    server = ProbeServer("127.0.0.1", 0, registry, readiness)
    port = await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

        async def get(path: str, **headers: str) -> tuple[int, str, str]:
            async with session.get(path, headers=headers) as answer:
                return answer.status, await answer.text(), answer.headers["Content-Type"]

        yield server, readiness, get
    await server.stop()


async def test_a_process_is_alive_before_it_is_ready(probes: Any) -> None:
    """The reason why it is not ready is in the body."""
    _, readiness, get = probes
    assert (await get("/healthz"))[0] == 200
    assert (await get("/readyz"))[:2] == (503, "still loading\n")
    readiness.reason = None
    assert (await get("/readyz"))[:2] == (200, "ok\n")


async def test_a_readiness_check_that_fails_is_not_ready(probes: Any) -> None:
    """And does not show the defect."""
    _, readiness, get = probes
    readiness.reason = "defect"
    status, text, _ = await get("/readyz")
    assert status == 503
    assert "see the log" in text


async def test_metrics_come_in_the_format_asked_for(probes: Any) -> None:
    """Prometheus text by default, OpenMetrics on request."""
    _, _, get = probes
    status, text, kind = await get("/metrics")
    assert (status, kind.split(";")[0]) == (200, "text/plain")
    assert "twolane_test_things_total 3.0" in text
    _, text, kind = await get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


async def test_a_taken_port_is_a_configuration_error(probes: Any) -> None:
    """The message has the address; stopping a server that never started is harmless."""
    server, readiness, _ = probes
    second = ProbeServer("127.0.0.1", server.port, CollectorRegistry(), readiness)
    with pytest.raises(ConfigError, match=f"127.0.0.1:{server.port}"):
        await second.start()
    await second.stop()


def test_the_process_registry_has_process_metrics() -> None:
    """Start time and garbage collection, as every Prometheus client shows; buckets grow."""
    names = {metric.name for metric in metrics.registry.collect()}
    assert {"process_start_time_seconds", "python_info", "python_gc_objects_collected"} <= names
    for buckets in (metrics.FAST_BUCKETS_S, metrics.TOKEN_BUCKETS_S, metrics.REQUEST_BUCKETS_S):
        assert list(buckets) == sorted(set(buckets))
