"""Room for prompts that another worker computes: pages first, then a lease, then the offer.

The worker reserves here. Pages go to requests in the order in which their prompts begin to be computed, as
their workers announce it; while there is room for all also to those that have not begun.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed
from dataclasses import dataclass

from twolane.core.prefix import page_hashes
from twolane.decode.admission import Admission, Queue
from twolane.engine.pages import OutOfPages, PagePool
from twolane.engine.sequence import Sequence

# Seconds for which it is remembered that a prompt has begun whose request has not come from its router.
ANNOUNCED_S = 60.0


@dataclass
class Arriving:
    """A request whose prompt arrives from another worker.

    Attributes:
        sequence: tokens of the prompt; its pages once reserved.
        writer_id: the worker that computes the prompt.
        skip_tokens: leading tokens found in this worker's own cache.
        lease_id: set once the broker has granted the lease.
        removed: it has left the intake; its pages may be another's by now.
    """

    sequence: Sequence
    writer_id: str = ""
    skip_tokens: int = 0
    lease_id: str = ""
    removed: bool = False


class Intake:
    """Requests that wait for pages, and those that have them and wait for their prompt."""

    def __init__(self, pool: PagePool, admission: Admission) -> None:
        self._pool = pool
        self.admission = admission
        self._begun: dict[str, Arriving] = {}
        self._early: dict[str, Arriving] = {}
        self._reserved: dict[str, Arriving] = {}
        self._reserved_early: set[str] = set()
        self._announced: dict[tuple[str, str], float] = {}

    def __len__(self) -> int:
        return len(self._begun) + len(self._early) + len(self._reserved)

    @property
    def waiting(self) -> int:
        """Requests that have no pages yet though their prompts have begun.

        The others wait in the queues of their prefill workers, which bound them.
        """
        return len(self._begun)

    def add(self, arriving: Arriving) -> None:
        """Queues a request behind those that already wait for pages."""
        request_id = arriving.sequence.request_id
        begun = self._announced.pop((arriving.writer_id, request_id), None) is not None
        (self._begun if begun else self._early)[request_id] = arriving

    def begin(self, now_s: float, writer_id: str, request_id: str) -> None:
        """A worker has begun to compute a prompt for us; its request may still be on its way here."""
        while self._announced and next(iter(self._announced.values())) <= now_s:
            del self._announced[next(iter(self._announced))]
        known = self._early.get(request_id) or self._reserved.get(request_id)
        if known is None or known.writer_id != writer_id:
            self._announced[writer_id, request_id] = now_s + ANNOUNCED_S
            return
        self._reserved_early.discard(request_id)
        if self._early.pop(request_id, None) is not None:
            self._begun[request_id] = known

    def reserve(self, now_s: float, running: Listed[Sequence]) -> list[Arriving]:
        """Reserves pages for the waiting requests that the policy admits, in order; returns those.

        Args:
            now_s: for the policy.
            running: sequences that decode here, in order of admission.
        """
        if not self._begun and not self._early:
            return []
        queue = Queue(
            [*running, *(each.sequence for each in self._reserved.values())],
            [each.sequence for each in (*self._begun.values(), *self._early.values())],
            len(self._begun),
            len(self._reserved_early),
        )
        reserved = []
        for request_id in self.admission.admit(now_s, queue):
            waiting = self._begun if request_id in self._begun else self._early
            arriving = waiting[request_id]
            if not self._take_pages(arriving):
                break
            self._reserved[request_id] = waiting.pop(request_id)
            if waiting is self._early:
                self._reserved_early.add(request_id)
            reserved.append(arriving)
        return reserved

    def get(self, request_id: str) -> Arriving | None:
        """A request that has pages."""
        return self._reserved.get(request_id)

    def remove(self, request_id: str) -> Arriving | None:
        """Takes a request out, waiting or reserved; its pages stay with its sequence."""
        self._reserved_early.discard(request_id)
        for kept in (self._reserved, self._begun, self._early):
            if (arriving := kept.pop(request_id, None)) is not None:
                arriving.removed = True
                return arriving
        return None

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
