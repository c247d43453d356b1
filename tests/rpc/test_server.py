"""The server over a real connection: health, reflection, limits, deadlines, latency, stop."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from twolane.core.errors import (
    BodyTooLarge,
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    Overloaded,
    Unavailable,
)
from twolane.rpc.channel import check_remaining_s, open_channel, remaining_s, to_twolane_error
from twolane.rpc.options import MAX_MESSAGE_BYTES
from twolane.rpc.server import RpcServer
from twolane.v1 import broker_pb2
from twolane.v1.broker_pb2_grpc import BrokerServicer, add_BrokerServicer_to_server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ECHO = "twolane.test.Echo"
DEADLINE_S = 20.0


def same(text: str, _context: Any) -> str:
    """Answers what was said."""
    return text


async def failure(call: Any) -> Exception:
    """The error a call ends with, as one of ours."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return to_twolane_error(caught.value)


async def statuses(channel: grpc.aio.Channel) -> dict[str, int]:
    """Health of every service the server names."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    found = {}
    for service in ("", "liveness", "readiness", ECHO):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        found[service] = int(answer.status)
    return found


async def test_a_server_is_live_at_once_and_ready_when_told(start_echo: Any) -> None:
    """Readiness, the services and the whole follow set_ready; liveness does not."""
    echo = await start_echo(same)
    assert await statuses(echo.channel) == {
        "": NOT_SERVING,
        "liveness": SERVING,
        "readiness": NOT_SERVING,
        ECHO: NOT_SERVING,
    }
    await echo.server.set_ready(True)
    assert set((await statuses(echo.channel)).values()) == {SERVING}
    await echo.server.set_ready(False)
    assert (await statuses(echo.channel))["readiness"] == NOT_SERVING


async def test_health_watchers_hear_of_readiness_and_of_the_stop(start_echo: Any) -> None:
    """A load balancer that watches needs no polling."""
    echo = await start_echo(same)
    stub: Any = health_pb2_grpc.HealthStub(echo.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="readiness"))
    async with asyncio.timeout(DEADLINE_S):
        assert (await watch.read()).status == NOT_SERVING
        await echo.server.set_ready(True)
        assert (await watch.read()).status == SERVING
        stopping = asyncio.create_task(echo.server.stop(0.5))
        assert (await watch.read()).status == NOT_SERVING
        await stopping


async def test_an_unknown_service_has_no_health(start_echo: Any) -> None:
    """NOT_FOUND, as the health protocol says."""
    echo = await start_echo(same)
    stub: Any = health_pb2_grpc.HealthStub(echo.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_describes_the_services_as_grpcurl_asks() -> None:
    """List the services, fetch the file of one, find its methods and the types they take."""
    server = RpcServer("test", "127.0.0.1", 0, registry=CollectorRegistry())
    servicer: Any = BrokerServicer
    add_BrokerServicer_to_server(servicer(), server.aio)
    server.add("twolane.v1.Broker")
    channel = open_channel(f"127.0.0.1:{await server.start()}")
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest
    questions = [asked(list_services=""), asked(file_containing_symbol="twolane.v1.Broker")]
    listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(questions))]
    names = {service.name for service in listed.list_services_response.service}
    assert {"twolane.v1.Broker", "grpc.health.v1.Health"} < names
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in described.file_descriptor_response.file_descriptor_proto
    ]
    [broker] = [service for file in files for service in file.service if service.name == "Broker"]
    expected = set(broker_pb2.DESCRIPTOR.services_by_name["Broker"].methods_by_name)
    assert {method.name for method in broker.method} == expected
    assert any(message.name == "GrantLeaseRequest" for file in files for message in file.message_type)
    await channel.close()
    await server.stop(0.0)


async def test_a_taken_port_is_a_configuration_error(start_echo: Any) -> None:
    """Two processes never share a port by accident."""
    echo = await start_echo(same)
    with pytest.raises(ConfigError, match=f":{echo.server.port}") as caught:
        await start_echo(same, echo.server.port)
    assert caught.value.param == "port"


async def test_large_messages_pass_and_too_large_ones_are_named(start_echo: Any) -> None:
    """Far above gRPC's own 4 MiB; a message over the limit can't be helped by a retry."""
    echo = await start_echo(lambda text, _context: str(len(text)))
    assert await echo.say("Unary", "x" * 9_000_000) == ["9000000"]
    error = await failure(echo.say("Unary", "x" * (MAX_MESSAGE_BYTES + 1)))
    assert isinstance(error, BodyTooLarge)


async def test_the_servicer_sees_how_long_the_caller_waits(start_echo: Any) -> None:
    """None without a deadline; a call on the caller's behalf gets at most the rest."""
    seen: list[float | None] = []

    def script(text: str, context: Any) -> str:
        seen.append(remaining_s(context))
        seen.append(check_remaining_s(context, 5.0))
        return text

    echo = await start_echo(script)
    await echo.say("Unary", "")
    assert seen == [None, 5.0]
    await echo.say("Unary", "", timeout=300.0)
    assert seen[2] is not None
    # gRPC rounds the header up.
    assert 200.0 < seen[2] < 310.0
    assert seen[3] == 5.0


async def test_a_passed_deadline_stops_work_on_the_callers_behalf() -> None:
    """No call goes out when nobody waits for its answer."""

    class Late:
        def time_remaining(self) -> float:
            return -0.5

    late: Any = Late()
    assert remaining_s(late) == 0.0
    with pytest.raises(DeadlineExceeded):
        check_remaining_s(late, 5.0)


async def test_a_deadline_ends_the_call_on_both_sides(start_echo: Any) -> None:
    """The client gets DeadlineExceeded and the servicer is cancelled."""
    ended = asyncio.Event()

    async def script(text: str, _context: Any) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return text

    echo = await start_echo(script)
    assert isinstance(await failure(echo.say("Unary", "", timeout=0.1)), DeadlineExceeded)
    await asyncio.wait_for(ended.wait(), DEADLINE_S)


async def test_cancelling_a_stream_cancels_its_servicer(start_echo: Any) -> None:
    """A closed call frees what it holds, at once."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def script(text: str, _context: Any) -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return text

    echo = await start_echo(script)
    saying = asyncio.create_task(echo.say("Stream", ""))
    await asyncio.wait_for(began.wait(), DEADLINE_S)
    saying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saying
    await asyncio.wait_for(ended.wait(), DEADLINE_S)


async def test_latency_is_measured_by_method_and_code(start_echo: Any) -> None:
    """Health checks are left out."""

    def script(text: str, _context: Any) -> str:
        if text == "full":
            raise Overloaded("full")
        return text

    echo = await start_echo(script)
    await echo.say("Unary", "x")
    await failure(echo.say("Unary", "full"))
    await echo.say("Stream", "x")
    await statuses(echo.channel)
    counts = {
        (sample.labels["method"], sample.labels["code"]): sample.value
        for metric in echo.registry.collect()
        for sample in metric.samples
        if sample.name == "twolane_rpc_server_duration_seconds_count"
    }
    assert counts == {
        (f"/{ECHO}/Unary", "OK"): 1.0,
        (f"/{ECHO}/Unary", "RESOURCE_EXHAUSTED"): 1.0,
        (f"/{ECHO}/Stream", "OK"): 1.0,
    }


async def test_two_servers_of_one_process_share_its_registry() -> None:
    """The histogram is made once."""
    registry = CollectorRegistry()
    servers = [RpcServer("test", "127.0.0.1", 0, registry=registry) for _ in range(2)]
    ports = [await server.start() for server in servers]
    assert len(set(ports)) == 2
    for server in servers:
        await server.stop(0.0)


async def test_a_stopping_server_lets_running_calls_end(start_echo: Any) -> None:
    """Within the grace; a second stop does nothing."""
    began, finish = asyncio.Event(), asyncio.Event()

    async def script(text: str, _context: Any) -> str:
        began.set()
        await finish.wait()
        return text

    echo = await start_echo(script)
    saying = asyncio.create_task(echo.say("Unary", "late"))
    await asyncio.wait_for(began.wait(), DEADLINE_S)
    stopping = asyncio.create_task(echo.server.stop(DEADLINE_S))
    await asyncio.sleep(0)
    finish.set()
    assert await asyncio.wait_for(saying, DEADLINE_S) == ["late"]
    await asyncio.wait_for(stopping, DEADLINE_S)
    await echo.server.stop(DEADLINE_S)


async def test_a_channel_finds_a_server_that_comes_back(start_echo: Any) -> None:
    """Unavailable while it is away; the same channel works again, soon."""
    echo = await start_echo(same)
    assert await echo.say("Unary", "one") == ["one"]
    await echo.server.stop(0.0)
    error = await failure(echo.say("Unary", "two"))
    assert isinstance(error, (Unavailable, Cancelled))
    await start_echo(same, echo.server.port)
    assert await echo.say("Unary", "three", wait_for_ready=True, timeout=DEADLINE_S) == ["three"]
