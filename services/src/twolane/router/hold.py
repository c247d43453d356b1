"""Requests that wait at the router because no worker of a needed role runs: a model that sleeps wakes up.

`dispatch.py` keeps them here and sends them, oldest first, once workers are there. A request leaves
earlier when its client goes away, its deadline passes, or it was held for long enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from twolane.core.errors import Overloaded, Unavailable
from twolane.core.request import Lane
from twolane.router.answer import Answer
from twolane.router.generation import Generation

RETRY_HELD_S = 5.0


class Hold:
    """Held requests in the order in which they came."""

    def __init__(self, hold_s: float, max_held: int, short_max_uncached_tokens: int) -> None:
        """`hold_s`: longest wait, 0: nothing is held; `max_held`: requests at a time."""
        self._hold_s = hold_s
        self._short_max_uncached_tokens = short_max_uncached_tokens
        self._max_held = max_held
        self._answers: dict[Generation, list[Answer]] = {}
        self._timers: dict[Generation, asyncio.TimerHandle] = {}

    @property
    def enabled(self) -> bool:
        """Whether requests are held at all."""
        return self._hold_s > 0

    def __len__(self) -> int:
        return len(self._answers)

    def __iter__(self) -> Iterator[tuple[Generation, list[Answer]]]:
        return iter(list(self._answers.items()))

    def lane(self, prompt_tokens: int) -> Lane:
        """The lane that a prompt will most likely travel in: where nobody runs, nothing is cached."""
        return Lane.SHORT if prompt_tokens <= self._short_max_uncached_tokens else Lane.LONG

    def check_room(self, generation: Generation) -> None:
        """Raises Overloaded when the request would be one too many."""
        if generation not in self._answers and len(self._answers) >= self._max_held:
            raise Overloaded(
                f"no worker runs now and {len(self._answers)} requests wait for one already; retry later",
                retry_after_s=RETRY_HELD_S,
            )

    def keep(self, generation: Generation, answers: list[Answer], reason: str) -> None:
        """Holds answers of a request; `reason` says why nobody takes them, for the client in the end."""
        if generation in self._answers:
            self._answers[generation] += answers
            return
        self._answers[generation] = list(answers)
        loop = asyncio.get_running_loop()
        self._timers[generation] = loop.call_later(self._hold_s, self._expire, generation, reason)

    def drop(self, generation: Generation) -> None:
        """The request is over, or on its way; one that is not held is no error."""
        if self._answers.pop(generation, None) is not None:
            self._timers.pop(generation).cancel()

    def _expire(self, generation: Generation, reason: str) -> None:
        words = f"the request waited {self._hold_s:g} s for workers to start ({reason}); retry later"
        generation.fail(Unavailable(words, retry_after_s=RETRY_HELD_S))
