"""A channel to several addresses uses one that lives, and moves on when it dies."""

from __future__ import annotations

import grpc
import pytest
from prometheus_client import CollectorRegistry

from twolane.core.errors import ConfigError
from twolane.rpc.channel import open_channel
from twolane.rpc.server import RpcServer


async def answers(channel: grpc.aio.Channel) -> bool:
    """Whether the health service behind the channel answers."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="liveness")
    answer = await stub.Check(request, timeout=10, wait_for_ready=True)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_the_second_address_serves_when_the_first_dies() -> None:
    """Two servers, one channel; names among the addresses are looked up."""
    servers = [RpcServer("test", "127.0.0.1", 0, registry=CollectorRegistry()) for _ in range(2)]
    ports = [await server.start() for server in servers]
    async with open_channel(f"127.0.0.1:{ports[0]},localhost:{ports[1]}") as channel:
        assert await answers(channel)
        await servers[0].stop(0.0)
        assert await answers(channel)
        await servers[1].stop(0.0)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1,nowhere.invalid:2", "127.0.0.1:1,127.0.0.1", "127.0.0.1:1,[::1]:2"]
)
async def test_a_list_that_can_not_be_used_is_refused(address: str) -> None:
    """The message names the address at fault."""
    with pytest.raises(ConfigError, match=r"nowhere|127\.0\.0\.1"):
        open_channel(address)
