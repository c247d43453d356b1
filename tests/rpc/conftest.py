"""A service over well-known messages that does what a test's script says, on a real local server."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from prometheus_client import CollectorRegistry

from twolane.rpc.channel import open_channel
from twolane.rpc.server import RpcServer
from twolane.rpc.tls import Tls

SERVICE = "twolane.test.Echo"
Script = Callable[[str, Any], Any]

KINDS = {
    "Unary": "unary_unary",
    "Stream": "unary_stream",
    "Written": "unary_stream",
    "Collect": "stream_unary",
    "Talk": "stream_stream",
}


@dataclass
class Echo:
    """A running echo server and its client.

    Attributes:
        server: the server under test.
        channel: a channel to it.
        registry: the server's metrics.
    """

    server: RpcServer
    channel: grpc.aio.Channel
    registry: CollectorRegistry

    def method(self, name: str) -> Any:
        """A callable for Unary, Stream, Written (a stream by context.write), Collect or Talk."""
        return getattr(self.channel, KINDS[name])(
            f"/{SERVICE}/{name}",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=StringValue.FromString,
        )

    async def say(self, name: str, text: str, **options: Any) -> list[str]:
        """Calls a method with one message; returns all answers."""
        kind, message = KINDS[name], StringValue(value=text)
        request: Any = iter([message]) if kind.startswith("stream") else message
        call = self.method(name)(request, **options)
        if kind.endswith("unary"):
            return [(await call).value]
        return [answer.value async for answer in call]


async def _answer(script: Script, text: str, context: Any) -> StringValue:
    answer = script(text, context)
    return StringValue(value=await answer if inspect.isawaitable(answer) else answer)


def add_echo(server: RpcServer, script: Script) -> None:
    """Adds the service in all five shapes."""

    async def unary(request: StringValue, context: Any) -> StringValue:
        return await _answer(script, request.value, context)

    async def stream(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield await _answer(script, request.value, context)

    async def written(request: StringValue, context: Any) -> None:
        await context.write(await _answer(script, request.value, context))

    async def collect(requests: AsyncIterator[StringValue], context: Any) -> StringValue:
        return await _answer(script, "".join([request.value async for request in requests]), context)

    async def talk(requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield await _answer(script, request.value, context)

    codecs: dict[str, Any] = {
        "request_deserializer": StringValue.FromString,
        "response_serializer": StringValue.SerializeToString,
    }
    handlers: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary, **codecs),
        "Stream": grpc.unary_stream_rpc_method_handler(stream, **codecs),
        "Written": grpc.unary_stream_rpc_method_handler(written, **codecs),
        "Collect": grpc.stream_unary_rpc_method_handler(collect, **codecs),
        "Talk": grpc.stream_stream_rpc_method_handler(talk, **codecs),
    }
    server.aio.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add(SERVICE)


StartEcho = Callable[..., Awaitable[Echo]]


@pytest.fixture
async def start_echo() -> AsyncIterator[StartEcho]:
    """Starts servers whose answer to a text is what `script(text, context)` returns or raises."""
    started: list[Echo] = []

    async def start(
        script: Script, port: int = 0, *, server_tls: Tls | None = None, client_tls: Tls | None = None
    ) -> Echo:
        registry = CollectorRegistry()
        server = RpcServer("test", "127.0.0.1", port, registry=registry, tls=server_tls)
        add_echo(server, script)
        bound = await server.start()
        started.append(Echo(server, open_channel(f"127.0.0.1:{bound}", client_tls), registry))
        return started[-1]

    yield start
    for echo in started:
        await echo.channel.close()
        await echo.server.stop(0.0)
