"""The gRPC face: what grpcurl shows, unary and streaming answers, cancel by closing, health."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.e2e.conftest import Product, eventually
from twolane.v1 import inference_pb2 as pb
from twolane.v1 import types_pb2
from twolane.v1.inference_pb2_grpc import InferenceStub

SERVED = {
    "router": {"twolane.v1.Inference"},
    "prefill-0": {"twolane.v1.Worker", "twolane.v1.PageTransfer"},
    "decode-0": {"twolane.v1.Worker", "twolane.v1.PageTransfer"},
    "broker": {"twolane.v1.Broker"},
}


@pytest.fixture
def stub(product: Product) -> Iterator[InferenceStub]:
    """A client of the router's gRPC port."""
    with grpc.insecure_channel(f"127.0.0.1:{product.ports('router')['grpc']}") as channel:
        yield InferenceStub(channel)


@pytest.mark.parametrize("name", list(SERVED))
def test_reflection_and_health_on_every_process(product: Product, name: str) -> None:
    """A client without our stubs finds the services, and health says that they serve."""
    with grpc.insecure_channel(f"127.0.0.1:{product.ports(name)['grpc']}") as channel:
        services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
        assert services >= SERVED[name]
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "readiness", *SERVED[name]):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def request(max_tokens: int, **fields: object) -> pb.GenerateRequest:
    """A greedy text request."""
    sampling = types_pb2.SamplingParams(max_tokens=max_tokens, temperature=0)
    return pb.GenerateRequest(text="Once upon a time", sampling=sampling, **fields)  # type: ignore[arg-type]


def test_unary_and_streamed_answers_agree(stub: InferenceStub) -> None:
    """The same tokens, in one message or piece by piece."""
    whole = stub.Generate(request(20, return_token_ids=True), timeout=60)
    pieces = list(stub.GenerateStream(request(20, return_token_ids=True), timeout=60))
    assert "".join(piece.text for piece in pieces) == whole.choices[0].text
    assert [token for piece in pieces for token in piece.token_ids] == list(whole.choices[0].token_ids)
    assert pieces[-1].usage == whole.usage
    assert whole.usage.completion_tokens == 20


def test_tokens_and_chat_are_taken_too(stub: InferenceStub) -> None:
    """All three kinds of input are answered."""
    tokens = pb.GenerateRequest(tokens=pb.TokenIds(ids=[5, 6, 7]), sampling=request(3).sampling)
    assert stub.Generate(tokens, timeout=60).usage.prompt_tokens == 3
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hello!")])
    assert (
        stub.Generate(pb.GenerateRequest(chat=chat, sampling=request(9).sampling), timeout=60).choices[0].text
    )


def test_closing_the_call_frees_everything(product: Product, stub: InferenceStub) -> None:
    """Cancel travels to both workers."""
    message = request(3000)
    message.sampling.ignore_eos = True
    call = stub.GenerateStream(message, timeout=60)
    next(call)
    call.cancel()
    eventually(lambda: product.books("decode-0").held_pages == 0)
    eventually(lambda: product.books("prefill-0").held_pages == 0)


def test_the_deadline_travels(product: Product, stub: InferenceStub) -> None:
    """The call's deadline ends the work, and the status says so."""
    message = request(7000)
    message.sampling.ignore_eos = True
    with pytest.raises(grpc.RpcError) as caught:
        stub.Generate(message, timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: product.books("decode-0").held_pages == 0)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        pytest.param(pb.GenerateRequest(), grpc.StatusCode.INVALID_ARGUMENT, id="no input"),
        pytest.param(
            pb.GenerateRequest(text="x", model="other"), grpc.StatusCode.NOT_FOUND, id="unknown model"
        ),
        pytest.param(
            pb.GenerateRequest(tokens=pb.TokenIds(ids=[10**6])),
            grpc.StatusCode.INVALID_ARGUMENT,
            id="unknown token",
        ),
        pytest.param(
            pb.GenerateRequest(text="x", stop=["y"] * 100),
            grpc.StatusCode.INVALID_ARGUMENT,
            id="too many stops",
        ),
    ],
)
def test_bad_requests_have_a_status(
    stub: InferenceStub, message: pb.GenerateRequest, status: grpc.StatusCode
) -> None:
    """Errors of the tree become gRPC statuses."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.Generate(message, timeout=30)
    assert caught.value.code() is status
