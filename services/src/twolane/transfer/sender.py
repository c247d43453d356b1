"""The writer's side of a transfer: sends the pages of prompts as they are computed.

The prefill worker opens a transfer per request, tells it when pages are ready and when the prompt is
complete; the offer with the lease comes from the decode worker, earlier or later than the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from twolane.core.clock import Clock
from twolane.core.errors import Incompatible, TwolaneError
from twolane.transfer.landing import lease_entry
from twolane.transfer.push_stream import Delivery, PushStream
from twolane.transfer.transports import TransportCodec
from twolane.v1 import transfer_pb2 as pb
from twolane.v1 import types_pb2, worker_pb2

Landed = Callable[[str], None]
Failed = Callable[[str, TwolaneError], None]


@dataclass
class Outgoing:
    """One prompt's pages on their way.

    Attributes:
        request_id: the request.
        page_tokens: tokens of a page.
        page_ids: this worker's pages in prompt order; set when prefill starts.
        ready_pages: leading pages that are computed.
        sent_pages: leading pages that were queued for sending or skipped.
        offer: where they go; None until the decode worker's offer is there.
        handover: generated tokens and prompt length, once the prompt is complete.
    """

    request_id: str
    page_tokens: int
    page_ids: Sequence[int] = ()
    ready_pages: int = 0
    sent_pages: int = 0
    offer: pb.PageOffer | None = None
    handover: pb.Handover | None = None


class Sender:
    """All transfers that leave this worker.

    Args:
        codecs: transports by number.
        page_tokens: tokens of a page.
        now: clock for offers that nobody claims.
        on_landed: called with the request's id when everything has landed at the peer.
        on_failed: called with the request's id and why its transfer ended.
    """

    def __init__(
        self,
        codecs: Mapping[pb.Transport.ValueType, TransportCodec],
        page_tokens: int,
        now: Clock,
        on_landed: Landed,
        on_failed: Failed,
    ) -> None:
        self._codecs = codecs
        self._page_tokens = page_tokens
        self._now = now
        self._on_landed = on_landed
        self._on_failed = on_failed
        self._outgoing: dict[str, Outgoing] = {}
        self._unclaimed: dict[str, tuple[float, pb.PageOffer]] = {}
        self._streams: dict[str, PushStream] = {}

    def offer(self, offer: pb.PageOffer) -> None:
        """Takes the decode worker's offer; one whose request is not here yet waits until its lease ends."""
        now_s = self._now()
        self._unclaimed = {key: kept for key, kept in self._unclaimed.items() if kept[0] > now_s}
        if (outgoing := self._outgoing.get(offer.lease.request_id)) is None:
            expires_s = now_s + offer.lease.ttl_ms / 1000
            self._unclaimed[offer.lease.request_id] = (expires_s, offer)
            return
        self._start(outgoing, offer)

    def open(self, request_id: str) -> None:
        """A request whose pages will have to be sent is here."""
        outgoing = self._outgoing[request_id] = Outgoing(request_id, self._page_tokens)
        if (waiting := self._unclaimed.pop(request_id, None)) is not None:
            self._start(outgoing, waiting[1])

    def advance(self, request_id: str, page_ids: Sequence[int], computed_tokens: int) -> None:
        """Leading pages are computed: the full ones can go. Unknown requests are ignored."""
        if (outgoing := self._outgoing.get(request_id)) is not None:
            outgoing.page_ids = page_ids
            outgoing.ready_pages = computed_tokens // self._page_tokens
            self._pump(outgoing)

    def complete(self, request_id: str, prompt_tokens: int, generated: Sequence[int]) -> None:
        """The prompt is computed: its last page may go too, then the handover."""
        if (outgoing := self._outgoing.get(request_id)) is not None:
            outgoing.ready_pages = -(-prompt_tokens // self._page_tokens)
            outgoing.handover = pb.Handover(generated_tokens=generated, prompt_tokens=prompt_tokens)
            self._pump(outgoing)

    def end(self, request_id: str, error: TwolaneError | None) -> None:
        """Ends a transfer from this side; with an error, the peer that made an offer is told."""
        outgoing = self._outgoing.pop(request_id, None)
        waiting = self._unclaimed.pop(request_id, None)
        offer = outgoing.offer if outgoing is not None else waiting[1] if waiting is not None else None
        if offer is None or error is None:
            return
        push = pb.PagePush(lease_id=offer.lease.lease_id, fence=offer.lease.fence)
        push.abort.CopyFrom(types_pb2.Error(code=error.code, message=error.message))
        self._stream(offer.address).deliver(Delivery(iter([push]), lambda _error: None))

    def lease_ids(self) -> list[str]:
        """Leases that this worker writes under."""
        offers = [entry.offer for entry in self._outgoing.values()]
        return [offer.lease.lease_id for offer in offers if offer is not None]

    def books(self) -> list[worker_pb2.LeaseEntry]:
        """The same for auditors."""
        offers = [entry.offer for entry in self._outgoing.values()]
        return [
            lease_entry(offer.lease, len(offer.page_ids), owner=False)
            for offer in offers
            if offer is not None
        ]

    async def close(self) -> None:
        """Ends all streams."""
        for stream in self._streams.values():
            await stream.close()

    def _start(self, outgoing: Outgoing, offer: pb.PageOffer) -> None:
        if offer.lease.transport not in self._codecs:
            reason = f"the lease asks for transport {offer.lease.transport}, which this worker lacks"
            self._finish(outgoing.request_id, Incompatible(reason))
            return
        outgoing.offer = offer
        outgoing.sent_pages = offer.skip_tokens // self._page_tokens
        self._pump(outgoing)

    def _pump(self, outgoing: Outgoing) -> None:
        offer, handover = outgoing.offer, outgoing.handover
        if offer is None or (outgoing.ready_pages <= outgoing.sent_pages and handover is None):
            return
        first, last = outgoing.sent_pages, max(outgoing.ready_pages, outgoing.sent_pages)
        outgoing.sent_pages = last
        skipped = offer.skip_tokens // self._page_tokens
        target_ids = list(offer.page_ids[first - skipped : last - skipped])
        pushes = self._pushes(offer, outgoing.page_ids[first:last], target_ids, handover)
        self._stream(offer.address).deliver(
            Delivery(pushes, lambda error: self._delivered(outgoing.request_id, handover is not None, error))
        )

    def _pushes(
        self,
        offer: pb.PageOffer,
        source_ids: Sequence[int],
        target_ids: list[int],
        handover: pb.Handover | None,
    ) -> Iterator[pb.PagePush]:
        lease = offer.lease
        if source_ids:
            for run in self._codecs[lease.transport].pack(source_ids, target_ids):
                yield pb.PagePush(lease_id=lease.lease_id, fence=lease.fence, run=run)
        if handover is not None:
            yield pb.PagePush(lease_id=lease.lease_id, fence=lease.fence, handover=handover)

    def _delivered(self, request_id: str, last: bool, error: TwolaneError | None) -> None:
        if error is not None or last:
            self._finish(request_id, error)

    def _finish(self, request_id: str, error: TwolaneError | None) -> None:
        if self._outgoing.pop(request_id, None) is None:
            return
        if error is None:
            self._on_landed(request_id)
        else:
            self._on_failed(request_id, error)

    def _stream(self, address: str) -> PushStream:
        if (stream := self._streams.get(address)) is None or stream.lost:
            stream = self._streams[address] = PushStream(address)
        return stream
