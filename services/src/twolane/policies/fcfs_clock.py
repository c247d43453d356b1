"""When prompts would end under first come, first served: the reference that laps measures itself by.

A virtual clock, as fair queueing keeps one: every arrival also joins an imaginary queue over both lanes that
an imaginary worker serves as the policy fcfs does. So it is known online what fcfs would have given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from twolane.core.request import Lane
from twolane.policies.cost import Load, PrefillCost
from twolane.policies.prefill import WaitingPrefill
from twolane.policies.recent import Recent, Shares

# A long prompt may take this share of what the slowest of late, those above this quantile aside, would have
# taken under fcfs: later than its own turn there, but not so late that the lane's tail grows.
TAIL_SHARE = 0.95
TAIL_QUANTILE = 0.985
SHORT_QUANTILE = 0.9
# Dates of prompts that are gone may stay until there are so many.
MOST_GONE = 64
NOTHING = Load()


@dataclass(frozen=True, slots=True)
class Steps:
    """How fcfs cuts its steps: the cost of one, tokens of a step and of a prompt's part of it at most."""

    cost: PrefillCost
    step_tokens: int
    chunk_tokens: int

    def seconds(self, work_s: float) -> float:
        """Of a step whose prompts add `work_s`: the reading of weights hides behind much computing."""
        return max(self.cost.constant_s, self.cost.heavy_constant_s + work_s)

    def share_s(self, load: Load) -> float:
        """What prompts add to the queue, their share of the constant part of steps included."""
        cost = self.cost
        return cost.work_s(load) + cost.heavy_constant_s * load.tokens / self.chunk_tokens


class Imagined(NamedTuple):
    """A prompt in the imaginary queue; `takes_s` is how long it was expected to stay there."""

    request_id: str
    arrival_s: float
    tokens: int
    cached_tokens: int
    lane: Lane
    takes_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FcfsClock:
    """The imaginary worker.

    What happens costs by the prompts that come or go, not by those that wait: sums over the queue are kept.

    Attributes:
        free_s: when its step ends.
        seen_s: newest arrival that joined.
        queue: what waits there, in order of arrival.
        load: the work of the queue.
        peak_s: the longest that a long prompt of the queue was expected to stay.
        dates_s: by request that really waits: when fcfs ends it, expected and then known, or, of long ones,
            later where the tail of the lane allows; of some that wait no more, too.
        longs: seconds that long prompts took there of late.
        shorts: the same of short ones.
        shares: of its time.
    """

    free_s: float = -math.inf
    seen_s: float = -math.inf
    queue: tuple[Imagined, ...] = ()
    load: Load = NOTHING
    peak_s: float = 0.0
    dates_s: Mapping[str, float] = field(default_factory=dict)
    longs: Recent = field(default_factory=Recent)
    shorts: Recent = field(default_factory=Recent)
    shares: Shares = field(default_factory=Shares)

    def after(self, now_s: float, waiting: Sequence[WaitingPrefill], steps: Steps) -> FcfsClock:
        """With the prompts that came since, up to now."""
        dates_s, seen_s = self.dates_s, self.seen_s
        fresh = [one for one in waiting if one.request_id not in dates_s]
        # A worker without work has none under fcfs either, whatever was aborted. What is dropped goes
        # unmeasured, so the windows tell of busy times: idle ones don't show what waiting is usual.
        queued = _Queue(self.queue, self.load, self.peak_s) if len(fresh) < len(waiting) else _Queue()
        joined = [one for one in fresh if one.arrival_s >= seen_s]
        queued.join(joined)
        free_s = queued.serve(self.free_s, now_s, steps)
        # One that had left and came back is not in the queue: it would have ended by now.
        ends_s = dict.fromkeys([one.request_id for one in fresh], now_s)
        ends_s |= queued.expect(len(joined), max(free_s, now_s), steps)
        longs = self.longs.after(queued.took_s[Lane.LONG])
        tail_s = TAIL_SHARE * max(queued.peak_s, longs.quantile(TAIL_QUANTILE))
        seen_s, span_s, short_s = self._arrived(joined, steps.cost)
        return FcfsClock(
            free_s,
            seen_s,
            tuple(queued.prompts),
            queued.load,
            queued.peak_s,
            _dates(dates_s, ends_s | queued.ends_s, waiting, tail_s),
            longs,
            self.shorts.after(queued.took_s[Lane.SHORT]),
            self.shares.after(span_s, queued.busy_s, short_s),
        )

    def backlog_s(self, now_s: float, cost: PrefillCost) -> float:
        """Seconds of work that the imaginary worker has left."""
        return max(0.0, self.free_s - now_s) + cost.work_s(self.load)

    @property
    def short_s(self) -> float:
        """What all but the slowest short prompts took under fcfs of late."""
        return self.shorts.quantile(SHORT_QUANTILE)

    def _arrived(self, joined: Sequence[WaitingPrefill], cost: PrefillCost) -> tuple[float, float, float]:
        """The newest arrival, the seconds since the one before, and those of short prompts' work."""
        if not joined:
            return self.seen_s, 0.0, 0.0
        seen_s = max(one.arrival_s for one in joined)
        span_s = seen_s - self.seen_s if self.seen_s > -math.inf else 0.0
        return seen_s, span_s, cost.work_s(Load.of(one for one in joined if one.lane is Lane.SHORT))


def _dates(
    known_s: Mapping[str, float],
    ends_s: Mapping[str, float],
    waiting: Sequence[WaitingPrefill],
    tail_s: float,
) -> Mapping[str, float]:
    """Dates with those that changed; those of prompts that are gone are dropped now and then."""
    dates_s = {**known_s, **ends_s}
    for one in waiting:
        if one.lane is Lane.LONG and dates_s[one.request_id] < one.arrival_s + tail_s:
            dates_s[one.request_id] = one.arrival_s + tail_s
    if len(dates_s) > 2 * len(waiting) + MOST_GONE:
        return {one.request_id: dates_s[one.request_id] for one in waiting}
    return dates_s


class _Queue:
    """The imaginary queue during one call, and what the imaginary worker did."""

    __slots__ = ("busy_s", "ends_s", "load", "peak_s", "prompts", "took_s")

    def __init__(self, prompts: Sequence[Imagined] = (), load: Load = NOTHING, peak_s: float = 0.0) -> None:
        self.prompts = list(prompts)
        self.load = load
        self.peak_s = peak_s
        self.took_s: dict[Lane, list[float]] = {Lane.SHORT: [], Lane.LONG: []}
        self.ends_s: dict[str, float] = {}
        self.busy_s = 0.0

    def join(self, joined: Sequence[WaitingPrefill]) -> None:
        """Prompts come."""
        for one in joined:
            self.prompts.append(
                Imagined(one.request_id, one.arrival_s, one.uncached_tokens, one.cached_tokens, one.lane)
            )
            self.load = self.load.plus(one.uncached_tokens, one.cached_tokens)

    def serve(self, free_s: float, now_s: float, steps: Steps) -> float:
        """Runs the steps that begin before now; returns when the last of them ends."""
        prompts, cost = self.prompts, steps.cost
        while prompts:
            start_s = max(free_s, prompts[0].arrival_s)
            if start_s >= now_s:
                break
            room, work_s, done, part = steps.step_tokens, 0.0, 0, 0
            for one in prompts:
                if room <= 0 or one.arrival_s > start_s:
                    break
                part = min(one.tokens, steps.chunk_tokens, room)
                work_s += cost.marginal_s(part, one.cached_tokens)
                room -= part
                if part < one.tokens:
                    break
                done, part = done + 1, 0
            free_s = start_s + steps.seconds(work_s)
            self.busy_s += free_s - start_s
            self._end(done, free_s)
            if part:
                one = prompts[0]
                left, cached = one.tokens - part, one.cached_tokens + part
                self.load = self.load.minus(one.tokens, one.cached_tokens).plus(left, cached)
                prompts[0] = one._replace(tokens=left, cached_tokens=cached)
        return free_s

    def _end(self, done: int, free_s: float) -> None:
        ended, lost = self.prompts[:done], False
        for one in ended:
            self.took_s[one.lane].append(free_s - one.arrival_s)
            self.ends_s[one.request_id] = free_s
            self.load = self.load.minus(one.tokens, one.cached_tokens)
            lost = lost or (one.lane is Lane.LONG and one.takes_s >= self.peak_s)
        del self.prompts[:done]
        if lost:
            self.peak_s = max((one.takes_s for one in self.prompts if one.lane is Lane.LONG), default=0.0)

    def expect(self, joined: int, end_s: float, steps: Steps) -> dict[str, float]:
        """When the prompts that joined, the last of the queue, would end if no other came."""
        prompts, ends_s = self.prompts, {}
        joined = min(joined, len(prompts))
        if not joined:
            return {}
        first, load = len(prompts) - joined, self.load
        for one in prompts[first:]:
            load = load.minus(one.tokens, one.cached_tokens)
        for position in range(first, len(prompts)):
            one = prompts[position]
            load = load.plus(one.tokens, one.cached_tokens)
            ends_s[one.request_id] = due_s = end_s + steps.share_s(load)
            prompts[position] = one._replace(takes_s=due_s - one.arrival_s)
            if one.lane is Lane.LONG:
                self.peak_s = max(self.peak_s, due_s - one.arrival_s)
        return ends_s
