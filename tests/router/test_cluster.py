"""The router's picture of the cluster: joining, leaving, restarting, differing workers; a lost broker."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.router.scripted_cluster import ANSWER, ScriptedBroker, ScriptedCluster, tiny_fingerprint
from tests.router.test_streaming import CHAT
from twolane.core.prefix import page_hashes
from twolane.v1 import broker_pb2, types_pb2, worker_pb2

EXAMPLE = (Path(__file__).parents[2] / "deploy" / "autoscaling" / "keda-direct.yaml").read_text("utf-8")


async def ask(http: aiohttp.ClientSession, **fields: Any) -> str:
    """The text of a chat answer."""
    async with http.post("/v1/chat/completions", json=CHAT | fields) as response:
        assert response.status == 200, await response.text()
        text: str = (await response.json())["choices"][0]["message"]["content"]
        return text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer_sha256": "f" * 64}, "tokenizer_sha256"),
        ({"vocab_size": 7}, "vocab_size"),
        ({"model": "other"}, "model"),
    ],
)
async def test_a_worker_of_another_model_is_refused(
    cluster: ScriptedCluster,
    http: aiohttp.ClientSession,
    model_dir: Path,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, Any],
    named: str,
) -> None:
    """It is never connected to, the log says so once, and /readyz shows why."""
    fingerprint = replace(tiny_fingerprint(model_dir), **change)
    worker = await cluster.add_worker("m0", types_pb2.ROLE_MIXED, fingerprint=fingerprint)
    await cluster.until(lambda: named in (cluster.app.not_ready() or ""))
    cluster.broker.publish(broker_pb2.ClusterEvent(workers=[worker.info()]))
    await cluster.add_worker("m1", types_pb2.ROLE_MIXED)
    await cluster.until(lambda: cluster.app.not_ready() is None)
    assert await ask(http) == ANSWER
    assert not worker.hellos
    refusals = [record for record in caplog.records if record.message == "worker refused"]
    assert len(refusals) == 1
    assert refusals[0].worker_id == "m0"  # type: ignore[attr-defined]


async def test_a_worker_that_differs_from_its_peers_is_refused_until_they_are_gone(
    cluster: ScriptedCluster, model_dir: Path
) -> None:
    """Two versions never serve one request; when the old one is gone the new one may."""
    await cluster.add_mixed()
    newer = replace(tiny_fingerprint(model_dir), weights_sha256="1" * 64)
    await cluster.add_worker("m1", types_pb2.ROLE_MIXED, fingerprint=newer)
    await cluster.until(lambda: "m1" in cluster.broker.workers)
    assert cluster.app.not_ready() is None
    cluster.broker.publish(broker_pb2.ClusterEvent(gone=["m0"]))
    await cluster.until(lambda: bool(cluster.workers["m1"].hellos))
    await cluster.until(lambda: cluster.app.not_ready() is None)


async def test_a_worker_that_is_gone_gets_nothing_new_but_may_end_what_runs(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """A broker that loses sight of a worker must not stop running requests."""
    await cluster.add_mixed()
    worker = cluster.workers["m0"]
    worker.held = True
    response = await start_stream(cluster, http)
    cluster.broker.publish(broker_pb2.ClusterEvent(gone=["m0"]))
    await cluster.until(lambda: cluster.app.not_ready() is not None)
    async with http.post("/v1/chat/completions", json=CHAT) as refused:
        assert refused.status == 503
    worker.release()
    assert (await response.read()).endswith(b"[DONE]\n\n")


async def test_a_connected_worker_that_the_broker_misses_is_the_last_resort(
    cluster: ScriptedCluster, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat that comes late must not refuse a request; with another worker there it gets nothing."""
    monkeypatch.setattr("twolane.router.cluster.KEEP_MISSING_S", 60.0)
    missed = await cluster.add_mixed()
    [session] = cluster.app.cluster.sessions
    cluster.broker.publish(broker_pb2.ClusterEvent(gone=["m0"]))
    await cluster.until(lambda: cluster.app.cluster.doubted(session))
    assert await ask(http) == ANSWER
    other = await cluster.add_worker("m1", types_pb2.ROLE_MIXED)
    await cluster.until(lambda: sum(s.accepts for s in cluster.app.cluster.sessions) == 2)
    for _ in range(4):
        assert await ask(http) == ANSWER
    assert (len(missed.submits), len(other.submits)) == (1, 4)
    cluster.broker.publish(broker_pb2.ClusterEvent(workers=[missed.info()]))
    await cluster.until(lambda: not cluster.app.cluster.doubted(session))


async def start_stream(cluster: ScriptedCluster, http: aiohttp.ClientSession) -> aiohttp.ClientResponse:
    """A stream whose first token has come from the mixed worker."""
    call = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT | {"stream": True}))
    await cluster.until(lambda: bool(cluster.workers["m0"].requests))
    cluster.workers["m0"].step()
    return await call


async def test_a_restarted_worker_is_a_new_one(cluster: ScriptedCluster, http: aiohttp.ClientSession) -> None:
    """Another incarnation gets another session; its cached prefixes are forgotten."""
    await cluster.add_mixed()
    page = page_hashes([1, 2, 3, 4], 4)
    delta = broker_pb2.PrefixDelta(worker_id="m0", added=page)
    cluster.broker.publish(broker_pb2.ClusterEvent(prefixes=[delta]))
    await cluster.until(lambda: len(cluster.app.cluster.prefixes) == 1)
    await cluster.workers["m0"].stop()
    await cluster.add_worker("m0", types_pb2.ROLE_MIXED, incarnation=2)
    await cluster.until(lambda: cluster.app.cluster.session("m0").info.incarnation == 2)
    await cluster.until(lambda: cluster.app.not_ready() is None)
    assert len(cluster.app.cluster.prefixes) == 0
    assert await ask(http) == ANSWER


async def test_a_lost_broker_stops_neither_serving_nor_readiness(
    cluster: ScriptedCluster, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last picture stays; a new broker may take its time to hear of a worker that is connected."""
    monkeypatch.setattr("twolane.router.cluster.KEEP_MISSING_S", 0.2)
    await cluster.add_mixed()
    port = cluster.broker._server.port
    await cluster.broker.stop()
    await cluster.until(lambda: not cluster.app.cluster.watching)
    assert cluster.app.not_ready() is None
    assert await ask(http) == ANSWER
    cluster.broker = ScriptedBroker(port)  # type: ignore[abstract] # serves Watch alone
    await cluster.broker.start()
    await cluster.until(lambda: cluster.app.cluster.watching)
    assert cluster.app.not_ready() is None
    assert await ask(http) == ANSWER
    await cluster.until(lambda: "no prefill" in (cluster.app.not_ready() or ""))
    cluster.broker.publish(broker_pb2.ClusterEvent(workers=[cluster.workers["m0"].info()]))
    await cluster.until(lambda: cluster.app.not_ready() is None)
    assert await ask(http) == ANSWER


async def test_a_draining_worker_gets_nothing_new(cluster: ScriptedCluster) -> None:
    """The broker's table says so."""
    worker = await cluster.add_mixed()
    info = worker.info()
    info.draining = True
    cluster.broker.publish(broker_pb2.ClusterEvent(workers=[info]))
    await cluster.until(lambda: cluster.app.not_ready() is not None)


async def test_the_lane_follows_the_prefix_index(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """A long prompt that a worker has cached goes there, in the short lane."""
    prompt = [10 + i % 90 for i in range(400)]
    await cluster.add_worker("p0", types_pb2.ROLE_PREFILL)
    await cluster.add_worker("p1", types_pb2.ROLE_PREFILL)
    await cluster.add_worker("d0", types_pb2.ROLE_DECODE)
    await cluster.until(lambda: sum(s.accepts for s in cluster.app.cluster.sessions) == 3)

    async def complete() -> worker_pb2.Submit:
        async with http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 2}) as response:
            assert response.status == 200
        return cluster.workers["d0"].submits[-1]

    assert (await complete()).lane == types_pb2.LANE_LONG
    delta = broker_pb2.PrefixDelta(worker_id="p1", added=page_hashes(prompt, 4)[:60])
    cluster.broker.publish(broker_pb2.ClusterEvent(prefixes=[delta]))
    await cluster.until(lambda: len(cluster.app.cluster.prefixes) == 60)
    submit = await complete()
    assert (submit.lane, submit.peer.worker_id) == (types_pb2.LANE_SHORT, "p1")


async def test_a_burst_is_spread_over_workers_before_they_report(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """The router counts its own submissions at once."""
    workers = [await cluster.add_worker(f"m{i}", types_pb2.ROLE_MIXED) for i in range(3)]
    await cluster.until(lambda: sum(s.accepts for s in cluster.app.cluster.sessions) == 3)
    for worker in workers:
        worker.held = True
    calls = [asyncio.create_task(ask(http)) for _ in range(9)]
    await cluster.until(lambda: sum(len(worker.requests) for worker in workers) == 9)
    assert [len(worker.requests) for worker in workers] == [3, 3, 3]
    for worker in workers:
        worker.release()
    assert await asyncio.gather(*calls) == [ANSWER] * 9


async def test_probes_and_metrics(cluster: ScriptedCluster, http: aiohttp.ClientSession) -> None:
    """Names, outcomes and lanes as documented; nothing unbounded among the labels."""
    await cluster.add_pair()
    await ask(http)
    async with http.post("/v1/chat/completions", json=CHAT | {"n": 99}) as response:
        assert response.status == 400
    async with http.get("/healthz") as response:
        assert await response.text() == "ok\n"
    async with http.get("/metrics") as response:
        text = await response.text()
    for line in (
        'twolane_router_requests_total{lane="short",outcome="ok"} 1.0',
        'twolane_router_requests_total{lane="none",outcome="invalid_request"} 1.0',
        'twolane_router_ttft_seconds_count{lane="short"} 1.0',
        'twolane_router_e2e_seconds_count{lane="short"} 1.0',
        "twolane_router_queue_seconds_count 1.0",
        "twolane_router_cached_tokens_sum 4.0",
        "twolane_router_running_requests 0.0",
        "twolane_router_waiting_answers 0.0",
        "twolane_router_workers 2.0",
        "twolane_router_ready 1.0",
    ):
        assert line in text
    tokens = len(cluster.script(worker_pb2.Submit()))
    assert f"twolane_router_inter_token_latency_seconds_count {tokens - 1}.0" in text
    assert f"twolane_router_output_tokens_sum {tokens}.0" in text
    assert "d0" not in text


async def test_what_waits_is_shown_by_lane_over_all_workers(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """Scalers ask any one router for it: one that saw only its own part would tell them less."""
    workers = [await cluster.add_worker(name, types_pb2.ROLE_PREFILL) for name in ("p0", "p1")]
    await cluster.until(lambda: all(worker.hellos for worker in workers))
    workers[0].report(worker_pb2.Load(waiting_short_s=0.5, waiting_long_s=2.0))
    workers[1].report(worker_pb2.Load(waiting_short_s=0.25, waiting_long_s=4.0))
    name = "twolane_router_prefill_waiting_seconds"

    def waits(lane: str, seconds: float) -> bool:
        return cluster.registry.get_sample_value(name, {"lane": lane}) == seconds

    await cluster.until(lambda: waits("short", 0.75) and waits("long", 6.0))
    async with http.get("/metrics") as response:
        text = await response.text()
    # KEDA looks for these very words.
    words = [trigger["metadata"]["valueLocation"] for trigger in yaml.safe_load(EXAMPLE)["spec"]["triggers"]]
    assert words == [f'{name}{{lane="{lane}"}}' for lane in ("short", "long")]
    assert all(f"\n{value} " in text for value in words)


async def test_a_worker_of_an_unknown_kind_is_refused_and_the_others_serve(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """A newer version's role must not harm the picture of the rest."""
    await cluster.add_mixed()
    strange = cluster.workers["m0"].info()
    strange.worker_id, strange.role = "x0", types_pb2.Role.ValueType(9)
    cluster.broker.publish(broker_pb2.ClusterEvent(workers=[strange]))
    cluster.broker.publish(broker_pb2.ClusterEvent(gone=["m0"]))
    await cluster.until(lambda: "role 9 is unknown" in (cluster.app.not_ready() or ""))
    cluster.broker.publish(broker_pb2.ClusterEvent(workers=[cluster.workers["m0"].info()]))
    await cluster.until(lambda: cluster.app.not_ready() is None)
    assert await ask(http) == ANSWER
