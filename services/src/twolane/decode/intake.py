"""Room for prompts that another worker computes: pages first, then a lease, then the offer.

The worker reserves here when a router submits the decode half of a request. Requests that find no page
wait in order; leases are kept alive while the prefill worker still queues.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from twolane.core.prefix import page_hashes
from twolane.engine.pages import OutOfPages, PagePool
from twolane.engine.sequence import Sequence


@dataclass
class Arriving:
    """A request whose prompt arrives from another worker.

    Attributes:
        sequence: tokens of the prompt; its pages once reserved.
        skip_tokens: leading tokens found in this worker's own cache.
        lease_id: set once the broker has granted the lease.
    """

    sequence: Sequence
    skip_tokens: int = 0
    lease_id: str = ""


class Intake:
    """Requests that wait for pages, and those that have them and wait for their prompt."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._waiting: deque[Arriving] = deque()
        self._reserved: dict[str, Arriving] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._reserved)

    @property
    def waiting(self) -> int:
        """Requests that have no pages yet."""
        return len(self._waiting)

    def add(self, arriving: Arriving) -> None:
        """Queues a request behind those that already wait for pages."""
        self._waiting.append(arriving)

    def reserve(self) -> list[Arriving]:
        """Reserves pages for waiting requests, in order, until one finds too few; returns the lucky ones."""
        reserved = []
        while self._waiting and self._take_pages(self._waiting[0]):
            arriving = self._waiting.popleft()
            self._reserved[arriving.sequence.request_id] = arriving
            reserved.append(arriving)
        return reserved

    def get(self, request_id: str) -> Arriving | None:
        """A request that has pages."""
        return self._reserved.get(request_id)

    def remove(self, request_id: str) -> Arriving | None:
        """Takes a request out, waiting or reserved; its pages stay with its sequence."""
        if (arriving := self._reserved.pop(request_id, None)) is not None:
            return arriving
        for arriving in self._waiting:
            if arriving.sequence.request_id == request_id:
                self._waiting.remove(arriving)
                return arriving
        return None

    def lease_ids(self) -> dict[str, str]:
        """Leases of reserved requests, with the request's id."""
        return {each.lease_id: key for key, each in self._reserved.items() if each.lease_id}

    def _take_pages(self, arriving: Arriving) -> bool:
        sequence, page_tokens = arriving.sequence, self._pool.page_tokens
        found = self._pool.match(page_hashes(sequence.tokens, page_tokens, sequence.cache_salt))
        # One more token than the prompt, so that the first decode step has its place.
        needed = -(-(len(sequence.tokens) + 1) // page_tokens)
        try:
            fresh = self._pool.allocate(needed - len(found))
        except OutOfPages:
            self._pool.release(found)
            return False
        sequence.page_ids = found + fresh
        arriving.skip_tokens = len(found) * page_tokens
        return True
