"""Asks the decode policy which prompts may take pages now, with a view of what this worker holds.

The intake calls it before it reserves; the worker tells it how long answers became.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twolane.engine import sequence as engine
from twolane.engine.pages import PagePool
from twolane.policies.decode import DecodePolicy, DecodeRow, DecodeView, FinishedAnswer


@dataclass(frozen=True)
class Queue:
    """Who has pages and who wants some.

    Attributes:
        holding: sequences that have pages here, in order of admission.
        waiting: sequences that want pages: first those whose prompts have begun, in that order.
        begun: how many of them have.
        early: how many have pages though their prompts have not begun.
    """

    holding: Sequence[engine.Sequence]
    waiting: Sequence[engine.Sequence]
    begun: int
    early: int = 0


class Admission:
    """The policy, its memory and its draws.

    Args:
        policy: admits by predicted memory.
        pool: this worker's pages.
        max_rows: answers that grow at once.
        longest_tokens: of a prompt; 0: unknown.
        seed: makes the draws repeatable.
    """

    def __init__(
        self, policy: DecodePolicy, pool: PagePool, max_rows: int, longest_tokens: int = 0, seed: int = 0
    ) -> None:
        self._policy = policy
        self._pool = pool
        self._max_rows = max_rows
        self._longest_tokens = longest_tokens
        self._random = random.Random(seed)
        self._memory: Any = None
        self._finished: list[FinishedAnswer] = []
        self._draws: dict[str, float] = {}

    def finished(self, sequence: engine.Sequence) -> None:
        """An answer ended by itself; the policy learns its length."""
        cut_off = sequence.n_generated >= sequence.sampling.max_tokens
        self._finished.append(FinishedAnswer(sequence.n_generated, cut_off))

    def forget(self, request_id: str) -> None:
        """A request is gone, however it ended."""
        self._draws.pop(request_id, None)

    def admit(self, now_s: float, queue: Queue) -> tuple[str, ...]:
        """Ids of the waiting requests that may reserve pages now, in order."""
        page_tokens = self._pool.page_tokens
        rows = [self._row(each, len(each.page_ids) * page_tokens) for each in queue.holding]
        held_tokens = sum(row.held_tokens for row in rows)
        view = DecodeView(
            rows=rows,
            waiting=[self._row(each, self._whole_pages(len(each.tokens) + 1)) for each in queue.waiting],
            capacity_tokens=self._pool.n_pages * page_tokens,
            max_rows=self._max_rows,
            # Pages of prompts that are computed here, too; shared prefixes count once in the pool.
            other_tokens=max(0, self._pool.held * page_tokens - held_tokens),
            finished=tuple(self._finished),
            memory=self._memory,
            begun=queue.begun,
            early_rows=queue.early,
            longest_tokens=self._whole_pages(self._longest_tokens + 1),
        )
        decision = self._policy.decide(now_s, view)
        self._memory = decision.memory
        self._finished.clear()
        return decision.admit

    def _whole_pages(self, tokens: int) -> int:
        page_tokens = self._pool.page_tokens
        return -(-tokens // page_tokens) * page_tokens

    def _row(self, sequence: engine.Sequence, held_tokens: int) -> DecodeRow:
        draw = self._draws.setdefault(sequence.request_id, self._random.random())
        return DecodeRow(
            sequence.request_id, held_tokens, sequence.n_generated, sequence.sampling.max_tokens, draw
        )
