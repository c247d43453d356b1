"""Workers that give up are replaced: the client sees no gap and no token twice."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.router.scripted_cluster import ANSWER, ScriptedCluster
from tests.router.scripted_worker import ScriptedWorker
from tests.router.test_cluster import ask
from tests.router.test_streaming import CHAT, events
from twolane.v1 import types_pb2


async def two_pairs(cluster: ScriptedCluster) -> dict[str, ScriptedWorker]:
    """Two prefill and two decode workers."""
    for worker_id, role in (("p0", 1), ("p1", 1), ("d0", 2), ("d1", 2)):
        await cluster.add_worker(worker_id, types_pb2.Role.ValueType(role))
    await cluster.until(lambda: sum(s.accepts for s in cluster.app.cluster.sessions) == 4)
    return cluster.workers


def retried_at(workers: dict[str, ScriptedWorker]) -> set[str]:
    """Ids of second attempts that any worker was sent."""
    ids = {submit.request_id for worker in workers.values() for submit in worker.submits}
    return {request_id for request_id in ids if "retry" in request_id}


@pytest.mark.parametrize("side", ["p", "d"])
@pytest.mark.parametrize("code", ["draining", "overloaded", "unavailable"])
async def test_an_answer_that_one_worker_refuses_goes_to_another(
    cluster: ScriptedCluster, http: aiohttp.ClientSession, side: str, code: str
) -> None:
    """The client sees nothing of it; the other half is cancelled and named anew."""
    workers = await two_pairs(cluster)
    refusing = workers[f"{side}0"]
    refusing.refuse_with = types_pb2.Error(code=code, message="not me")
    # A prefill worker could send its first token before the refusal is known.
    for worker_id in ("p0", "p1"):
        workers[worker_id].held = side == "d"
    calls = [asyncio.create_task(ask(http)) for _ in range(6)]
    await cluster.until(lambda: sum(len(workers[d].submits) for d in ("d0", "d1")) >= 6)
    await cluster.until(lambda: len(retried_at(workers)) >= len(refusing.submits) > 0)
    for worker in workers.values():
        worker.release()
    assert await asyncio.gather(*calls) == [ANSWER] * 6
    assert retried_at(workers) == {f"{submit.request_id}-retry1" for submit in refusing.submits}
    await cluster.until(lambda: not any(worker.requests for worker in workers.values()))
    assert not cluster.app.dispatcher.waiting


async def test_a_worker_lost_before_the_first_token_is_replaced(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """The prompt is computed elsewhere; the client only waits longer."""
    workers = await two_pairs(cluster)
    workers["p0"].held = workers["p1"].held = True
    calls = [asyncio.create_task(ask(http)) for _ in range(4)]
    await cluster.until(lambda: len(workers["p0"].requests) + len(workers["p1"].requests) == 4)
    assert workers["p0"].requests
    await workers["p0"].stop()
    await cluster.until(lambda: len(workers["p1"].requests) == 4)
    workers["p1"].release()
    assert await asyncio.gather(*calls) == [ANSWER] * 4


async def test_a_worker_that_cannot_reach_its_peer_keeps_the_answer_and_the_peer_is_avoided(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """The decode worker says so first; the prefill worker it names is the one to go round."""
    workers = await two_pairs(cluster)
    workers["p0"].held = workers["p1"].held = True
    lost = types_pb2.Error(code="unavailable", message="p0 is unreachable", param="peer")
    for decode in ("d0", "d1"):
        workers[decode].refuse_peers = {"p0": lost}
    calls = [asyncio.create_task(ask(http)) for _ in range(6)]
    await cluster.until(lambda: bool(workers["p0"].submits) and len(workers["p1"].requests) == 6)
    workers["p1"].release()
    assert await asyncio.gather(*calls) == [ANSWER] * 6
    again = [s for d in ("d0", "d1") for s in workers[d].submits if "retry" in s.request_id]
    assert again
    assert {submit.peer.worker_id for submit in again} == {"p1"}


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"stop": ["jumps over"]}, {"logprobs": True}])
async def test_an_answer_goes_on_elsewhere_where_its_worker_was_lost(
    cluster: ScriptedCluster, http: aiohttp.ClientSession, fields: dict[str, Any]
) -> None:
    """The next pair is given prompt and answer so far, and the stream is what it would have been."""
    _, decode = await cluster.add_pair()
    body = CHAT | fields | {"stream": True, "stream_options": {"include_usage": True}}
    async with http.post("/v1/chat/completions", json=body) as response:
        whole = await events(response)
    decode.held = True
    async with http.post("/v1/chat/completions", json=body) as response:
        n = fields.get("n", 1)
        await cluster.until(lambda: sum(request.may_run for request in decode.requests.values()) == n)
        decode.step()
        decode.step()
        await cluster.add_worker("d1", types_pb2.ROLE_DECODE)
        await cluster.until(lambda: sum(s.accepts for s in cluster.app.cluster.sessions) == 3)
        await decode.stop()
        resumed = await events(response)
    assert _gist(resumed) == _gist(whole)
    again = cluster.workers["d1"].submits
    assert [submit.generated_tokens for submit in again] == [3] * n
    first = decode.submits[-1]
    script = cluster.script(first)
    assert all(list(s.prompt_tokens) == [*first.prompt_tokens, *script[:3]] for s in again)
    assert not cluster.app.dispatcher.waiting


def _gist(chunks: list[Any]) -> list[Any]:
    """Text, reasons, log probabilities and usage of a stream, by choice; ids and times left out."""
    parts: dict[int, list[Any]] = {}
    for chunk in chunks[:-1]:
        for choice in chunk["choices"]:
            text = choice["delta"].get("content") or ""
            listed = (choice.get("logprobs") or {}).get("content") or []
            part = parts.setdefault(choice["index"], ["", [], None])
            part[0] += text
            part[1] += [entry["token"] for entry in listed]
            part[2] = choice["finish_reason"] or part[2]
    return [parts, chunks[-2]["usage"]["completion_tokens"], chunks[-2]["usage"]["prompt_tokens"], chunks[-1]]


@pytest.mark.parametrize("code", ["invalid_request", "deadline_exceeded", "internal"])
async def test_an_error_that_a_retry_can_not_mend_is_reported(
    cluster: ScriptedCluster, http: aiohttp.ClientSession, code: str
) -> None:
    """One attempt, and the error is the client's."""
    workers = await two_pairs(cluster)
    for worker in workers.values():
        worker.held = True
        worker.refuse_with = types_pb2.Error(code=code, message="no")
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        assert (await response.json())["error"]["code"] == code
    assert sum(len(worker.submits) for worker in workers.values()) == 2


async def test_when_everybody_refuses_the_last_refusal_is_reported(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """Attempts are bounded."""
    workers = await two_pairs(cluster)
    for worker_id in ("d0", "d1"):
        workers[worker_id].refuse_with = types_pb2.Error(code="overloaded", message="full", retry_after_s=2)
    workers["p0"].held = workers["p1"].held = True
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 429
        assert (await response.json())["error"]["message"] == "full"
    await cluster.until(lambda: not any(worker.requests for worker in workers.values()))
    assert not cluster.app.dispatcher.waiting
