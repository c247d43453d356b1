"""A router without workers holds requests, within bounds, and sends them once workers are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest

from tests.router.conftest import left_tasks
from tests.router.scripted_cluster import ANSWER, ScriptedCluster, start_cluster, tiny_fingerprint
from tests.router.test_cluster import ask
from tests.router.test_streaming import CHAT
from twolane.core.request import Lane
from twolane.router.config import RouterConfig
from twolane.v1 import broker_pb2, inference_pb2, inference_pb2_grpc, types_pb2

Start = Callable[..., Awaitable[tuple[ScriptedCluster, aiohttp.ClientSession]]]


@pytest.fixture
async def start(model_dir: Path) -> AsyncIterator[Start]:
    """Starts routers that hold."""
    made: list[tuple[ScriptedCluster, aiohttp.ClientSession]] = []

    async def make(**settings: Any) -> tuple[ScriptedCluster, aiohttp.ClientSession]:
        cluster = await start_cluster(model_dir, **({"hold_s": 60.0} | settings))
        http = aiohttp.ClientSession(cluster.url, timeout=aiohttp.ClientTimeout(total=20))
        made.append((cluster, http))
        await cluster.until(lambda: cluster.app.cluster.watching)
        return made[-1]

    yield make
    for cluster, http in made:
        await http.close()
        await cluster.stop()
        await cluster.until(lambda: not left_tasks())


def held(cluster: ScriptedCluster) -> float:
    """What /metrics says of held requests."""
    return cluster.registry.get_sample_value("twolane_router_held_requests") or 0.0


def counted(cluster: ScriptedCluster, name: str, **labels: str) -> float:
    """A counter of the router."""
    return cluster.registry.get_sample_value(f"twolane_router_{name}_total", labels) or 0.0


async def test_held_requests_are_answered_once_workers_are_there(start: Start) -> None:
    """Ready all the time, counted while they wait, and sent when the last role needed has come."""
    cluster, http = await start()
    async with http.get("/readyz") as response:
        assert response.status == 200
    calls = [asyncio.create_task(ask(http, n=1)) for _ in range(3)]
    await cluster.until(lambda: held(cluster) == 3)
    assert counted(cluster, "arrivals", lane="short") == 3
    await cluster.add_worker("p0", types_pb2.ROLE_PREFILL)
    await cluster.until(lambda: any(s.accepts for s in cluster.app.cluster.sessions))
    assert held(cluster) == 3
    await cluster.add_worker("d0", types_pb2.ROLE_DECODE)
    assert await asyncio.gather(*calls) == [ANSWER] * 3
    assert held(cluster) == 0
    assert counted(cluster, "arrivals", lane="short") == 3
    assert counted(cluster, "slo_answers", lane="short", outcome="met") == 3


async def test_a_held_stream_streams(start: Start) -> None:
    """Piece by piece, as if it had never waited."""
    cluster, http = await start()
    async with asyncio.TaskGroup() as group:
        call = group.create_task(http.post("/v1/chat/completions", json=CHAT | {"stream": True}).__aenter__())
        await cluster.until(lambda: held(cluster) == 1)
        await cluster.add_mixed()
        await cluster.until(lambda: held(cluster) == 0)
    response = call.result()
    text = (await response.read()).decode()
    assert text.count("data: ") > 5
    assert text.endswith("data: [DONE]\n\n")


async def test_more_than_the_bound_are_refused(start: Start) -> None:
    """With words that say why and when to come again."""
    cluster, http = await start(max_held=2)
    calls = [asyncio.create_task(ask(http)) for _ in range(2)]
    await cluster.until(lambda: held(cluster) == 2)
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"]) == (429, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
    assert error["message"] == "no worker runs now and 2 requests wait for one already; retry later"
    await cluster.add_mixed()
    assert await asyncio.gather(*calls) == [ANSWER] * 2


async def test_a_request_that_was_held_for_too_long_is_refused(start: Start) -> None:
    """The client hears for how long it waited, and for what."""
    cluster, http = await start(hold_s=0.05)
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"]) == (503, "unavailable")
        assert "retry-after" in response.headers
    assert error["message"].startswith("the request waited 0.05 s for workers to start (no worker is ready")
    assert held(cluster) == 0
    assert not cluster.app.dispatcher.waiting


async def test_the_deadline_of_a_request_goes_on_while_it_is_held(start: Start) -> None:
    """Over gRPC it is the caller's own."""
    cluster, http = await start(request_timeout_s=0.05)
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 504
    async with grpc.aio.insecure_channel(f"127.0.0.1:{cluster.app.grpc_port}") as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Generate(inference_pb2.GenerateRequest(text="hello"), timeout=10)
    assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert held(cluster) == 0


async def test_a_client_that_goes_away_frees_its_place(start: Start) -> None:
    """Over HTTP and over gRPC."""
    cluster, http = await start()
    call = asyncio.create_task(ask(http))
    await cluster.until(lambda: held(cluster) == 1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{cluster.app.grpc_port}") as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        rpc = stub.Generate(inference_pb2.GenerateRequest(text="hello"))
        await cluster.until(lambda: held(cluster) == 2)
        rpc.cancel()
        await cluster.until(lambda: held(cluster) == 1)
    call.cancel()
    await cluster.until(lambda: held(cluster) == 0)
    assert not cluster.app.dispatcher.waiting
    assert not cluster.app.dispatcher.running


async def test_a_bad_request_is_not_held(start: Start) -> None:
    """What can never be served is refused at once, workers or not."""
    _, http = await start()
    async with http.post("/v1/chat/completions", json=CHAT | {"max_tokens": -1}) as response:
        assert response.status == 400


async def test_without_a_hold_a_request_is_refused_at_once(start: Start) -> None:
    """The default."""
    cluster, http = await start(hold_s=0.0)
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 503
    async with http.get("/readyz") as response:
        assert response.status == 503
    assert held(cluster) == 0


@pytest.mark.parametrize("code", ["draining", "unavailable"])
async def test_a_request_that_meets_the_last_worker_on_its_way_out_is_held(start: Start, code: str) -> None:
    """Between the decision to sleep and the news of it nothing is lost; the next worker answers."""
    cluster, http = await start()
    worker = await cluster.add_mixed()
    worker.refuse_with = types_pb2.Error(code=code, message="about to stop")
    call = asyncio.create_task(ask(http))
    await cluster.until(lambda: held(cluster) == 1)
    cluster.broker.publish(broker_pb2.ClusterEvent(gone=["m0"]))
    await cluster.add_worker("m1", types_pb2.ROLE_MIXED)
    assert await call == ANSWER
    [submit] = cluster.workers["m1"].submits
    assert submit.request_id.endswith("-retry1")


async def test_a_worker_that_comes_back_under_its_name_gets_what_it_could_not_take(start: Start) -> None:
    """Workers of several pods keep their names when they start anew."""
    cluster, http = await start()
    worker = await cluster.add_mixed()
    worker.held = True
    call = asyncio.create_task(ask(http))
    await cluster.until(lambda: bool(worker.requests))
    await worker.stop()
    await cluster.until(lambda: held(cluster) == 1)
    cluster.broker.publish(broker_pb2.ClusterEvent(gone=["m0"]))
    await cluster.add_worker("m0", types_pb2.ROLE_MIXED, incarnation=2)
    assert await call == ANSWER


async def test_a_held_answer_fits_into_the_context_of_the_workers_that_start(
    start: Start, model_dir: Path
) -> None:
    """Their context was not known when the request was checked."""
    cluster, http = await start()
    calls = [asyncio.create_task(ask(http)), asyncio.create_task(ask(http, messages=_long()))]
    await cluster.until(lambda: held(cluster) == 2)
    smaller = replace(tiny_fingerprint(model_dir), max_model_len=256)
    worker = await cluster.add_worker("m0", types_pb2.ROLE_MIXED, fingerprint=smaller)
    assert await calls[0] == ANSWER
    with pytest.raises(AssertionError, match="context_too_long"):
        await calls[1]
    [submit] = worker.submits
    assert submit.sampling.max_tokens == 256 - len(submit.prompt_tokens)


def _long() -> list[dict[str, str]]:
    return [{"role": "user", "content": "word " * 80}]


async def test_a_router_that_stops_lets_held_requests_go_on_for_the_drain(start: Start) -> None:
    """New ones are refused; those that wait are served if workers come, and told otherwise."""
    cluster, http = await start(drain_timeout_s=0.3)
    call = asyncio.create_task(ask(http))
    await cluster.until(lambda: held(cluster) == 1)
    stop = asyncio.create_task(cluster.app.stop())
    await cluster.until(lambda: cluster.app.dispatcher.draining)
    with pytest.raises(AssertionError, match="draining"):
        await call
    await stop


@pytest.mark.parametrize(
    ("settings", "header", "lane", "expected"),
    [
        ({"ttft_slo_ms": 900, "short_ttft_slo_ms": 300}, "", "short", 300),
        ({"ttft_slo_ms": 900, "short_ttft_slo_ms": 300}, "", "long", 900),
        ({"long_ttft_slo_ms": 5000}, "", "short", 0),
        ({"ttft_slo_ms": 900}, "70", "short", 70),
        ({"ttft_slo_ms": 900}, "0", "long", 0),
    ],
)
async def test_workers_schedule_by_the_target_of_the_lane_or_the_request(
    start: Start, settings: dict[str, int], header: str, lane: str, expected: int
) -> None:
    """The request's own goes before its lane's, which goes before the general one."""
    boundary = 1 if lane == "long" else 512
    cluster, http = await start(hold_s=0.0, short_max_uncached_tokens=boundary, **settings)
    worker = await cluster.add_mixed()
    headers = {"x-twolane-ttft-slo-ms": header} if header else {}
    async with http.post("/v1/chat/completions", json=CHAT, headers=headers) as response:
        assert response.status == 200
    assert [submit.ttft_slo_ms for submit in worker.submits] == [expected]


async def test_attainment_is_counted_by_lane(start: Start) -> None:
    """Generous targets are met; a failure counts as what it is."""
    cluster, http = await start(hold_s=0.0, short_ttft_slo_ms=60_000, short_tpot_slo_ms=60_000)
    worker = await cluster.add_mixed()
    await ask(http)
    worker.refuse_with = types_pb2.Error(code="internal", message="no")
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 500
    outcomes = {
        outcome: counted(cluster, "slo_answers", lane="short", outcome=outcome)
        for outcome in ("met", "ttft", "tpot", "failed")
    }
    assert outcomes == {"met": 1, "ttft": 0, "tpot": 0, "failed": 1}
    assert counted(cluster, "uncached_tokens", lane="short") > 0


@pytest.mark.parametrize(
    ("limit_ms", "ttft_s", "tpot_s", "missed"),
    [
        (None, 0.29, 0.049, ""),
        (None, 0.31, 0.049, "ttft"),
        (None, 0.31, 0.051, "ttft"),
        (None, 0.29, 0.051, "tpot"),
        (0, 9.0, 0.0, ""),
        (100, 0.2, 0.0, "ttft"),
    ],
)
def test_an_answer_misses_one_target(
    model_dir: Path, limit_ms: int | None, ttft_s: float, tpot_s: float, missed: str
) -> None:
    """The first token's before the others'; the request's own target before its lane's."""
    targets = RouterConfig(model_dir=model_dir, ttft_slo_ms=300, tpot_slo_ms=50).slo_targets
    assert targets.missed(Lane.SHORT, limit_ms, ttft_s, tpot_s) == missed


def test_placement_keeps_steps_within_the_stricter_lane(model_dir: Path) -> None:
    """Answers of both lanes grow in the same steps."""
    config = RouterConfig(model_dir=model_dir, tpot_slo_ms=80, short_tpot_slo_ms=30)
    assert config.slo_targets.strictest_tpot_s == 0.03
