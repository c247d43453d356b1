"""Tells decode workers which prompts begin here, in order, so that they give them pages first.

The request table announces; one call at a time to each peer carries all that was announced since the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from twolane.core.errors import TwolaneError
from twolane.rpc.channel import open_channel
from twolane.rpc.errors import silence_or_error
from twolane.rpc.tls import Tls
from twolane.v1 import transfer_pb2, worker_pb2
from twolane.v1.transfer_pb2_grpc import PageTransferStub
from twolane.worker.broker_leases import CALL_TIMEOUT_S
from twolane.worker.membership import Identity


class Wants:
    """Announcements to peers.

    Args:
        identity: this worker's.
        tls: shown to peers; None: calls go in plain text.
        on_failed: called with a request and why its peer could not be told.
    """

    def __init__(
        self, identity: Identity, tls: Tls | None, on_failed: Callable[[str, TwolaneError], None]
    ) -> None:
        self._identity = identity
        self._tls = tls
        self._on_failed = on_failed
        self._pending: dict[str, list[str]] = {}
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._channels: dict[str, grpc.aio.Channel] = {}

    def announce(self, peer: worker_pb2.Peer, request_id: str) -> None:
        """Tells the peer soon that the request's prompt has begun."""
        address = peer.address
        self._pending.setdefault(address, []).append(request_id)
        if address not in self._calls:
            self._calls[address] = asyncio.create_task(self._tell(address), name=f"want-{address}")

    async def close(self) -> None:
        """Ends what is under way and closes the channels to peers."""
        calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for channel in self._channels.values():
            await channel.close()

    async def _tell(self, address: str) -> None:
        try:
            while request_ids := self._pending.pop(address, []):
                wanted = transfer_pb2.PagesWanted(writer_id=self._identity.worker_id, request_ids=request_ids)
                try:
                    await PageTransferStub(self._channel(address)).Want(wanted, timeout=CALL_TIMEOUT_S)
                except grpc.RpcError as error:
                    self._failed(address, request_ids, error)
        finally:
            del self._calls[address]

    def _failed(self, address: str, request_ids: list[str], error: grpc.RpcError) -> None:
        if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNIMPLEMENTED:
            # An older worker reserves when the request arrives.
            return
        reason = silence_or_error(error, f"the worker at {address}")
        # Not this worker is at fault: the router looks for another in the peer's place.
        reason.param = "peer"
        for request_id in request_ids:
            self._on_failed(request_id, reason)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = open_channel(address, self._tls, "worker")
        return self._channels[address]
