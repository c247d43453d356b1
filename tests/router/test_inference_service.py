"""twolane.v1.Inference: the same answers as over REST, typed, with cancellation by closing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeAlias

import grpc
import grpc.aio
import pytest

from tests.router.scripted_cluster import ANSWER, ScriptedCluster, start_cluster
from twolane.core.errors import TwolaneError
from twolane.rpc.channel import open_channel
from twolane.rpc.errors import to_twolane_error
from twolane.v1 import inference_pb2, inference_pb2_grpc, types_pb2

# Quoted: the asynchronous face of the stub is in its types only.
Stub: TypeAlias = "inference_pb2_grpc.InferenceAsyncStub"
TOKEN_999 = inference_pb2.TokenIds(ids=[999])
HELLO = inference_pb2.Chat(messages=[inference_pb2.ChatMessage(role="user", content="hello")])


@pytest.fixture
async def stub(cluster: ScriptedCluster) -> AsyncIterator[Stub]:
    """A client of a router with a pair of workers."""
    await cluster.add_pair()
    channel = open_channel(f"127.0.0.1:{cluster.app.grpc_port}")
    yield inference_pb2_grpc.InferenceStub(channel)
    await channel.close()


async def refusal(call: Awaitable[object]) -> TwolaneError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return to_twolane_error(caught.value)


async def test_whole_answers(stub: Stub, cluster: ScriptedCluster) -> None:
    """Every choice with its text, tokens and log probabilities; usage counts the prompt once."""
    request = inference_pb2.GenerateRequest(chat=HELLO, n=2, return_token_ids=True)
    request.sampling.top_logprobs = 1
    response = await stub.Generate(request)
    tokens = cluster.script(cluster.workers["p0"].submits[0])
    assert [choice.text for choice in response.choices] == [ANSWER, ANSWER]
    assert [list(choice.token_ids) for choice in response.choices] == [tokens, tokens]
    assert [entry.token_id for entry in response.choices[1].logprobs] == tokens
    assert {choice.finish_reason for choice in response.choices} == {types_pb2.FINISH_REASON_STOP}
    assert response.model == "tiny"
    assert response.usage.completion_tokens == 2 * len(tokens)
    assert cluster.workers["p0"].submits[0].request_id == f"{response.request_id}-0"


async def test_a_stream_ends_with_its_usage(stub: Stub, cluster: ScriptedCluster) -> None:
    """Pieces add up; finish reason and usage come with the last one alone."""
    request = inference_pb2.GenerateRequest(text="hello", return_token_ids=True)
    chunks = [chunk async for chunk in stub.GenerateStream(request)]
    assert "".join(chunk.text for chunk in chunks) == ANSWER
    tokens = [token for chunk in chunks for token in chunk.token_ids]
    assert tokens == cluster.script(cluster.workers["p0"].submits[0])
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [0] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == types_pb2.FINISH_REASON_STOP
    assert [chunk.HasField("usage") for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage.completion_tokens == len(tokens)


async def test_tokens_go_to_the_workers_as_they_are(stub: Stub, cluster: ScriptedCluster) -> None:
    """No template, no begin-of-text token; a stop string ends the answer."""
    request = inference_pb2.GenerateRequest(tokens=inference_pb2.TokenIds(ids=[9, 8, 7]), stop=["jumps"])
    response = await stub.Generate(request)
    assert list(cluster.workers["p0"].submits[0].prompt_tokens) == [9, 8, 7]
    assert response.choices[0].text == "the quick brown fox "


async def test_closing_the_call_frees_the_workers(stub: Stub, cluster: ScriptedCluster) -> None:
    """Both a stream and a call for whole answers."""
    prefill, decode = cluster.workers["p0"], cluster.workers["d0"]
    decode.held = True
    stream = stub.GenerateStream(inference_pb2.GenerateRequest(chat=HELLO))
    await stream.read()
    stream.cancel()
    await cluster.until(lambda: len(decode.cancels) == 1)
    prefill.held = True
    call = stub.Generate(inference_pb2.GenerateRequest(chat=HELLO))
    await cluster.until(lambda: len(prefill.requests) == 1)
    call.cancel()
    await cluster.until(lambda: len(decode.cancels) == 2 and len(prefill.cancels) == 1)
    await cluster.until(lambda: not cluster.app.dispatcher.running)


async def test_the_calls_deadline_bounds_the_work(stub: Stub, cluster: ScriptedCluster) -> None:
    """It reaches the workers, and what runs is cancelled when it passes."""
    cluster.workers["p0"].held = True
    error = await refusal(stub.Generate(inference_pb2.GenerateRequest(chat=HELLO), timeout=0.3))
    assert error.code == "deadline_exceeded"
    assert 0 < cluster.workers["p0"].submits[0].timeout_ms <= 300
    await cluster.until(lambda: bool(cluster.workers["p0"].cancels))


@pytest.mark.parametrize(
    ("request_", "code", "param"),
    [
        (inference_pb2.GenerateRequest(), "invalid_request", "input"),
        (inference_pb2.GenerateRequest(text="x", model="other"), "model_not_found", "model"),
        (inference_pb2.GenerateRequest(text="x", n=17), "invalid_request", "n"),
        (inference_pb2.GenerateRequest(text="x", stop=["a"] * 17), "invalid_request", "stop"),
        (inference_pb2.GenerateRequest(text="x", stop=[""]), "invalid_request", "stop"),
        (inference_pb2.GenerateRequest(tokens=inference_pb2.TokenIds()), "invalid_request", "tokens"),
        (
            inference_pb2.GenerateRequest(tokens=inference_pb2.TokenIds(ids=[999])),
            "invalid_request",
            "tokens",
        ),
        (inference_pb2.GenerateRequest(chat=inference_pb2.Chat()), "invalid_request", "messages"),
        (
            inference_pb2.GenerateRequest(tokens=inference_pb2.TokenIds(ids=[7] * 512)),
            "context_too_long",
            "input",
        ),
        (
            inference_pb2.GenerateRequest(text="x", sampling=types_pb2.SamplingParams(max_tokens=0)),
            "invalid_request",
            "max_tokens",
        ),
        (
            inference_pb2.GenerateRequest(text="x", sampling=types_pb2.SamplingParams(top_p=float("nan"))),
            "invalid_request",
            "top_p",
        ),
    ],
)
async def test_a_bad_field_is_named(
    stub: Stub,
    request_: inference_pb2.GenerateRequest,
    code: str,
    param: str,
) -> None:
    """The same codes as over REST."""
    error = await refusal(stub.Generate(request_))
    assert (error.code, error.param) == (code, param)


async def test_models(stub: Stub) -> None:
    """The one model."""
    response = await stub.ListModels(inference_pb2.ListModelsRequest())
    assert [(model.name, model.max_model_len) for model in response.models] == [("tiny", 512)]


async def test_keys_come_as_metadata(model_dir: Path) -> None:
    """The same header as over REST."""
    cluster = await start_cluster(model_dir, api_keys="good")
    channel = open_channel(f"127.0.0.1:{cluster.app.grpc_port}")
    try:
        stub = inference_pb2_grpc.InferenceStub(channel)
        request = inference_pb2.ListModelsRequest()
        assert (await refusal(stub.ListModels(request))).code == "invalid_api_key"
        await stub.ListModels(request, metadata=(("authorization", "Bearer good"),))
    finally:
        await channel.close()
        await cluster.stop()
