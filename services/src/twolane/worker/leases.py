"""The owner's dealings over leases: asks the broker, offers the pages to the writer, renews, gives back.

The request table calls `arrange` when pages are reserved and `release` when a transfer has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc

from twolane.core.clock import Clock
from twolane.core.errors import LeaseInvalid
from twolane.decode.intake import Arriving
from twolane.rpc.channel import open_channel, to_twolane_error
from twolane.transfer.landing import ExpectedPages, Landing
from twolane.v1 import broker_pb2, transfer_pb2, worker_pb2
from twolane.v1.broker_pb2_grpc import BrokerStub
from twolane.v1.transfer_pb2_grpc import PageTransferStub
from twolane.worker.membership import Identity

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 5.0


class Leases:
    """Leases on this worker's pages.

    Args:
        broker: channel to the broker.
        identity: this worker's id, incarnation and address.
        landing: opened for each lease.
        page_tokens: tokens of a page.
        now: the landing's clock.
    """

    def __init__(
        self, broker: grpc.aio.Channel, identity: Identity, landing: Landing, page_tokens: int, now: Clock
    ) -> None:
        self._broker = BrokerStub(broker)
        self._identity = identity
        self._landing = landing
        self._page_tokens = page_tokens
        self._now = now
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._returned: list[str] = []
        self._returning: asyncio.Task[None] | None = None
        self._ttl_s: dict[str, float] = {}

    async def arrange(self, arriving: Arriving, peer: worker_pb2.Peer) -> None:
        """Gets a lease for reserved pages, opens them and offers them to the peer.

        Raises:
            TwolaneError: the broker refuses or can't be reached, or the peer can't be.
        """
        sequence = arriving.sequence
        first = arriving.skip_tokens // self._page_tokens
        prompt_tokens = len(sequence.tokens)
        last = -(-prompt_tokens // self._page_tokens)
        page_ids = sequence.page_ids[first:last]
        try:
            lease = await self._grant(sequence.request_id, peer, len(page_ids))
            arriving.lease_id = lease.lease_id
            expires_s = self._now() + lease.ttl_ms / 1000
            self._ttl_s[lease.lease_id] = lease.ttl_ms / 1000
            self._landing.expect(ExpectedPages(lease, tuple(page_ids), prompt_tokens, expires_s))
            offer = transfer_pb2.PageOffer(
                lease=lease,
                page_ids=page_ids,
                skip_tokens=arriving.skip_tokens,
                address=self._identity.address,
            )
            await PageTransferStub(self._channel(peer.address)).Offer(offer, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise to_twolane_error(error) from error

    def release(self, lease_id: str) -> None:
        """Closes the pages at once and gives the lease back to the broker soon."""
        if not lease_id:
            return
        self._landing.close(lease_id)
        self._ttl_s.pop(lease_id, None)
        self._returned.append(lease_id)
        if self._returning is None or self._returning.done():
            self._returning = asyncio.create_task(self._return(), name="release-leases")

    async def keep_alive(
        self, open_leases: Callable[[], dict[str, str]], expired: Callable[[str], None]
    ) -> None:
        """Renews open leases before a third of their time has passed; runs until cancelled.

        Args:
            open_leases: lease ids that are out, with their requests.
            expired: called with the request of a lease that the broker no longer knows.
        """
        while True:
            await asyncio.sleep(min([*self._ttl_s.values(), 3.0]) / 3)
            requests = open_leases()
            if not requests:
                continue
            try:
                answer = await self._broker.RenewLeases(self._renewal(list(requests)), timeout=CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                log.warning("cannot renew leases: %s", to_twolane_error(error).message)
                continue
            for lease_id in set(requests) - set(answer.expired):
                self._landing.renew(lease_id, self._now() + self._ttl_s.get(lease_id, 0.0))
            for lease_id in answer.expired:
                expired(requests[lease_id])

    async def close(self) -> None:
        """Gives back what is left and closes the channels to peers."""
        if self._returning is not None:
            await asyncio.wait({self._returning}, timeout=CALL_TIMEOUT_S)
        for channel in self._channels.values():
            await channel.close()

    async def _grant(self, request_id: str, peer: worker_pb2.Peer, n_pages: int) -> transfer_pb2.Lease:
        answer = await self._broker.GrantLease(
            broker_pb2.GrantLeaseRequest(
                request_id=request_id,
                owner_id=self._identity.worker_id,
                owner_incarnation=self._identity.incarnation,
                writer_id=peer.worker_id,
                writer_incarnation=peer.incarnation,
                n_pages=n_pages,
            ),
            timeout=CALL_TIMEOUT_S,
        )
        if not answer.lease.lease_id:
            raise LeaseInvalid("the broker granted a lease without an id")
        return answer.lease

    async def _return(self) -> None:
        while self._returned:
            lease_ids, self._returned = self._returned, []
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
                # The broker expires them by itself.
                log.warning("cannot give back %d leases: %s", len(lease_ids), to_twolane_error(error).message)

    def _renewal(self, lease_ids: list[str]) -> broker_pb2.RenewLeasesRequest:
        return broker_pb2.RenewLeasesRequest(
            owner_id=self._identity.worker_id,
            owner_incarnation=self._identity.incarnation,
            lease_ids=lease_ids,
        )

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = open_channel(address)
        return self._channels[address]
