"""Adaptive wait-depth: how long an idle worker waits for short prompts to gather, if at all.

`laps` asks when only short prompts wait. LAPS prints a rule whose depth can only shrink (section 3); here
it grows back, and no wait begins unless the arrivals expected in it pay for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from twolane.policies.prefill import WaitingPrefill

# Weight of the newest gap in the estimated gap between short arrivals.
GAP_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class ShortArrivals:
    """Estimated rate of short prompts, from the gaps between their arrivals.

    Attributes:
        last_s: newest arrival seen, or None.
        gap_s: smoothed gap, inf before there was one.
        count: gaps seen.
    """

    last_s: float | None = None
    gap_s: float = math.inf
    count: int = 0

    def after(self, waiting: Sequence[WaitingPrefill]) -> ShortArrivals:
        """With those of the prompts, in order of arrival, that came since."""
        last_s = -math.inf if self.last_s is None else self.last_s
        newer: list[float] = []
        for prompt in reversed(waiting):
            if prompt.arrival_s <= last_s:
                break
            newer.append(prompt.arrival_s)
        return self.seen(reversed(newer)) if newer else self

    def seen(self, arrivals_s: Iterable[float]) -> ShortArrivals:
        """With the arrivals that are newer than the newest seen."""
        last_s, gap_s, count = self.last_s, self.gap_s, self.count
        for arrival_s in arrivals_s:
            if last_s is None:
                last_s = arrival_s
            elif arrival_s > last_s:
                gap = arrival_s - last_s
                gap_s = gap if count == 0 else gap_s + GAP_WEIGHT * (gap - gap_s)
                last_s, count = arrival_s, count + 1
        return self if last_s == self.last_s else ShortArrivals(last_s, gap_s, count)

    def rate_per_s(self, now_s: float) -> float:
        """Arrivals per second; falls by itself when none come for long."""
        if self.last_s is None or self.count < 2:
            return 0.0
        return 1.0 / max(self.gap_s, now_s - self.last_s, 1e-9)


@dataclass(frozen=True, slots=True)
class WaitDepth:
    """Target depth of a short batch.

    Attributes:
        target: prompts to wait for at most.
        began_s: when the present wait began, or None.
        until_s: when it ends at the latest.
    """

    target: int = 2
    began_s: float | None = None
    until_s: float = 0.0

    def waiting(self, now_s: float, until_s: float) -> WaitDepth:
        """A wait goes on, or begins now."""
        if self.began_s is None:
            return replace(self, began_s=now_s, until_s=until_s)
        return self

    def dispatched(self, now_s: float, prompts: int, most: int) -> WaitDepth:
        """Learns from a batch: shrinks to what a wait brought, doubles when it was full in half the time."""
        if self.began_s is None:
            return self if prompts <= self.target else WaitDepth(min(most, prompts))
        if prompts < self.target:
            return WaitDepth(max(1, prompts))
        if now_s - self.began_s <= 0.5 * (self.until_s - self.began_s):
            return WaitDepth(min(most, 2 * self.target))
        return WaitDepth(self.target)


def wait_until_s(
    now_s: float, queued: int, target: int, service_s: float, arrivals: ShortArrivals, latest_s: float
) -> float | None:
    """When a wait ends at the latest, or None to dispatch now.

    The next arrival, expected after 1/rate, would otherwise wait out the batch: it gains
    service − 1/rate, while the `queued` prompts lose 1/rate each. Waiting pays when the gain is larger:
    rate · service > queued + 1.

    Args:
        now_s: the time.
        queued: prompts that wait.
        target: learned depth; with so many queued there is no wait.
        service_s: predicted seconds of the batch.
        arrivals: estimated arrivals.
        latest_s: no wait goes beyond this (deadlines, window).
    """
    if latest_s <= now_s or queued >= target:
        return None
    rate = arrivals.rate_per_s(now_s)
    if rate * service_s <= queued + 1:
        return None
    return min(latest_s, now_s + 1.0 / rate)
