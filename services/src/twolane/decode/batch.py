"""The answers that grow together: one token each per engine step.

The worker's loop asks for rows before each step and settles them after. When no page is free for a
growing answer, the one admitted last gives up its pages and is computed again later.
"""

from __future__ import annotations

from collections import deque

from twolane.core.prefix import page_hashes
from twolane.engine.pages import OutOfPages, PagePool
from twolane.engine.sequence import Sequence


class DecodeBatch:
    """Sequences that decode, in order of admission.

    Args:
        pool: this worker's pages.
        max_rows: sequences of one step at most; later ones wait in order.
    """

    def __init__(self, pool: PagePool, max_rows: int) -> None:
        self._pool = pool
        self._max_rows = max_rows
        self._running: dict[str, Sequence] = {}
        self._ready: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._running) + len(self._ready)

    def join(self, sequence: Sequence) -> None:
        """Adds a sequence whose tokens, except the last, are all in its pages."""
        self._ready.append(sequence)

    def remove(self, request_id: str) -> None:
        """Takes a sequence out; its pages stay with it. Unknown ones are ignored."""
        if self._running.pop(request_id, None) is None:
            self._ready = deque(waiting for waiting in self._ready if waiting.request_id != request_id)

    def rows(self) -> tuple[list[Sequence], list[Sequence]]:
        """Sequences of the next step, each with room for its token, and those preempted for it.

        A preempted sequence has lost its pages and left the batch: its tokens must be computed again.
        """
        while self._ready and len(self._running) < self._max_rows:
            sequence = self._ready.popleft()
            self._running[sequence.request_id] = sequence
        preempted: list[Sequence] = []
        for sequence in list(self._running.values()):
            if sequence.request_id in self._running:
                preempted += self._make_room(sequence)
        return list(self._running.values()), preempted

    def members(self) -> list[Sequence]:
        """All sequences, in order of admission."""
        return [*self._running.values(), *self._ready]

    def predicted_peak_pages(self) -> int:
        """Pages the sequences would hold if each ran to its limit."""
        page_tokens = self._pool.page_tokens
        lengths = [each.n_prompt + each.sampling.max_tokens for each in self.members()]
        return sum(-(-length // page_tokens) for length in lengths)

    def _make_room(self, sequence: Sequence) -> list[Sequence]:
        preempted: list[Sequence] = []
        while sequence.n_computed >= len(sequence.page_ids) * self._pool.page_tokens:
            try:
                sequence.page_ids += self._pool.allocate(1)
            except OutOfPages:
                victim = next(reversed(self._running.values()))
                self._preempt(victim)
                preempted.append(victim)
                if victim is sequence:
                    break
        return preempted

    def _preempt(self, victim: Sequence) -> None:
        del self._running[victim.request_id]
        give_back(self._pool, victim)


def give_back(pool: PagePool, sequence: Sequence) -> None:
    """Releases a sequence's pages; its full ones stay in the cache under their names."""
    computed = sequence.tokens[: sequence.n_computed]
    names = page_hashes(computed, pool.page_tokens, sequence.cache_salt)
    for page_id, name in zip(sequence.page_ids, names, strict=False):
        pool.publish(page_id, name)
    pool.release(sequence.page_ids)
    sequence.page_ids = []
    sequence.n_computed = 0
