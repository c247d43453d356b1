"""When prompts would end under first come, first served: the reference that laps measures itself by.

A virtual clock, as fair queueing keeps one: every arrival also joins an imaginary queue over both lanes that
an imaginary worker serves as the policy fcfs does. So it is known online what fcfs would have given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from twolane.core.request import Lane
from twolane.policies.cost import PrefillCost
from twolane.policies.prefill import WaitingPrefill
from twolane.policies.recent import Recent, Shares

# A long prompt may take this share of what the slowest of late, those above this quantile aside, would have
# taken under fcfs: later than its own turn there, but not so late that the lane's tail grows.
TAIL_SHARE = 0.95
TAIL_QUANTILE = 0.985
SHORT_QUANTILE = 0.9


@dataclass(frozen=True, slots=True)
class Steps:
    """How fcfs cuts its steps: the cost of one, tokens of a step and of a prompt's part of it at most."""

    cost: PrefillCost
    step_tokens: int
    chunk_tokens: int

    def seconds(self, work_s: float) -> float:
        """Of a step whose prompts add `work_s`: the reading of weights hides behind much computing."""
        return max(self.cost.constant_s, self.cost.heavy_constant_s + work_s)

    def share_s(self, tokens: int, cached_tokens: int) -> float:
        """What a prompt adds to the queue, its share of the constant part of steps included."""
        cost = self.cost
        constant_s = cost.heavy_constant_s * tokens / self.chunk_tokens
        return cost.marginal_s(tokens, cached_tokens) + constant_s


@dataclass(frozen=True, slots=True)
class Imagined:
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

    Attributes:
        free_s: when its step ends.
        seen_s: newest arrival that joined.
        queue: what waits there, in order of arrival.
        dates_s: by request that really waits: when fcfs ends it, expected and then known, or later where
            the tail of the lane allows.
        longs: seconds that long prompts took there of late.
        shorts: the same of short ones.
        shares: of its time.
    """

    free_s: float = -math.inf
    seen_s: float = -math.inf
    queue: tuple[Imagined, ...] = ()
    dates_s: Mapping[str, float] = field(default_factory=dict)
    longs: Recent = field(default_factory=Recent)
    shorts: Recent = field(default_factory=Recent)
    shares: Shares = field(default_factory=Shares)

    def after(self, now_s: float, waiting: Sequence[WaitingPrefill], steps: Steps) -> FcfsClock:
        """With the prompts that came since, up to now."""
        known = {one.request_id for one in waiting if one.request_id in self.dates_s}
        # A worker without work has none under fcfs either, whatever was aborted. What is dropped goes
        # unmeasured, so the windows tell of busy times: idle ones don't show what waiting is usual.
        queue = list(self.queue) if known else []
        queued = known.union(one.request_id for one in queue)
        joined = [p for p in waiting if p.request_id not in queued and p.arrival_s >= self.seen_s]
        queue += [
            Imagined(p.request_id, p.arrival_s, p.uncached_tokens, p.cached_tokens, p.lane) for p in joined
        ]
        served = _Served({Lane.SHORT: [], Lane.LONG: []})
        free_s = _serve(queue, self.free_s, now_s, steps, served)
        dates_s = dict(self.dates_s)
        dates_s.update(served.ends_s)
        _expect(queue, max(free_s, now_s), steps, dates_s)
        longs = self.longs.after(served.took_s[Lane.LONG])
        peak_s = max((one.takes_s for one in queue if one.lane is Lane.LONG), default=0.0)
        tail_s = TAIL_SHARE * max(peak_s, longs.quantile(TAIL_QUANTILE))
        # One that had left and came back is not in the queue: it would have ended by now.
        dates_s = {p.request_id: max(dates_s.get(p.request_id, now_s), p.arrival_s + tail_s) for p in waiting}
        seen_s = max([self.seen_s, *(p.arrival_s for p in joined)])
        span_s = seen_s - self.seen_s if self.seen_s > -math.inf else 0.0
        short_s = sum(
            steps.cost.marginal_s(p.uncached_tokens, p.cached_tokens) for p in joined if p.lane is Lane.SHORT
        )
        return FcfsClock(
            free_s,
            seen_s,
            tuple(queue),
            dates_s,
            longs,
            self.shorts.after(served.took_s[Lane.SHORT]),
            self.shares.after(span_s, served.busy_s, short_s),
        )

    def backlog_s(self, now_s: float, cost: PrefillCost) -> float:
        """Seconds of work that the imaginary worker has left."""
        work_s = sum(cost.marginal_s(one.tokens, one.cached_tokens) for one in self.queue)
        return max(0.0, self.free_s - now_s) + work_s

    @property
    def short_s(self) -> float:
        """What all but the slowest short prompts took under fcfs of late."""
        return self.shorts.quantile(SHORT_QUANTILE)


@dataclass(slots=True)
class _Served:
    """What the imaginary worker did."""

    took_s: dict[Lane, list[float]]
    ends_s: dict[str, float] = field(default_factory=dict)
    busy_s: float = 0.0


def _serve(queue: list[Imagined], free_s: float, now_s: float, steps: Steps, served: _Served) -> float:
    """Runs the steps that begin before now; returns when the last of them ends."""
    while queue:
        start_s = max(free_s, queue[0].arrival_s)
        if start_s >= now_s:
            break
        room, work_s, done, part = steps.step_tokens, 0.0, 0, 0
        for one in queue:
            if room <= 0 or one.arrival_s > start_s:
                break
            part = min(one.tokens, steps.chunk_tokens, room)
            work_s += steps.cost.marginal_s(part, one.cached_tokens)
            room -= part
            if part < one.tokens:
                break
            done, part = done + 1, 0
        free_s = start_s + steps.seconds(work_s)
        served.busy_s += free_s - start_s
        for one in queue[:done]:
            served.took_s[one.lane].append(free_s - one.arrival_s)
            served.ends_s[one.request_id] = free_s
        if part:
            one = queue[done]
            queue[done] = replace(one, tokens=one.tokens - part, cached_tokens=one.cached_tokens + part)
        del queue[:done]
    return free_s


def _expect(queue: list[Imagined], end_s: float, steps: Steps, dates_s: dict[str, float]) -> None:
    """Fills in when the prompts that joined would end if no other came."""
    for position, one in enumerate(queue):
        end_s += steps.share_s(one.tokens, one.cached_tokens)
        if one.request_id not in dates_s:
            dates_s[one.request_id] = end_s
            queue[position] = replace(one, takes_s=end_s - one.arrival_s)
