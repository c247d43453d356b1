"""One request through a real router and scripted workers: what the client sees, byte by byte."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from tests.router.scripted_cluster import ANSWER, ScriptedCluster
from twolane.v1 import worker_pb2

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    """The stream's events: parsed JSON, or the text [DONE]."""
    found: list[Any] = []
    text = (await response.read()).decode()
    assert text.endswith("\n\n")
    for block in text[:-2].split("\n\n"):
        assert block.startswith("data: ")
        data = block.removeprefix("data: ")
        found.append(data if data == "[DONE]" else json.loads(data))
    return found


def content(chunks: list[Any]) -> str:
    """The text of all chunks of the first answer."""
    return "".join(
        choice["delta"].get("content") or "" for chunk in chunks[:-1] for choice in chunk["choices"]
    )


async def test_a_chat_streams_over_a_pair_of_workers(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """The first token from the prefill worker, the rest from the decode worker, the whole text in order."""
    prefill, decode = await cluster.add_pair()
    async with http.post("/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        chunks = await events(response)
    assert chunks[-1] == "[DONE]"
    assert content(chunks) == ANSWER
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {chunk["object"] for chunk in chunks[:-1]} == {"chat.completion.chunk"}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in chunk for chunk in chunks[:-1])
    first, second = prefill.submits[0], decode.submits[0]
    assert first.request_id == second.request_id == chunks[0]["id"] + "-0"
    assert (first.peer.worker_id, second.peer.worker_id) == ("d0", "p0")
    assert list(first.prompt_tokens) == list(second.prompt_tokens)
    assert first.sampling == second.sampling
    await cluster.until(lambda: not cluster.app.dispatcher.running)
    assert not prefill.cancels
    assert not decode.cancels


async def test_the_callers_trace_goes_on_at_the_workers(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """Even a router that records no spans itself hands the trace context on."""
    worker = await cluster.add_mixed()
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    async with http.post("/v1/chat/completions", json=CHAT, headers=headers) as response:
        assert response.status == 200
    assert worker.submits[0].traceparent.split("-")[1] == trace


async def test_a_defect_with_one_answer_leaves_the_others_alone(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """An event that can't be handled ends its own request with an error; the stream to the worker stays."""
    worker = await cluster.add_mixed()
    worker.held = True
    calls = [asyncio.create_task(http.post("/v1/chat/completions", json=CHAT)) for _ in range(2)]
    await cluster.until(lambda: len(worker.requests) == 2)
    broken, *_ = worker.requests.values()
    event = worker_pb2.RequestEvent(stream_id=broken.submit.stream_id, token_ids=[7, 8])
    event.logprobs.add(token_id=7)
    worker.send(broken.out, [event])
    await cluster.until(lambda: worker.cancels == [broken.key])
    worker.release()
    statuses = sorted([(await call).status for call in calls])
    assert statuses == [200, 500]


async def test_connections_are_kept_between_requests(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """Streams written directly end properly: the next request of the connection is served."""
    await cluster.add_pair()
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(cluster.url, connector=connector) as one:
        for _ in range(3):
            async with one.post("/v1/chat/completions", json=CHAT | {"stream": True}) as response:
                assert content(await events(response)) == ANSWER
    assert cluster.app._http.server_state.total_requests == 3
