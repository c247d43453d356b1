"""The event heap: runs actions in order of virtual time, equal times in order of scheduling."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Action = Callable[[Any], None]


class EventQueue:
    """Virtual time and what is due in it."""

    __slots__ = ("_heap", "_sequence", "now_s", "processed")

    def __init__(self) -> None:
        self.now_s = 0.0
        self.processed = 0
        self._sequence = 0
        self._heap: list[tuple[float, int, Action, Any]] = []

    def at(self, time_s: float, action: Action, argument: Any = None) -> None:
        """Runs `action(argument)` at `time_s`, now when that is past."""
        self._sequence += 1
        heappush(
            self._heap, (time_s if time_s > self.now_s else self.now_s, self._sequence, action, argument)
        )

    def run_while(self, condition: Callable[[], bool], most: int) -> bool:
        """Runs up to `most` actions while the condition holds; whether it still does and more are due."""
        heap = self._heap
        for _ in range(most):
            if not heap or not condition():
                return False
            self.now_s, _, action, argument = heappop(heap)
            self.processed += 1
            action(argument)
        return True

    def step(self) -> bool:
        """Runs the next action; False when there is none."""
        if not self._heap:
            return False
        self.now_s, _, action, argument = heappop(self._heap)
        self.processed += 1
        action(argument)
        return True

    def run(self, until_s: float = float("inf")) -> None:
        """Runs everything due up to `until_s`."""
        while self._heap and self._heap[0][0] <= until_s:
            self.step()
