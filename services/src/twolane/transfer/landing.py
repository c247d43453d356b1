"""The owner's side of a transfer: decides which pushes may touch this worker's pages.

The decode worker opens a landing for every lease it was granted; the PageTransfer service hands it each
push that comes in. Nothing is written before lease, fence and expiry have been checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from twolane.core.clock import Clock
from twolane.core.errors import LeaseInvalid, TwolaneError, error_from_code
from twolane.transfer.page_store import PageStore
from twolane.transfer.transports import TransportCodec
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
        missing: pages not landed yet.
    """

    lease: pb.Lease
    page_ids: tuple[int, ...]
    prompt_tokens: int
    expires_s: float
    missing: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.missing = set(self.page_ids)


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
        on_bytes: called with the bytes of each run that landed.
    """

    def __init__(
        self,
        store: PageStore,
        codecs: Mapping[pb.Transport.ValueType, TransportCodec],
        now: Clock,
        on_handover: Callable[[str, list[int]], None],
        on_abort: Callable[[str, TwolaneError], None],
        on_bytes: Callable[[int], None] = lambda _bytes: None,
    ) -> None:
        self._store = store
        self._codecs = codecs
        self._now = now
        self._on_handover = on_handover
        self._on_abort = on_abort
        self._expected: dict[str, ExpectedPages] = {}
        self._on_bytes = on_bytes

    def expect(self, expected: ExpectedPages) -> None:
        """Opens pages for the lease's writer."""
        self._expected[expected.lease.lease_id] = expected

    def close(self, lease_id: str) -> bool:
        """Ends a lease here: later pushes under it are refused. Returns whether it was open."""
        return self._expected.pop(lease_id, None) is not None

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
            reason = types_pb2.Error(code=error.code, message=error.message)
            return pb.PagePushAck(lease_id=push.lease_id, error=reason)
        return pb.PagePushAck(lease_id=push.lease_id)

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
            raise LeaseInvalid(f"lease {push.lease_id} has expired")
        return expected

    def _land(self, expected: ExpectedPages, run: pb.PageRun) -> None:
        if not set(run.page_ids) <= set(expected.page_ids):
            raise LeaseInvalid("the run names pages that the lease does not cover")
        codec = self._codecs.get(expected.lease.transport)
        if codec is None:
            raise LeaseInvalid(f"transport {expected.lease.transport} is not available here")
        self._store.pages[np.asarray(run.page_ids, dtype=np.int64)] = codec.unpack(run)
        expected.missing.difference_update(run.page_ids)
        self._on_bytes(len(run.page_ids) * self._store.page_bytes)

    def _hand_over(self, expected: ExpectedPages, handover: pb.Handover) -> None:
        if expected.missing:
            raise LeaseInvalid(f"{len(expected.missing)} pages have not landed: the handover is refused")
        if handover.prompt_tokens != expected.prompt_tokens:
            theirs, ours = handover.prompt_tokens, expected.prompt_tokens
            raise LeaseInvalid(f"the writer's prompt has {theirs} tokens, ours {ours}")
        self.close(expected.lease.lease_id)
        self._on_handover(expected.lease.request_id, list(handover.generated_tokens))
