"""One request through a real router and scripted workers: what the client sees, byte by byte."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from tests.router.scripted_cluster import ANSWER, ScriptedCluster

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
