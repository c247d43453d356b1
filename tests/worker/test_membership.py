"""What a worker tells the broker of its prefix cache, when the broker is not always there."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from twolane.engine.pages import PagePool
from twolane.v1 import broker_pb2 as pb
from twolane.v1 import worker_pb2
from twolane.worker.membership import Identity, Membership


class Broker:
    """Takes heartbeats, or loses them."""

    def __init__(self) -> None:
        self.away = False
        self.names: set[bytes] = set()

    async def Heartbeat(self, request: pb.HeartbeatRequest, **_: float) -> pb.HeartbeatResponse:
        """As the broker's state does it: first what was added, then what was removed."""
        if self.away:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
        self.names.update(request.prefix_added)
        self.names.difference_update(request.prefix_removed)
        return pb.HeartbeatResponse()


async def test_a_page_that_went_and_came_back_while_the_broker_was_away_is_known() -> None:
    """Removed in one lost heartbeat and added in the next: the last change counts."""
    pool, broker = PagePool(1, 4), Broker()
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        membership: Any = Membership(
            channel, Identity("w", "", 1), pb.WorkerInfo, worker_pb2.Load, pool, asyncio.Event()
        )
        membership._broker = broker

        def cache(name: bytes) -> None:
            pages = pool.allocate(1)
            pool.publish(pages[0], name)
            pool.release(pages)

        cache(b"a")
        await membership._heartbeat()
        broker.away = True
        for name in (b"b", b"a"):
            cache(name)
            with pytest.raises(grpc.RpcError):
                await membership._heartbeat()
        broker.away = False
        await membership._heartbeat()
        assert broker.names == {b"a"} == set(pool.names())
