"""Prefill of a fleet between two moments: every prompt in its order, a slice of time at once.

Short prompts go ahead and share steps, so they are one queue served at the fleet's speed (Lindley's
recursion, a few array operations). A long prompt takes one worker for itself: first come, first served
over the workers' free times, slowed by the short prompts between its chunks. scaling.py calls it.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush, heapreplace

import numpy as np
from numpy.typing import NDArray

from twolane.sim.scaling_arrivals import Arrivals, Floats

Indices = NDArray[np.int64]

# What a chunk of a long prompt holds a short one up on average: half of what laps aims at.
CHUNK_WAIT_S = 0.1
NOTHING = 1e-9
# Short prompts take this share of a worker at most from its long ones.
MOST_SHORT_USE = 0.8


class ShortLane:
    """Short prompts, over all workers at once."""

    def __init__(self) -> None:
        self.backlog_s = 0.0
        self._ahead: deque[tuple[Floats, Indices]] = deque()
        self._arrived_s = 0.0

    def run(
        self, index: Indices, at_s: Floats, work_s: Floats, span_s: float, workers: float
    ) -> tuple[Indices, Floats, float]:
        """Serves a slice; returns prompts whose turn came, when (from its start), and the work served."""
        seen, left_s = _lindley(self.backlog_s, at_s, work_s, span_s, workers)
        before_s = self._arrived_s - self.backlog_s
        positions = self._arrived_s + np.cumsum(work_s) - work_s
        self._arrived_s += float(work_s.sum())
        self.backlog_s = left_s
        after_s = self._arrived_s - left_s
        old, old_start_s = self._begun(before_s, after_s, span_s)
        start_s = at_s + seen / max(NOTHING, workers)
        now = start_s < span_s
        if not now.all():
            self._ahead.append((positions[~now], index[~now]))
        picked = np.concatenate((old, index[now]))
        return picked, np.concatenate((old_start_s, start_s[now])), after_s - before_s

    def _begun(self, before_s: float, after_s: float, span_s: float) -> tuple[Indices, Floats]:
        """Prompts of earlier slices: they wait, so the lane is served without a break."""
        index: list[Indices] = [np.empty(0, np.int64)]
        start: list[Floats] = [np.empty(0)]
        while self._ahead:
            positions, which = self._ahead[0]
            count = int(np.searchsorted(positions, after_s, side="right"))
            share = (positions[:count] - before_s) / max(NOTHING, after_s - before_s)
            index.append(which[:count])
            start.append(np.clip(share, 0.0, 1.0) * span_s)
            if count < len(positions):
                self._ahead[0] = (positions[count:], which[count:])
                break
            self._ahead.popleft()
        return np.concatenate(index), np.concatenate(start)


class LongLane:
    """Long prompts, each on one worker."""

    def __init__(self, work_s: Floats) -> None:
        self._work_s = work_s
        self._queue: deque[tuple[float, int]] = deque()
        self._free_s: list[float] = []
        self._queued_s = 0.0

    def backlog_s(self, now_s: float) -> float:
        """Worker-seconds that wait or are still to be computed."""
        return self._queued_s + sum(max(0.0, free_s - now_s) for free_s in self._free_s)

    def run(
        self, index: Indices, at_s: Floats, until_s: float, workers: int, slower: float
    ) -> tuple[Indices, Floats, float]:
        """Serves up to `until_s`; returns prompts whose turn came, when, and the share that had to wait."""
        self._resize(workers, float(at_s[0]) if len(at_s) else until_s)
        queue, free, work_s = self._queue, self._free_s, self._work_s
        queue.extend(zip(at_s.tolist(), index.tolist(), strict=True))
        self._queued_s += float(work_s[index].sum())
        begun: list[int] = []
        start: list[float] = []
        waited = 0
        while queue and free and free[0] < until_s:
            arrival_s, which = queue.popleft()
            begin_s = free[0]
            if begin_s > arrival_s:
                waited += 1
            else:
                begin_s = arrival_s
            seconds = float(work_s[which])
            heapreplace(free, begin_s + seconds * slower)
            self._queued_s -= seconds
            begun.append(which)
            start.append(begin_s)
        share = waited / len(begun) if begun else float(bool(queue))
        return np.array(begun, dtype=np.int64), np.array(start, dtype=np.float64), share

    def _resize(self, workers: int, now_s: float) -> None:
        free = self._free_s
        while len(free) < workers:
            heappush(free, now_s)
        while len(free) > workers:
            # A worker that leaves takes nothing new; what it computes it ends.
            heappop(free)
        heapify(free)


class PrefillFlow:
    """The prefill pool: both lanes.

    Attributes:
        first_s: when each request's first token came; NaN until known.
        busy_s: worker-seconds served so far.
    """

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self.short = ShortLane()
        self.long = LongLane(arrivals.work_s)
        self.busy_s = 0.0
        self.first_s = np.full(len(arrivals), np.nan)

    def run(self, part: slice, from_s: float, span_s: float, workers: float) -> Indices:
        """Serves a slice of time in which the requests `part` arrive; returns those whose first token
        is known from now on."""
        arrivals = self._arrivals
        at_s, work_s, is_short = (
            arrivals.time_s[part],
            arrivals.work_s[part],
            arrivals.is_short[part],
        )
        index = np.arange(part.start, part.stop, dtype=np.int64)
        before_s = self.long.backlog_s(from_s)
        short, start_s, served_s = self.short.run(
            index[is_short], at_s[is_short] - from_s, work_s[is_short], span_s, workers
        )
        use = min(MOST_SHORT_USE, served_s / max(NOTHING, workers * span_s))
        slower = 1.0 / (1.0 - use)
        long, long_start_s, waited = self.long.run(
            index[~is_short], at_s[~is_short], from_s + span_s, int(workers), slower
        )
        after_s = self.long.backlog_s(from_s + span_s)
        long_served_s = before_s + float(work_s[~is_short].sum()) - after_s
        self.busy_s += served_s + max(0.0, min(long_served_s, workers * span_s - served_s))
        self.first_s[short] = from_s + start_s + arrivals.alone_s[short] + CHUNK_WAIT_S * waited
        self.first_s[long] = long_start_s + arrivals.alone_s[long] * slower
        return np.concatenate((short, long))


def _lindley(
    backlog_s: float, at_s: Floats, work_s: Floats, span_s: float, workers: float
) -> tuple[Floats, float]:
    """Work that each arrival finds, and work left at the end of the slice."""
    free = backlog_s + np.concatenate(([0.0], np.cumsum(work_s)))
    free -= workers * np.append(at_s, span_s)
    lowest = np.minimum(0.0, np.minimum.accumulate(free))
    found = free - lowest
    return found[:-1], float(found[-1])
