"""The longest step since a row joined, for every row of a batch at the cost of one entry per segment."""

from __future__ import annotations

from bisect import bisect_left


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
