"""This worker's place in the cluster: registration, heartbeats, and what it says of its prefix cache.

The process starts it when the model is loaded. A broker that is away is tried again for ever; one
that refuses the worker (another model under the same name) ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from twolane.core.errors import Incompatible, NotFound
from twolane.engine.pages import PagePool
from twolane.rpc.channel import to_twolane_error
from twolane.v1 import broker_pb2 as pb
from twolane.v1 import worker_pb2
from twolane.v1.broker_pb2_grpc import BrokerStub

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 5.0
RETRY_S = 0.5


@dataclass
class Identity:
    """Who this worker is for others; the incarnation is 0 until the broker has given one."""

    worker_id: str
    address: str
    incarnation: int = 0


class Membership:
    """Keeps one worker registered.

    Args:
        broker: channel to the broker.
        identity: gets its incarnation here.
        info: the worker's announcement, current role and draining included.
        load: the worker's load now.
        pool: whose cached prefixes are announced.
        changed: set when the announcement should be made again at once.
    """

    def __init__(
        self,
        broker: grpc.aio.Channel,
        identity: Identity,
        info: Callable[[], pb.WorkerInfo],
        load: Callable[[], worker_pb2.Load],
        pool: PagePool,
        changed: asyncio.Event,
    ) -> None:
        self._broker = BrokerStub(broker)
        self._identity = identity
        self._info = info
        self._load = load
        self._pool = pool
        self._changed = changed
        self._interval_s = RETRY_S
        # Changes of the cache that no broker has confirmed: whether each name is in it now. The last change
        # counts, as a heartbeat that failed may have been taken all the same.
        self._unconfirmed: dict[bytes, bool] = {}

    @property
    def registered(self) -> bool:
        """Whether a broker has taken this worker in."""
        return self._identity.incarnation > 0

    async def run(self) -> None:
        """Registers and sends heartbeats until cancelled.

        Raises:
            Incompatible: the broker refuses this worker's model.
        """
        await self._register_until_taken()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._interval_s)
            self._changed.clear()
            try:
                await self._heartbeat()
            except NotFound:
                log.warning("the broker does not know this worker any more; registering again")
                await self._register_until_taken()
            except grpc.RpcError as error:
                log.warning("heartbeat failed: %s", to_twolane_error(error).message)

    async def leave(self) -> None:
        """Tells the broker that this worker is gone; a broker that is away finds out by itself."""
        if not self.registered:
            return
        request = pb.DeregisterRequest(
            worker_id=self._identity.worker_id, incarnation=self._identity.incarnation
        )
        try:
            await self._broker.Deregister(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            log.warning("cannot deregister: %s", to_twolane_error(error).message)

    async def _register_until_taken(self) -> None:
        warned = False
        while True:
            try:
                await self._register()
                return
            except grpc.RpcError as rpc_error:
                error = to_twolane_error(rpc_error)
                if isinstance(error, Incompatible):
                    raise error from rpc_error
                log.log(
                    logging.DEBUG if warned else logging.WARNING,
                    "cannot register at the broker: %s; trying on",
                    error.message,
                )
                warned = True
                await asyncio.sleep(RETRY_S)

    async def _register(self) -> None:
        self._pool.drain_changes()
        self._unconfirmed.clear()
        request = pb.RegisterRequest(worker=self._info(), prefix_hashes=self._pool.names())
        held = request.worker.incarnation = self._identity.incarnation
        answer = await self._broker.Register(request, timeout=CALL_TIMEOUT_S)
        if held and answer.incarnation != held:
            log.error("another process has registered as %s: give each its own id", self._identity.worker_id)
        self._identity.incarnation = answer.incarnation
        self._interval_s = answer.heartbeat_interval_ms / 1000
        facts = {"worker_id": self._identity.worker_id, "incarnation": answer.incarnation}
        log.info("registered", extra=facts)

    async def _heartbeat(self) -> None:
        added, removed = self._pool.drain_changes()
        self._unconfirmed |= dict.fromkeys(removed, False) | dict.fromkeys(added, True)
        info = self._info()
        request = pb.HeartbeatRequest(
            worker_id=self._identity.worker_id,
            incarnation=self._identity.incarnation,
            load=self._load(),
            role=info.role,
            lane=info.lane,
            draining=info.draining,
            prefix_added=[name for name, there in self._unconfirmed.items() if there],
            prefix_removed=[name for name, there in self._unconfirmed.items() if not there],
        )
        try:
            await self._broker.Heartbeat(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as rpc_error:
            error = to_twolane_error(rpc_error)
            if isinstance(error, NotFound):
                raise error from rpc_error
            raise
        self._unconfirmed.clear()
