"""Every way a request can end, seen by the client and by the workers' books."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.router.scripted_cluster import ANSWER, ScriptedCluster, start_cluster
from tests.router.test_streaming import CHAT, content, events
from twolane.v1 import types_pb2

STREAM = CHAT | {"stream": True}


def books(cluster: ScriptedCluster) -> list[str]:
    """Ids of requests that any worker still has."""
    return [key for worker in cluster.workers.values() for key in worker.requests]


def errors_of(text: str) -> dict[str, Any]:
    """The error event that a stream ends with."""
    assert "[DONE]" not in text
    found: dict[str, Any] = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    return found


async def held_stream(cluster: ScriptedCluster, http: aiohttp.ClientSession) -> aiohttp.ClientResponse:
    """A stream whose first token has come and whose decode worker waits."""
    cluster.workers["d0"].held = True
    response = await http.post("/v1/chat/completions", json=STREAM)
    assert response.status == 200
    await response.content.readuntil(b"\n\n")
    return response


async def test_a_client_that_goes_away_frees_both_workers(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """Closing the connection in the middle of a stream cancels at the decode worker."""
    await cluster.add_pair()
    response = await held_stream(cluster, http)
    assert len(books(cluster)) == 1
    response.close()
    await cluster.until(lambda: not books(cluster))
    assert cluster.workers["d0"].cancels
    assert not cluster.app.dispatcher.running
    assert not cluster.app.dispatcher.waiting


async def test_a_client_that_goes_away_before_the_first_token_frees_both_workers(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """A request that waits, streaming or not, is cancelled at both workers."""
    prefill, decode = await cluster.add_pair()
    prefill.held = decode.held = True
    for body in (CHAT, STREAM):
        call = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        await cluster.until(lambda: len(books(cluster)) == 2)
        call.cancel()
        await cluster.until(lambda: not books(cluster))
    assert len(prefill.cancels) == len(decode.cancels) == 2
    assert not cluster.app.dispatcher.waiting


async def test_a_stop_string_ends_the_answer_and_frees_the_workers(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """The text before the stop string comes out, no token after it, and the decode worker is told."""
    _, decode = await cluster.add_pair()
    body = STREAM | {"stop": ["never", "jumps over"], "stream_options": {"include_usage": True}}
    async with http.post("/v1/chat/completions", json=body) as response:
        chunks = await events(response)
    usage = chunks[-2]["usage"]
    assert content(chunks[:-1]) == "the quick brown fox "
    assert chunks[-3]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-2]["choices"] == []
    assert 0 < usage["completion_tokens"] < len(cluster.script(decode.submits[0]))
    await cluster.until(lambda: not books(cluster))
    assert decode.cancels == [decode.submits[0].request_id]


async def test_an_answer_of_one_token_frees_the_decode_worker(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """The prefill worker ends it; the decode worker, which waits for pages, hears of it."""
    prefill, decode = await cluster.add_pair()
    async with http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1}) as response:
        answer = await response.json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 1
    await cluster.until(lambda: decode.cancels == [decode.submits[0].request_id])
    assert not prefill.cancels


@pytest.mark.parametrize("killed", ["d0", "p0"])
async def test_a_worker_killed_before_decode_has_begun_ends_the_stream_with_an_error(
    cluster: ScriptedCluster, http: aiohttp.ClientSession, killed: str
) -> None:
    """The client gets an error event and no [DONE]; the other worker is freed; /readyz says why."""
    prefill, decode = await cluster.add_pair()
    prefill.keep_handover = True
    response = await held_stream(cluster, http)
    await cluster.workers[killed].stop()
    error = errors_of((await response.read()).decode())
    assert error["code"] == "worker_lost"
    assert killed in error["message"]
    other = prefill if killed == "d0" else decode
    await cluster.until(lambda: bool(other.cancels))
    assert not cluster.app.dispatcher.running
    async with http.get("/readyz") as ready:
        assert ready.status == 503
        assert killed in await ready.text()


async def test_a_prefill_worker_lost_after_the_handover_harms_nobody(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """Its part was over: the answer comes out in full."""
    prefill, decode = await cluster.add_pair()
    response = await held_stream(cluster, http)
    await prefill.stop()
    await cluster.until(lambda: cluster.app.not_ready() is not None)
    decode.release()
    text = (await response.read()).decode()
    assert text.endswith("data: [DONE]\n\n")
    assert ANSWER.endswith(content([json.loads(x[6:]) for x in text.split("\n\n")[:-2]] + ["[DONE]"]))


async def test_decode_tokens_wait_for_the_first_token(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """The two workers' streams are not ordered; the text is."""
    prefill, decode = await cluster.add_pair()
    prefill.held = decode.held = True
    call = asyncio.create_task(http.post("/v1/chat/completions", json=STREAM))
    await cluster.until(lambda: len(books(cluster)) == 2)
    decode.hand_over(decode.submits[0].request_id)
    decode.step()
    decode.step()
    barrier = cluster.app.cluster.session("d0").books
    decode.load.waiting_tokens = 77
    decode.report(decode.load)
    await cluster.until(lambda: barrier.load.waiting_tokens == 77)
    assert not call.done()
    prefill.release()
    decode.release()
    async with await call as response:
        assert content(await events(response)) == ANSWER


@pytest.mark.parametrize(
    ("code", "status", "retry"),
    [
        ("overloaded", 429, "3"),
        ("draining", 503, "3"),
        ("deadline_exceeded", 504, "3"),
        ("internal", 500, "3"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_workers_refusal_before_the_first_token_becomes_the_http_status(
    cluster: ScriptedCluster, http: aiohttp.ClientSession, code: str, status: int, retry: str, stream: bool
) -> None:
    """Nothing has been written yet, so the status can still say what happened, and when to retry."""
    prefill, decode = await cluster.add_pair()
    decode.refuse_with = types_pb2.Error(code=code, message="no page is free", retry_after_s=3)
    prefill.held = True
    async with http.post("/v1/chat/completions", json=CHAT | {"stream": stream}) as response:
        assert response.status == status
        assert response.headers["retry-after"] == retry
        assert (await response.json())["error"]["message"] == "no page is free"
    await cluster.until(lambda: not books(cluster))
    assert prefill.cancels


async def test_a_request_ends_at_its_deadline(model_dir: Path) -> None:
    """Before the first token the status is 504, later an error event says so."""
    cluster = await start_cluster(model_dir, request_timeout_s=0.3)
    try:
        prefill, decode = await cluster.add_pair()
        async with aiohttp.ClientSession(cluster.url) as http:
            prefill.held = True
            async with http.post("/v1/chat/completions", json=CHAT) as response:
                assert response.status == 504
            prefill.release()
            response = await held_stream(cluster, http)
            assert errors_of((await response.read()).decode())["code"] == "deadline_exceeded"
        await cluster.until(lambda: not books(cluster))
        assert 0 < decode.submits[0].timeout_ms <= 300
    finally:
        await cluster.stop()


async def test_nobody_ready_is_503_with_retry_after(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """Without workers, and with one half of a pair, requests are refused with the reason."""
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 503
        assert response.headers["retry-after"] == "2"
    await cluster.add_worker("p0", types_pb2.ROLE_PREFILL)
    await cluster.until(lambda: (cluster.app.not_ready() or "").startswith("no decode worker"))
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 503
        assert "no decode worker is ready" in (await response.json())["error"]["message"]


async def test_too_many_waiting_answers_are_refused_with_429(model_dir: Path) -> None:
    """max_waiting counts answers without a first token; the refused request reaches no worker."""
    cluster = await start_cluster(model_dir, max_waiting=2)
    try:
        worker = await cluster.add_mixed()
        worker.held = True
        async with aiohttp.ClientSession(cluster.url) as http:
            calls = [asyncio.create_task(http.post("/v1/chat/completions", json=CHAT)) for _ in range(2)]
            await cluster.until(lambda: len(books(cluster)) == 2)
            async with http.post("/v1/chat/completions", json=CHAT) as response:
                assert response.status == 429
                assert response.headers["retry-after"] == "1"
            async with http.post("/v1/chat/completions", json=CHAT | {"n": 3}) as response:
                assert response.status == 429
            worker.release()
            assert [(await call).status for call in calls] == [200, 200]
        assert len(worker.submits) == 2
    finally:
        await cluster.stop()


async def test_a_stopping_router_lets_running_requests_end(model_dir: Path) -> None:
    """It is no longer ready and refuses new requests, but the running stream comes out in full."""
    cluster = await start_cluster(model_dir, drain_timeout_s=10.0)
    await cluster.add_pair()
    async with aiohttp.ClientSession(cluster.url) as http:
        response = await held_stream(cluster, http)
        stopping = asyncio.create_task(cluster.app.stop())
        await cluster.until(lambda: cluster.app.dispatcher.draining)
        async with http.get("/readyz") as ready:
            assert ready.status == 503
        async with http.post("/v1/chat/completions", json=CHAT) as refused:
            assert refused.status == 503
            assert (await refused.json())["error"]["code"] == "draining"
        cluster.workers["d0"].release()
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
        await stopping
    await asyncio.gather(*(worker.stop() for worker in cluster.workers.values()))
    await cluster.broker.stop()


async def test_what_does_not_end_within_the_drain_timeout_ends_with_an_error(model_dir: Path) -> None:
    """The stream says that the router stopped."""
    cluster = await start_cluster(model_dir, drain_timeout_s=0.05)
    await cluster.add_pair()
    async with aiohttp.ClientSession(cluster.url) as http:
        response = await held_stream(cluster, http)
        await cluster.app.stop()
        assert errors_of((await response.read()).decode())["code"] == "draining"
    await asyncio.gather(*(worker.stop() for worker in cluster.workers.values()))
    await cluster.broker.stop()
