"""The owner's side of a transfer: decides which pushes may touch this worker's pages.

The decode worker opens a landing for every lease it was granted; the PageTransfer service and the stream
server hand it each push that comes in. Nothing is written before lease, fence and expiry have been checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from twolane.core.clock import Clock
from twolane.core.errors import Incompatible, LeaseInvalid, TwolaneError, error_from_code
from twolane.transfer.metrics import TransferMetrics
from twolane.transfer.page_store import PageMemory
from twolane.transfer.receiving import Receiving
from twolane.transfer.transports import FetchingCodec, TransportCodec, layers_of, run_bytes
from twolane.v1 import transfer_pb2 as pb
from twolane.v1 import types_pb2, worker_pb2


@dataclass
class ExpectedPages:
    """Pages that a writer may fill under one lease.

    Attributes:
        lease: the right, as granted by the broker.
        page_ids: this worker's pages, in prompt order.
        prompt_tokens: length of the prompt that the handover must confirm.
        expires_s: when the lease ends unless renewed, on the landing's clock.
        missing: pages not landed yet, each with a bit for every layer that has (and zero for one of which
            nothing has).
        expired: whether its end before its transfer's has been counted.
    """

    lease: pb.Lease
    page_ids: tuple[int, ...]
    prompt_tokens: int
    expires_s: float
    missing: dict[int, int] = field(init=False)
    expired: bool = False

    def __post_init__(self) -> None:
        self.missing = dict.fromkeys(self.page_ids, 0)

    def landed(self, run: pb.PageRun, n_layers: int) -> None:
        """Notes that a run's layers of its pages are there."""
        part = ((1 << run.n_layers) - 1) << run.first_layer
        for page_id in run.page_ids:
            have = self.missing.get(page_id)
            if have is None:
                continue
            if have | part == (1 << n_layers) - 1:
                del self.missing[page_id]
            else:
                self.missing[page_id] = have | part


def lease_entry(lease: pb.Lease, n_pages: int, *, owner: bool) -> worker_pb2.LeaseEntry:
    """A lease as a worker's books show it."""
    return worker_pb2.LeaseEntry(
        lease_id=lease.lease_id,
        request_id=lease.request_id,
        fence=lease.fence,
        owner=owner,
        n_pages=n_pages,
        peer_id=lease.writer_id if owner else lease.owner_id,
    )


class Landing:
    """All leases under which others may write into this worker's pages.

    Args:
        store: this worker's pages.
        codecs: transports by number.
        now: clock for expiry.
        on_handover: called with (request_id, generated tokens) when a prompt is complete.
        on_abort: called with (request_id, error) when the writer gave up.
        metrics: counts what lands and what is refused; None: nobody counts.
    """

    def __init__(
        self,
        store: PageMemory,
        codecs: Mapping[pb.Transport.ValueType, TransportCodec],
        now: Clock,
        on_handover: Callable[[str, list[int]], None],
        on_abort: Callable[[str, TwolaneError], None],
        metrics: TransferMetrics | None = None,
    ) -> None:
        self._store = store
        self._codecs = codecs
        self._now = now
        self._on_handover = on_handover
        self._on_abort = on_abort
        self._expected: dict[str, ExpectedPages] = {}
        self._metrics = metrics

    def expect(self, expected: ExpectedPages) -> None:
        """Opens pages for the lease's writer."""
        self._expected[expected.lease.lease_id] = expected

    def close(self, lease_id: str) -> bool:
        """Ends a lease here: later pushes under it are refused. Returns whether it was open."""
        return self._expected.pop(lease_id, None) is not None

    def end(self, lease_id: str) -> bool:
        """Closes a lease that must end before its transfer has; returns whether it was open."""
        if (expected := self._expected.get(lease_id)) is not None:
            self._count_expiry(expected)
        return self.close(lease_id)

    def renew(self, lease_id: str, expires_s: float) -> None:
        """Moves the expiry of an open lease."""
        if (expected := self._expected.get(lease_id)) is not None:
            expected.expires_s = expires_s

    def lease_ids(self) -> list[str]:
        """Leases that are open."""
        return list(self._expected)

    def leases(self) -> list[pb.Lease]:
        """The same in full."""
        return [expected.lease for expected in self._expected.values()]

    def books(self) -> list[worker_pb2.LeaseEntry]:
        """Open leases for auditors."""
        return [
            lease_entry(expected.lease, len(expected.page_ids), owner=True)
            for expected in self._expected.values()
        ]

    def apply(self, push: pb.PagePush) -> pb.PagePushAck:
        """Lands one push, or refuses it whole; never raises for what the writer sent."""
        try:
            self._apply(push)
        except TwolaneError as error:
            return self.refuse(push, error)
        return pb.PagePushAck(lease_id=push.lease_id)

    async def take(self, push: pb.PagePush) -> pb.PagePushAck:
        """The same for bytes that may have to be fetched first; the lease is checked before and after."""
        expected = self._expected.get(push.lease_id)
        codec = self._codecs.get(expected.lease.transport) if expected is not None else None
        if push.WhichOneof("message") != "run" or not isinstance(codec, FetchingCodec):
            return self.apply(push)
        try:
            began_s = time.monotonic()
            self._check_run(self._checked(push), push.run)
            data = await codec.fetch(push.run)
            expected = self._checked(push)
            self._check_run(expected, push.run)
            codec.put(push.run, data)
            self._landed(expected, push.run, time.monotonic() - began_s)
        except TwolaneError as error:
            return self.refuse(push, error)
        return pb.PagePushAck(lease_id=push.lease_id)

    def begin(self, push: pb.PagePush) -> Receiving:
        """Where the bytes go that follow a run on a stream.

        Raises:
            LeaseInvalid, Incompatible: nowhere: the push is refused; its bytes must be read past.
        """
        expected, run = self._checked(push), push.run
        self._check_run(expected, run)
        layers, due = layers_of(self._store, run), run_bytes(self._store, run)
        if expected.lease.transport != pb.TRANSPORT_TCP or run.stream_bytes != due:
            raise Incompatible(f"expected {due} bytes on the stream, got {run.stream_bytes}")
        buffers = self._store.target(run.page_ids, layers)

        def done(seconds: float) -> None:
            self._store.landed(run.page_ids, layers, buffers)
            self._landed(expected, run, seconds)

        return Receiving(buffers, lambda: self._expected.get(push.lease_id) is expected, done, time.monotonic)

    def refuse(self, push: pb.PagePush, error: TwolaneError) -> pb.PagePushAck:
        """The answer to a push of which nothing was kept."""
        if self._metrics is not None:
            self._metrics.refused.labels(error.code).inc()
        reason = types_pb2.Error(code=error.code, message=error.message)
        return pb.PagePushAck(lease_id=push.lease_id, error=reason)

    def _apply(self, push: pb.PagePush) -> None:
        expected = self._checked(push)
        match push.WhichOneof("message"):
            case "run":
                self._land(expected, push.run)
            case "handover":
                self._hand_over(expected, push.handover)
            case "abort":
                self.close(push.lease_id)
                reason = error_from_code(push.abort.code, push.abort.message)
                self._on_abort(expected.lease.request_id, reason)
            case _:
                raise LeaseInvalid("a push without content")

    def _checked(self, push: pb.PagePush) -> ExpectedPages:
        expected = self._expected.get(push.lease_id)
        if expected is None:
            raise LeaseInvalid(f"lease {push.lease_id} is not open: the request ended or the lease expired")
        if push.fence != expected.lease.fence:
            raise LeaseInvalid(f"fence {push.fence} is not that of the lease ({expected.lease.fence})")
        if self._now() >= expected.expires_s:
            self._count_expiry(expected)
            raise LeaseInvalid(f"lease {push.lease_id} has expired")
        return expected

    def _count_expiry(self, expected: ExpectedPages) -> None:
        """Once a lease, however many pushes come too late under it."""
        if self._metrics is not None and not expected.expired:
            self._metrics.lease_expired(expected.lease.transport)
        expected.expired = True

    def _check_run(self, expected: ExpectedPages, run: pb.PageRun) -> None:
        if not set(run.page_ids) <= set(expected.page_ids):
            raise LeaseInvalid("the run names pages that the lease does not cover")
        layers_of(self._store, run)

    def _land(self, expected: ExpectedPages, run: pb.PageRun) -> None:
        self._check_run(expected, run)
        codec = self._codecs.get(expected.lease.transport)
        if codec is None:
            raise LeaseInvalid(f"transport {expected.lease.transport} is not available here")
        began_s = time.monotonic()
        codec.land(run)
        self._landed(expected, run, time.monotonic() - began_s)

    def _landed(self, expected: ExpectedPages, run: pb.PageRun, seconds: float) -> None:
        expected.landed(run, self._store.n_layers)
        if self._metrics is not None:
            self._metrics.landed(expected.lease.transport, run_bytes(self._store, run), seconds)

    def _hand_over(self, expected: ExpectedPages, handover: pb.Handover) -> None:
        if expected.missing:
            raise LeaseInvalid(f"{len(expected.missing)} pages have not landed: the handover is refused")
        if handover.prompt_tokens != expected.prompt_tokens:
            theirs, ours = handover.prompt_tokens, expected.prompt_tokens
            raise LeaseInvalid(f"the writer's prompt has {theirs} tokens, ours {ours}")
        self.close(expected.lease.lease_id)
        self._on_handover(expected.lease.request_id, list(handover.generated_tokens))
