"""The owner's dealings over leases: gets one, opens the pages, offers them to the writer, keeps it alive.

The request table calls `arrange` when pages are reserved and `release` when a transfer has ended. The owner
enforces a lease by its own clock: a broker that is away ends nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc

from twolane.core.clock import Clock
from twolane.core.errors import Unavailable
from twolane.decode.intake import Arriving
from twolane.rpc.channel import open_channel
from twolane.rpc.errors import silence_or_error
from twolane.rpc.tls import Tls
from twolane.transfer.landing import ExpectedPages, Landing
from twolane.v1 import transfer_pb2, types_pb2, worker_pb2
from twolane.v1.transfer_pb2_grpc import PageTransferStub
from twolane.worker.broker_leases import CALL_TIMEOUT_S, BrokerLeases
from twolane.worker.membership import Identity

log = logging.getLogger(__name__)

# Longest pause between two renewals; what could not be given back is tried again as often.
RENEWAL_S = 1.0


class Leases:
    """Leases on this worker's pages.

    Args:
        broker: channel to the broker.
        identity: this worker's id, incarnation and address.
        landing: opened for each lease.
        fingerprint: what this worker runs; writers must run the same.
        now: the landing's clock.

    Attributes:
        stream_address: where page streams are taken; empty until the process listens there.
        tls: shown to the writers' workers; None: offers go in plain text.
    """

    def __init__(
        self,
        broker: grpc.aio.Channel,
        identity: Identity,
        landing: Landing,
        fingerprint: types_pb2.ModelFingerprint,
        now: Clock,
    ) -> None:
        self._broker = BrokerLeases(broker, identity, now)
        self._identity = identity
        self._landing = landing
        self._fingerprint = fingerprint
        self._now = now
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._returning: asyncio.Task[None] | None = None
        self.stream_address = ""
        self.tls: Tls | None = None

    async def arrange(self, arriving: Arriving, peer: worker_pb2.Peer) -> None:
        """Gets a lease for reserved pages, opens them and offers them to the peer.

        When the request ends while the broker is asked, nothing is opened; the caller releases the lease.

        Raises:
            TwolaneError: the broker refuses, or the peer can't be reached.
        """
        sequence, page_tokens = arriving.sequence, self._fingerprint.page_tokens
        first = arriving.skip_tokens // page_tokens
        prompt_tokens = len(sequence.tokens)
        page_ids = sequence.page_ids[first : -(-prompt_tokens // page_tokens)]
        lease = await self._broker.grant(sequence.request_id, peer, len(page_ids))
        arriving.lease_id = lease.lease_id
        if arriving.removed:
            # The request ended meanwhile: nobody may write into pages that are no longer its own.
            return
        expires_s = self._now() + lease.ttl_ms / 1000
        self._landing.expect(ExpectedPages(lease, tuple(page_ids), prompt_tokens, expires_s))
        offer = transfer_pb2.PageOffer(
            lease=lease,
            page_ids=page_ids,
            skip_tokens=arriving.skip_tokens,
            address=self._identity.address,
            fingerprint=self._fingerprint,
            stream_address=self.stream_address,
        )
        try:
            await PageTransferStub(self._channel(peer.address)).Offer(offer, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            reason = silence_or_error(error, f"the worker at {peer.address}")
            # Not this worker is at fault: the router looks for another in the peer's place.
            reason.param = "peer"
            raise reason from error

    def release(self, lease_id: str) -> None:
        """Closes the pages at once and gives the lease back to the broker soon."""
        if lease_id:
            self._landing.close(lease_id)
            self._broker.give_back(lease_id)
            self._give_back_soon()

    async def keep_alive(self, expired: Callable[[str], None]) -> None:
        """Renews open leases before a third of their time has passed; runs until cancelled.

        Args:
            expired: called with the request of a lease whose writer, or this worker, was replaced.
        """
        while True:
            times_s = (lease.ttl_ms / 1000 for lease in self._landing.leases())
            await asyncio.sleep(min([3 * RENEWAL_S, *times_s]) / 3)
            self._give_back_soon()
            await self._renew(expired)

    async def close(self) -> None:
        """Gives back what is left and closes the channels to peers."""
        if self._returning is not None:
            await asyncio.wait({self._returning}, timeout=CALL_TIMEOUT_S)
        for channel in self._channels.values():
            await channel.close()

    async def _renew(self, expired: Callable[[str], None]) -> None:
        leases = self._landing.leases()
        if not leases:
            return
        ended = set(await self._broker.renew(leases) or ())
        now_s = self._now()
        for lease in leases:
            if lease.lease_id not in ended:
                self._landing.renew(lease.lease_id, now_s + lease.ttl_ms / 1000)
            elif self._landing.end(lease.lease_id):
                expired(lease.request_id)

    def _give_back_soon(self) -> None:
        if self._returning is None or self._returning.done():
            self._returning = asyncio.create_task(self._broker.flush(), name="release-leases")

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            if not address:
                raise Unavailable("the router named no address of the other worker")
            self._channels[address] = open_channel(address, self.tls, "worker")
        return self._channels[address]
