"""Runs of decode steps, each longer than the one before by the same time, in closed form.

Also the longest step since a row joined, for every row of a batch at the cost of one entry per run, and the
steps at which answers end.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from heapq import heappop, heappush

from twolane.sim.request import SimRequest


def steps_s(count: int, first_s: float, growth_s: float) -> float:
    """Seconds of `count` steps, the first of which takes first_s."""
    return count * (first_s + growth_s * (count - 1) / 2.0)


def steps_within(seconds: float, first_s: float, growth_s: float) -> float:
    """How many steps fit, the last one in part: the inverse of `steps_s`."""
    if seconds <= 0.0:
        return 0.0
    if growth_s <= 0.0:
        return seconds / first_s
    linear_s = first_s - growth_s / 2.0
    return (math.sqrt(linear_s * linear_s + 2.0 * growth_s * seconds) - linear_s) / growth_s


class StepGaps:
    """Longest steps of segments in order; those that a later longer one makes pointless are dropped."""

    __slots__ = ("_segments", "_values")

    def __init__(self) -> None:
        self._segments: list[int] = []
        self._values: list[float] = []

    def note(self, segment: int, seconds: float) -> None:
        """The longest step of a segment, which is the latest one."""
        while self._values and self._values[-1] <= seconds:
            self._values.pop()
            self._segments.pop()
        self._values.append(seconds)
        self._segments.append(segment)

    def since(self, segment: int) -> float:
        """The longest step of that segment and later ones; 0 when there is none."""
        position = bisect_left(self._segments, segment)
        return self._values[position] if position < len(self._values) else 0.0


class AnswerEnds:
    """At which step each running answer ends; what was said of rows that left since is skipped.

    Args:
        running: rows by name, as the batch keeps them.
    """

    __slots__ = ("_heap", "_running")

    def __init__(self, running: Mapping[str, SimRequest]) -> None:
        self._running = running
        self._heap: list[tuple[int, int, int, SimRequest]] = []

    def add(self, step: int, request: SimRequest) -> None:
        """A row that joined just now ends with this step."""
        heappush(self._heap, (step, request.index, request.joined_segment, request))

    def next_step(self) -> int:
        """The step with which the next answer ends; there must be one."""
        self._skip_gone()
        return self._heap[0][0]

    def pop_due(self, step: int) -> SimRequest | None:
        """An answer that ends with this step or ended before."""
        self._skip_gone()
        return heappop(self._heap)[3] if self._heap and self._heap[0][0] <= step else None

    def clear(self) -> None:
        """Forgets all."""
        self._heap.clear()

    def _skip_gone(self) -> None:
        while self._heap:
            _, _, segment, request = self._heap[0]
            if self._running.get(request.name) is request and segment == request.joined_segment:
                return
            heappop(self._heap)
