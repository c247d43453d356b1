"""The writer's side of a transfer: sends the pages of prompts as they are computed.

The prefill worker opens a transfer per request, tells it when pages are ready and when the prompt is
complete; the offer with the lease comes from the decode worker, earlier or later than the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from twolane.core.clock import Clock
from twolane.core.errors import Incompatible, TwolaneError
from twolane.rpc.tls import Tls
from twolane.transfer.delivery import Delivery, Outbound
from twolane.transfer.landing import lease_entry
from twolane.transfer.metrics import TransferMetrics, transport_name
from twolane.transfer.outgoing import Outgoing, Portion
from twolane.transfer.page_store import PageMemory
from twolane.transfer.push_stream import GrpcStream, PushStream
from twolane.transfer.tcp_stream import TcpStream
from twolane.transfer.transports import TransportCodec
from twolane.v1 import transfer_pb2 as pb
from twolane.v1 import types_pb2, worker_pb2

# The peer reads these pages when it gets to the push, which may be after the request has ended here and its
# pages hold something else: the handover, which vouches for them, is sent only once they have been read.
READ_LATER = frozenset({pb.TRANSPORT_SHARED_MEMORY, pb.TRANSPORT_NIXL, pb.TRANSPORT_CUDA_PEER})

Landed = Callable[[str], None]
Failed = Callable[[str, TwolaneError], None]


class Sender:
    """All transfers that leave this worker.

    Args:
        store: this worker's pages.
        codecs: transports by number.
        page_tokens: tokens of a page.
        now: clock for offers that nobody claims and for transfer times.
        on_landed: called with the request's id when everything has landed at the peer.
        on_failed: called with the request's id and why its transfer ended.

    Attributes:
        metrics: counts what was sent; None: nobody counts.
        tls: shown to peers; None: pages go in plain text.
    """

    def __init__(
        self,
        store: PageMemory,
        codecs: Mapping[pb.Transport.ValueType, TransportCodec],
        page_tokens: int,
        now: Clock,
        on_landed: Landed,
        on_failed: Failed,
    ) -> None:
        self._store = store
        self._codecs = codecs
        self._page_tokens = page_tokens
        self._now = now
        self._on_landed = on_landed
        self._on_failed = on_failed
        self._outgoing: dict[str, Outgoing] = {}
        self._unclaimed: dict[str, tuple[float, pb.PageOffer]] = {}
        self._streams: dict[str, PushStream] = {}
        self.metrics: TransferMetrics | None = None
        self.tls: Tls | None = None

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
        outgoing = self._outgoing[request_id] = Outgoing(request_id, self._page_tokens, self._store.n_layers)
        if (waiting := self._unclaimed.pop(request_id, None)) is not None:
            self._start(outgoing, waiting[1])

    def advance(self, request_id: str, page_ids: Sequence[int], computed_tokens: int) -> None:
        """Leading pages are computed: the full ones can go. Unknown requests are ignored."""
        if (outgoing := self._outgoing.get(request_id)) is not None:
            outgoing.page_ids = page_ids
            outgoing.ready_pages = computed_tokens // self._page_tokens
            self._pump(outgoing)

    def advance_layers(
        self, request_id: str, page_ids: Sequence[int], computed_tokens: int, layers: int
    ) -> None:
        """The running step has computed so many leading layers of these tokens; their full pages go ahead.

        Unknown requests and those without an offer are ignored: `advance` sends everything later.
        """
        outgoing = self._outgoing.get(request_id)
        if outgoing is None or outgoing.offer is None or layers >= self._store.n_layers:
            return
        outgoing.page_ids = page_ids
        portions = list(outgoing.take_ahead(computed_tokens // self._page_tokens, layers))
        if portions:
            self._deliver(outgoing, outgoing.offer, portions, None)

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
        for delivery in outgoing.deliveries if outgoing is not None else ():
            # The pages may hold something else from now on.
            delivery.drop()
        offer = outgoing.offer if outgoing is not None else waiting[1] if waiting is not None else None
        if offer is None or error is None:
            return
        push = pb.PagePush(lease_id=offer.lease.lease_id, fence=offer.lease.fence)
        push.abort.CopyFrom(types_pb2.Error(code=error.code, message=error.message))
        self._stream(offer).deliver(Delivery(iter([Outbound(push)]), lambda _error: None))

    def has_offer(self, request_id: str) -> bool:
        """Whether pages of this request can go."""
        outgoing = self._outgoing.get(request_id)
        return outgoing is not None and outgoing.offer is not None

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

    def pinned_pages(self) -> int:
        """Computed pages that are kept only until they have landed at their peers."""
        return sum(outgoing.pinned_pages for outgoing in self._outgoing.values())

    def waiting_pages(self) -> int:
        """Those of prompts that are complete: nothing but their transfer frees them."""
        complete = (each for each in self._outgoing.values() if each.handover is not None)
        return sum(outgoing.pinned_pages for outgoing in complete)

    async def close(self) -> None:
        """Ends all streams."""
        for stream in self._streams.values():
            await stream.close()

    def _start(self, outgoing: Outgoing, offer: pb.PageOffer) -> None:
        transport = offer.lease.transport
        if transport not in self._codecs:
            reason = f"the lease asks for transport {transport_name(transport)}, which this worker lacks"
            self._finish(outgoing.request_id, Incompatible(reason))
            return
        outgoing.offer = offer
        outgoing.sent_pages = offer.skip_tokens // self._page_tokens
        self._pump(outgoing)

    def _pump(self, outgoing: Outgoing) -> None:
        offer, handover = outgoing.offer, outgoing.handover
        if offer is None or (outgoing.ready_pages <= outgoing.sent_pages and handover is None):
            return
        portions = list(outgoing.take_ready())
        if offer.lease.transport not in READ_LATER:
            self._deliver(outgoing, offer, portions, handover)
            return
        if portions:
            self._deliver(outgoing, offer, portions, None)
        self._hand_over_if_read(outgoing, offer)

    def _hand_over_if_read(self, outgoing: Outgoing, offer: pb.PageOffer) -> None:
        if outgoing.handover is not None and all(each.ended for each in outgoing.deliveries):
            self._deliver(outgoing, offer, (), outgoing.handover)

    def _deliver(
        self,
        outgoing: Outgoing,
        offer: pb.PageOffer,
        portions: Sequence[Portion],
        handover: pb.Handover | None,
    ) -> None:
        if outgoing.began_s is None:
            outgoing.began_s = self._now()
        layer_bytes = self._store.page_bytes // self._store.n_layers
        outgoing.sent_bytes += sum(
            len(each.source_ids) * each.layers.count * layer_bytes for each in portions
        )
        pushes = self._pushes(offer, portions, handover)
        request_id, last = outgoing.request_id, handover is not None
        delivery = Delivery(pushes, lambda error: self._delivered(request_id, last, error))
        outgoing.deliveries.append(delivery)
        self._stream(offer).deliver(delivery)

    def _pushes(
        self, offer: pb.PageOffer, portions: Sequence[Portion], handover: pb.Handover | None
    ) -> Iterator[Outbound]:
        lease = offer.lease
        codec = self._codecs[lease.transport]
        for each in portions:
            for packed in codec.pack(each.source_ids, each.target_ids, each.layers):
                push = pb.PagePush(lease_id=lease.lease_id, fence=lease.fence, run=packed.run)
                yield Outbound(push, packed.payload)
        if handover is not None:
            yield Outbound(pb.PagePush(lease_id=lease.lease_id, fence=lease.fence, handover=handover))

    def _delivered(self, request_id: str, last: bool, error: TwolaneError | None) -> None:
        if error is not None or last:
            self._finish(request_id, error)
            return
        outgoing = self._outgoing.get(request_id)
        if outgoing is not None and outgoing.offer is not None:
            self._hand_over_if_read(outgoing, outgoing.offer)

    def _finish(self, request_id: str, error: TwolaneError | None) -> None:
        outgoing = self._outgoing.pop(request_id, None)
        if outgoing is None:
            return
        if error is not None:
            self._on_failed(request_id, error)
            return
        if self.metrics is not None and outgoing.offer is not None and outgoing.began_s is not None:
            seconds = self._now() - outgoing.began_s
            self.metrics.sent(outgoing.offer.lease.transport, outgoing.sent_bytes, seconds)
        self._on_landed(request_id)

    def _stream(self, offer: pb.PageOffer) -> PushStream:
        by_tcp = offer.lease.transport == pb.TRANSPORT_TCP and bool(offer.stream_address)
        address = offer.stream_address if by_tcp else offer.address
        if (stream := self._streams.get(address)) is None or stream.lost:
            stream = TcpStream(address, self.tls) if by_tcp else GrpcStream(address, self.tls)
            self._streams[address] = stream
        return stream
