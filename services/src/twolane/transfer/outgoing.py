"""One prompt's pages on their way to the decode worker: which are computed, which are sent, which are next.

The sender keeps one per request; nothing here touches a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from twolane.transfer.delivery import Delivery
from twolane.transfer.page_store import Layers
from twolane.v1 import transfer_pb2 as pb


@dataclass(frozen=True, slots=True)
class Portion:
    """Pages that can go: this worker's and the peer's numbers, and for which layers."""

    source_ids: Sequence[int]
    target_ids: Sequence[int]
    layers: Layers


@dataclass
class Outgoing:
    """One prompt's pages.

    Attributes:
        request_id: the request.
        page_tokens: tokens of a page.
        n_layers: layers of the model.
        page_ids: this worker's pages in prompt order; set when prefill starts.
        ready_pages: leading pages that are computed.
        sent_pages: leading pages of which every layer was queued for sending, or that were skipped.
        ahead_pages: leading pages of which `ahead_layers` were queued while the rest is computed.
        ahead_layers: see there.
        offer: where they go; None until the decode worker's offer is there.
        handover: generated tokens and prompt length, once the prompt is complete.
        began_s: when the first byte could have been sent; None before.
        sent_bytes: bytes queued.
        deliveries: what was queued, in order.
    """

    request_id: str
    page_tokens: int
    n_layers: int
    page_ids: Sequence[int] = ()
    ready_pages: int = 0
    sent_pages: int = 0
    ahead_pages: int = 0
    ahead_layers: int = 0
    offer: pb.PageOffer | None = None
    handover: pb.Handover | None = None
    began_s: float | None = None
    sent_bytes: int = 0
    deliveries: list[Delivery] = field(default_factory=list)

    @property
    def pinned_pages(self) -> int:
        """Computed pages that wait for their landing."""
        return max(0, self.ready_pages - self._skipped())

    def take_ready(self) -> Iterator[Portion]:
        """The computed pages not queued yet, which count as queued from now on."""
        first, last = self.sent_pages, max(self.ready_pages, self.sent_pages)
        # Some layers of some of them have gone ahead.
        begun = min(max(self.ahead_pages, first), last)
        rest = Layers(self.ahead_layers, self.n_layers - self.ahead_layers)
        self.sent_pages = last
        if last >= self.ahead_pages:
            self.ahead_pages = self.ahead_layers = 0
        if begun > first and rest.count:
            yield self._portion(first, begun, rest)
        if last > begun:
            yield self._portion(begun, last, Layers(0, self.n_layers))

    def take_ahead(self, pages: int, layers: int) -> Iterator[Portion]:
        """Layers that are computed of pages whose other layers are not.

        Args:
            pages: leading pages that the running step completes.
            layers: leading layers it has computed.
        """
        if self.ahead_pages and pages != self.ahead_pages:
            return
        if pages > self.sent_pages and layers > self.ahead_layers:
            done = Layers(self.ahead_layers, layers - self.ahead_layers)
            self.ahead_pages, self.ahead_layers = pages, layers
            yield self._portion(self.sent_pages, pages, done)

    def _portion(self, first: int, last: int, layers: Layers) -> Portion:
        assert self.offer is not None
        skipped = self._skipped()
        targets = self.offer.page_ids[first - skipped : last - skipped]
        return Portion(self.page_ids[first:last], targets, layers)

    def _skipped(self) -> int:
        return 0 if self.offer is None else self.offer.skip_tokens // self.page_tokens
