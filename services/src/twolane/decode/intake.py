"""Room for prompts that another worker computes: pages first, then a lease, then the offer.

The worker reserves here when a router submits the decode half of a request. Requests that the policy
does not admit yet, or that find no page, wait in order.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed
from dataclasses import dataclass

from twolane.core.prefix import page_hashes
from twolane.decode.admission import Admission
from twolane.engine.pages import OutOfPages, PagePool
from twolane.engine.sequence import Sequence


@dataclass
class Arriving:
    """A request whose prompt arrives from another worker.

    Attributes:
        sequence: tokens of the prompt; its pages once reserved.
        skip_tokens: leading tokens found in this worker's own cache.
        lease_id: set once the broker has granted the lease.
        removed: it has left the intake; its pages may be another's by now.
    """

    sequence: Sequence
    skip_tokens: int = 0
    lease_id: str = ""
    removed: bool = False


class Intake:
    """Requests that wait for pages, and those that have them and wait for their prompt."""

    def __init__(self, pool: PagePool, admission: Admission) -> None:
        self._pool = pool
        self.admission = admission
        self._waiting: dict[str, Arriving] = {}
        self._reserved: dict[str, Arriving] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._reserved)

    @property
    def waiting(self) -> int:
        """Requests that have no pages yet."""
        return len(self._waiting)

    def add(self, arriving: Arriving) -> None:
        """Queues a request behind those that already wait for pages."""
        self._waiting[arriving.sequence.request_id] = arriving

    def reserve(self, now_s: float, running: Listed[Sequence]) -> list[Arriving]:
        """Reserves pages for the waiting requests that the policy admits, in order; returns those.

        Args:
            now_s: for the policy.
            running: sequences that decode here, in order of admission.
        """
        if not self._waiting:
            return []
        holding = [*running, *(each.sequence for each in self._reserved.values())]
        wanting = [each.sequence for each in self._waiting.values()]
        reserved = []
        for request_id in self.admission.admit(now_s, holding, wanting):
            arriving = self._waiting[request_id]
            if not self._take_pages(arriving):
                break
            self._reserved[request_id] = self._waiting.pop(request_id)
            reserved.append(arriving)
        return reserved

    def get(self, request_id: str) -> Arriving | None:
        """A request that has pages."""
        return self._reserved.get(request_id)

    def remove(self, request_id: str) -> Arriving | None:
        """Takes a request out, waiting or reserved; its pages stay with its sequence."""
        arriving = self._reserved.pop(request_id, None) or self._waiting.pop(request_id, None)
        if arriving is not None:
            arriving.removed = True
        return arriving

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
