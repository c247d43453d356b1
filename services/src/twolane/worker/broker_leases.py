"""A worker's calls to the broker about leases: grant, renew, give back; tolerates a broker that is away.

`leases.py` owns the pages and decides what follows from the answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import grpc

from twolane.core.clock import Clock
from twolane.core.errors import DeadlineExceeded, LeaseInvalid, TwolaneError, Unavailable
from twolane.rpc.channel import to_twolane_error
from twolane.v1 import broker_pb2, transfer_pb2, worker_pb2
from twolane.v1.broker_pb2_grpc import BrokerStub
from twolane.worker.membership import Identity
from twolane.worker.own_leases import OwnLeases

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 5.0
# A broker that did not answer is left alone for so long: no request waits for it meanwhile.
AWAY_S = 1.0
# How long a broker that has just started may not know the writer yet.
WRITER_UNKNOWN_S = 3.0
RETRY_S = 0.1
# Ids to give back that are kept while the broker is away; it expires what is beyond.
MAX_RETURNED = 10_000


class BrokerLeases:
    """Leases at the broker, for one owner.

    Args:
        broker: channel to the broker, or to several replicas.
        identity: the owner.
        now: clock of waits.
    """

    def __init__(self, broker: grpc.aio.Channel, identity: Identity, now: Clock) -> None:
        self._broker = BrokerStub(broker)
        self._identity = identity
        self._now = now
        self._own = OwnLeases(identity)
        self._away_until_s = 0.0
        self._returned: list[str] = []
        # A renewal that is under way must not bring a lease back that was given back meanwhile.
        self._in_order = asyncio.Lock()

    async def grant(self, request_id: str, peer: worker_pb2.Peer, n_pages: int) -> transfer_pb2.Lease:
        """A lease by the broker, or by ourselves while it is away.

        Raises:
            TwolaneError: the broker refuses: another model, a replaced or unknown writer.
        """
        patience_s = self._now() + WRITER_UNKNOWN_S
        while self._now() >= self._away_until_s:
            try:
                lease = await self._ask_twice(request_id, peer, n_pages)
                self._own.learn(lease)
                return lease
            except (Unavailable, DeadlineExceeded) as error:
                self._away_until_s = self._now() + AWAY_S
                log.warning("no lease from the broker, granting it here: %s", error.message)
            except LeaseInvalid as error:
                if error.param == "owner_id":
                    # It forgot us; the next heartbeat tells it.
                    break
                if error.param != "writer_id" or self._now() >= patience_s:
                    raise
                await asyncio.sleep(RETRY_S)
        return self._own.grant(request_id, peer)

    async def renew(self, leases: Sequence[transfer_pb2.Lease]) -> list[str] | None:
        """Prolongs leases; returns the ids of those that must end, or None when no broker answered."""
        timeout_s = min([CALL_TIMEOUT_S, *(lease.ttl_ms / 3000 for lease in leases)])
        async with self._in_order:
            given_back = set(self._returned)
            request = broker_pb2.RenewLeasesRequest(
                owner_id=self._identity.worker_id, owner_incarnation=self._identity.incarnation
            )
            for lease in leases:
                if lease.lease_id not in given_back:
                    request.lease_ids.append(lease.lease_id)
                    # One from before we were registered, or replaced, is not ours in the broker's eyes.
                    if lease.owner_incarnation == self._identity.incarnation:
                        request.leases.append(lease)
            try:
                answer = await self._broker.RenewLeases(request, timeout=timeout_s)
            except grpc.RpcError as rpc_error:
                error = to_twolane_error(rpc_error)
                log.warning("cannot renew leases, going on without the broker: %s", error.message)
                return None
        return list(answer.expired)

    def give_back(self, lease_id: str) -> None:
        """Remembers a lease to be given back by the next `flush`."""
        self._returned.append(lease_id)
        del self._returned[:-MAX_RETURNED]

    async def flush(self) -> None:
        """Gives back what is due; what the broker does not take stays for the next time."""
        while self._returned:
            lease_ids, self._returned = self._returned, []
            async with self._in_order:
                try:
                    await self._broker.ReleaseLeases(
                        broker_pb2.ReleaseLeasesRequest(
                            owner_id=self._identity.worker_id,
                            owner_incarnation=self._identity.incarnation,
                            lease_ids=lease_ids,
                        ),
                        timeout=CALL_TIMEOUT_S,
                    )
                except grpc.RpcError as error:
                    reason = to_twolane_error(error).message
                    log.warning("cannot give back %d leases yet: %s", len(lease_ids), reason)
                    self._returned = [*lease_ids, *self._returned][-MAX_RETURNED:]
                    return

    async def _ask_twice(self, request_id: str, peer: worker_pb2.Peer, n_pages: int) -> transfer_pb2.Lease:
        """The second time a replica that lives gets the call that the first one took down with it."""
        try:
            return await self._ask(request_id, peer, n_pages)
        except Unavailable:
            return await self._ask(request_id, peer, n_pages)

    async def _ask(self, request_id: str, peer: worker_pb2.Peer, n_pages: int) -> transfer_pb2.Lease:
        request = broker_pb2.GrantLeaseRequest(
            request_id=request_id,
            owner_id=self._identity.worker_id,
            owner_incarnation=self._identity.incarnation,
            writer_id=peer.worker_id,
            writer_incarnation=peer.incarnation,
            n_pages=n_pages,
        )
        try:
            answer = await self._broker.GrantLease(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as rpc_error:
            error: TwolaneError = to_twolane_error(rpc_error)
            raise error from rpc_error
        if not answer.lease.lease_id:
            raise LeaseInvalid("the broker granted a lease without an id")
        return answer.lease
