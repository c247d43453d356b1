"""Bad input: a table of requests with the error each must get, and a router that still serves after."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.router.scripted_cluster import ScriptedCluster, start_cluster
from tests.router.test_streaming import CHAT

USER = {"role": "user", "content": "hi"}
CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"


def chat(**fields: Any) -> dict[str, Any]:
    """A chat body."""
    return {"messages": [USER], **fields}


def text(**fields: Any) -> dict[str, Any]:
    """A completion body."""
    return {"prompt": "hi", **fields}


BAD: list[tuple[str, dict[str, Any], int, str | None]] = [
    (CHAT_PATH, {}, 400, "messages"),
    (CHAT_PATH, {"messages": []}, 400, "messages"),
    (CHAT_PATH, {"messages": "hi"}, 400, "messages"),
    (CHAT_PATH, {"messages": [7]}, 400, "messages[0]"),
    (CHAT_PATH, {"messages": [{"content": "x"}]}, 400, "messages[0].role"),
    (CHAT_PATH, {"messages": [USER, {"role": "tool", "content": "x"}]}, 400, "messages[1].role"),
    (CHAT_PATH, {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
    (CHAT_PATH, {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
    (
        CHAT_PATH,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages[0].content[0].type",
    ),
    (CHAT_PATH, {"messages": [USER | {"tool_calls": [{}]}]}, 400, "messages[0].tool_calls"),
    (CHAT_PATH, {"messages": [USER | {"mood": "bad"}]}, 400, "messages[0].mood"),
    (CHAT_PATH, chat(nonsense=1), 400, "nonsense"),
    (CHAT_PATH, chat(**{"x" * 100_000: 1}), 400, "x" * 100),
    (CHAT_PATH, {"messages": [USER | {"y" * 100_000: 1}]}, 400, "messages[0]." + "y" * 100),
    (CHAT_PATH, chat(max_tokens=-1), 400, "max_tokens"),
    (CHAT_PATH, chat(max_tokens=0), 400, "max_tokens"),
    (CHAT_PATH, chat(max_completion_tokens=513), 400, "max_completion_tokens"),
    (CHAT_PATH, chat(max_tokens="5"), 400, "max_tokens"),
    (CHAT_PATH, chat(max_tokens=True), 400, "max_tokens"),
    (CHAT_PATH, chat(max_tokens=10**30), 400, "max_tokens"),
    (CHAT_PATH, chat(temperature=-0.1), 400, "temperature"),
    (CHAT_PATH, chat(temperature="hot"), 400, "temperature"),
    (CHAT_PATH, chat(top_p=0), 400, "top_p"),
    (CHAT_PATH, chat(top_k=-2), 400, "top_k"),
    (CHAT_PATH, chat(min_p=1.5), 400, "min_p"),
    (CHAT_PATH, chat(presence_penalty=9), 400, "presence_penalty"),
    (CHAT_PATH, chat(repetition_penalty=0), 400, "repetition_penalty"),
    (CHAT_PATH, chat(n=0), 400, "n"),
    (CHAT_PATH, chat(n=17), 400, "n"),
    (CHAT_PATH, chat(stop=[str(i) for i in range(10_000)]), 400, "stop"),
    (CHAT_PATH, chat(stop=""), 400, "stop[0]"),
    (CHAT_PATH, chat(stop=["x" * 1001]), 400, "stop[0]"),
    (CHAT_PATH, chat(stop=5), 400, "stop"),
    (CHAT_PATH, chat(logprobs=3), 400, "logprobs"),
    (CHAT_PATH, chat(top_logprobs=3), 400, "top_logprobs"),
    (CHAT_PATH, chat(logprobs=True, top_logprobs=21), 400, "top_logprobs"),
    (CHAT_PATH, chat(logit_bias={"x": 1}), 400, "logit_bias.x.[key]"),
    (CHAT_PATH, chat(logit_bias={"99999": 1}), 400, "logit_bias"),
    (CHAT_PATH, chat(logit_bias={"9": 101}), 400, "logit_bias"),
    (CHAT_PATH, chat(stop_token_ids=[-1]), 400, "stop_token_ids"),
    (CHAT_PATH, chat(min_tokens=9, max_tokens=8), 400, "min_tokens"),
    (CHAT_PATH, chat(tools=[{"type": "function"}]), 400, "tools"),
    (CHAT_PATH, chat(response_format={"type": "json_schema"}), 400, "response_format"),
    (CHAT_PATH, chat(audio={"voice": "x"}), 400, "audio"),
    (CHAT_PATH, chat(stream_options={"include_usage": True}), 400, "stream_options"),
    (CHAT_PATH, chat(stream=True, stream_options={"other": 1}), 400, "stream_options.other"),
    (CHAT_PATH, chat(stream="yes"), 400, "stream"),
    (CHAT_PATH, chat(priority=2**31), 400, "priority"),
    (CHAT_PATH, chat(cache_salt="x" * 300), 400, "cache_salt"),
    (CHAT_PATH, chat(chat_template_kwargs={"messages": []}), 400, "chat_template_kwargs"),
    (CHAT_PATH, chat(model="other"), 404, "model"),
    (CHAT_PATH, {"messages": [{"role": "user", "content": "word " * 2000}]}, 413, "messages"),
    (TEXT_PATH, {}, 400, "prompt"),
    (TEXT_PATH, {"prompt": []}, 400, "prompt"),
    (TEXT_PATH, {"prompt": None}, 400, "prompt"),
    (TEXT_PATH, {"prompt": [[]]}, 400, "prompt[0]"),
    (TEXT_PATH, {"prompt": ["x", 5]}, 400, "prompt[1]"),
    (TEXT_PATH, {"prompt": [5, -1]}, 400, "prompt"),
    (TEXT_PATH, {"prompt": [99_999]}, 400, "prompt"),
    (TEXT_PATH, {"prompt": [True]}, 400, "prompt[0]"),
    (TEXT_PATH, {"prompt": ["x"] * 65}, 400, "prompt"),
    (TEXT_PATH, {"prompt": [7] * 512}, 413, "prompt"),
    (TEXT_PATH, text(logprobs=21), 400, "logprobs"),
    (TEXT_PATH, text(echo=True), 400, "echo"),
    (TEXT_PATH, text(best_of=3), 400, "best_of"),
    (TEXT_PATH, text(suffix="x"), 400, "suffix"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(model_dir: Path) -> AsyncIterator[ScriptedCluster]:
    """One router for the whole table: each request must leave it as it was."""
    cluster = await start_cluster(model_dir)
    await cluster.add_mixed()
    yield cluster
    await cluster.stop()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("path", "body", "status", "param"), BAD)
async def test_a_bad_field_is_named_and_reaches_no_worker(
    shared: ScriptedCluster,
    path: str,
    body: dict[str, Any],
    status: int,
    param: str | None,
) -> None:
    """OpenAI's error shape with the field at fault."""
    async with aiohttp.ClientSession(shared.url) as http, http.post(path, json=body) as response:
        assert response.status == status
        assert response.headers["x-request-id"]
        error = (await response.json())["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert error["code"] in ("invalid_request", "context_too_long", "model_not_found")
    assert not shared.workers["m0"].submits


async def test_limits_say_what_is_allowed(cluster: ScriptedCluster, http: aiohttp.ClientSession) -> None:
    """The message for too many stop strings names the limit."""
    await cluster.add_mixed()
    async with http.post(CHAT_PATH, json=chat(stop=["x"] * 17)) as response:
        assert "at most 16" in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"temperature": NaN, "messages": []}',
        b"[" * 100_000,
    ],
)
async def test_a_body_that_is_no_json_object_is_a_400(
    cluster: ScriptedCluster, http: aiohttp.ClientSession, raw: bytes
) -> None:
    """Invalid UTF-8, lone surrogates, deep nesting, other types."""
    await cluster.add_mixed()
    async with http.post(CHAT_PATH, data=raw) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_of_ten_megabytes_is_a_413(
    cluster: ScriptedCluster, http: aiohttp.ClientSession, chunked: bool
) -> None:
    """Refused by its announced length, or as soon as the limit is passed."""
    await cluster.add_mixed()

    async def pieces() -> Any:
        for _ in range(10):
            yield b" " * 1024 * 1024

    data = pieces() if chunked else io.BytesIO(b" " * 10 * 1024 * 1024)
    async with http.post(CHAT_PATH, data=data) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "body_too_large"
    async with http.post(CHAT_PATH, json=CHAT) as response:
        assert response.status == 200


async def test_harmless_and_neutral_fields_are_accepted(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """What asks for nothing special changes nothing; null means unset."""
    await cluster.add_mixed()
    body = chat(
        user="me",
        metadata={"a": "b"},
        store=False,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        n=None,
        stop=None,
        temperature=None,
        logit_bias=None,
        top_k=-1,
        max_tokens=None,
        stream_options=None,
    )
    body["messages"] = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "name": "bot"},
        USER,
    ]
    async with http.post(CHAT_PATH, json=body) as response:
        assert response.status == 200
    prompt = cluster.workers["m0"].submits[0].prompt_tokens
    rendered = cluster.tokenizer.fast.decode(list(prompt), skip_special_tokens=False)
    assert "<|system|>a\nb<|end|>" in rendered


async def test_the_answer_is_capped_at_the_context(
    cluster: ScriptedCluster, http: aiohttp.ClientSession
) -> None:
    """max_tokens within the context but beyond the room that the prompt leaves is cut, not refused."""
    worker = await cluster.add_mixed()
    async with http.post(TEXT_PATH, json={"prompt": [7] * 500, "max_tokens": 512}) as response:
        assert response.status == 200
    assert worker.submits[0].sampling.max_tokens == 12


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", CHAT_PATH, 405), ("POST", "/v1/embeddings", 404), ("GET", "/", 404), ("GET", "/v1/chat", 404)],
)
async def test_other_addresses_get_an_error_in_the_same_shape(
    http: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    """A client can always parse what it gets."""
    async with http.request(method, path) as response:
        assert response.status == status
        assert "error" in await response.json()


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("", 401),
        ("Bearer wrong", 401),
        ("Basic good-key", 401),
        ("Bearer good-key", 200),
        ("bearer other", 200),
    ],
)
async def test_api_keys(model_dir: Path, tmp_path: Path, authorization: str, status: int) -> None:
    """From the setting and from a file; probes and metrics stay open; refusals come before the body."""
    file = tmp_path / "keys"
    file.write_text("# team\nother\n\n", encoding="utf-8")
    cluster = await start_cluster(model_dir, api_keys="good-key,second", api_keys_file=file)
    try:
        await cluster.add_mixed()
        headers = {"authorization": authorization} if authorization else {}
        async with aiohttp.ClientSession(cluster.url, headers=headers) as http:
            async with http.post(CHAT_PATH, json=CHAT) as response:
                assert response.status == status
                if status == 401:
                    error = (await response.json())["error"]
                    assert error["code"] == "invalid_api_key"
                    assert "wrong" not in error["message"]
            async with http.get("/v1/models") as response:
                assert response.status == status
        async with aiohttp.ClientSession(cluster.url) as http:
            for path in ("/healthz", "/readyz", "/metrics"):
                async with http.get(path) as response:
                    assert response.status == 200
    finally:
        await cluster.stop()
