"""What was measured of late: a window of values with its quantiles, and work as a share of the time.

The reference clock keeps them; both are frozen, like all that a policy remembers.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW = 500
# Seconds over which shares are averaged.
MEMORY_S = 20.0


@dataclass(frozen=True, slots=True)
class Recent:
    """The newest values.

    Attributes:
        values: in order of arrival.
        ordered: the same, ascending.
    """

    values: tuple[float, ...] = ()
    ordered: tuple[float, ...] = ()

    def after(self, more: Sequence[float]) -> Recent:
        """With more values; the oldest go once the window is full."""
        if not more:
            return self
        values, ordered = [*self.values, *more], list(self.ordered)
        for value in more:
            insort(ordered, value)
        for value in values[:-WINDOW]:
            del ordered[bisect_left(ordered, value)]
        return Recent(tuple(values[-WINDOW:]), tuple(ordered))

    def quantile(self, share: float) -> float:
        """The value above a share of all; 0 before there is one."""
        count = len(self.ordered)
        return self.ordered[min(count - 1, int(share * count))] if count else 0.0


@dataclass(frozen=True, slots=True)
class Shares:
    """Fading sums of seconds.

    Attributes:
        span_s: of time.
        busy_s: in which a worker that serves in order of arrival would be busy.
        short_s: that short prompts take, batched well.
    """

    span_s: float = 0.0
    busy_s: float = 0.0
    short_s: float = 0.0

    def after(self, span_s: float, busy_s: float, short_s: float) -> Shares:
        """After so much more time and work."""
        if not (span_s or busy_s or short_s):
            return self
        keep = max(0.0, 1.0 - span_s / MEMORY_S)
        span_s = min(span_s, MEMORY_S)
        return Shares(keep * self.span_s + span_s, keep * self.busy_s + busy_s, keep * self.short_s + short_s)

    @property
    def idle(self) -> float:
        """Share of the time that stays free; 0 until there is a second to judge by."""
        return max(0.0, 1.0 - self.busy_s / self.span_s) if self.span_s >= 1.0 else 0.0

    @property
    def short(self) -> float:
        """Share of the time that short prompts take."""
        return min(0.9, self.short_s / max(self.span_s, 1.0))
