"""Two lanes with adaptive waiting, ageing and chunks sized by cost: twolane's own prefill policy.

Starts from LAPS (arXiv 2601.11589) and adds what its public code lacks; `laps_fixed` is that code. Prefill
workers run it by default, the simulator runs the same object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twolane.core.request import Lane
from twolane.policies.cost import PrefillCost
from twolane.policies.lanes import fitted_boundary
from twolane.policies.measured import MeasuredCost
from twolane.policies.packing import BatchLimits, pack
from twolane.policies.prefill import Chunk, PrefillDecision, PrefillView, WaitingPrefill
from twolane.policies.settings import PrefillSettings
from twolane.policies.wait_depth import ShortArrivals, WaitDepth, wait_until_s


# The smallest chunk takes this fraction of the target, and this multiple of a step's constant part.
LEAST_CHUNK = 4.0
MIN_EFFICIENCY = 4.0


@dataclass(frozen=True, slots=True)
class LapsMemory:
    """What the policy carries from one decision to the next.

    Attributes:
        measured: fitted cost of batches.
        boundary_tokens: boundary of the lanes for prompts that arrive.
        short_run: short batches since the last chunk of a long prompt.
        arrivals: estimated rate of short prompts.
        depth: target depth of a short batch.
    """

    measured: MeasuredCost
    boundary_tokens: int
    short_run: int = 0
    arrivals: ShortArrivals = field(default_factory=ShortArrivals)
    depth: WaitDepth = field(default_factory=WaitDepth)


@dataclass(frozen=True, slots=True)
class _Moment:
    """One decision's inputs, sorted out."""

    now_s: float
    shorts: list[WaitingPrefill]
    longs: list[WaitingPrefill]
    cost: PrefillCost
    memory: LapsMemory

    def with_memory(self, memory: LapsMemory) -> _Moment:
        return replace(self, memory=memory)


@dataclass(frozen=True, slots=True)
class Laps:
    """Short batches and chunks of long prompts, never in one batch.

    Order. Short prompts go by deadline. Long prompts go by arrival + min(long_stretch × service time,
    long_age_limit_s), so that among them too a much shorter one goes first, but none is overtaken by a
    prompt that arrived long_age_limit_s later. A priority counts as an earlier arrival, bounded alike.

    Whom to run. With both lanes waiting, short prompts go first when that delays the prompts behind
    them less than waiting would delay the short ones, or when a deadline calls for it; else a chunk of
    the long lane runs and more short prompts gather meanwhile.

    Bound. While a long prompt waits the worker never idles, and at most short_batches_per_long short
    batches run between two chunks of long prompts. With S the longest short batch (short_batch_tokens
    tokens, depth_max prompts), L the longest chunk, B the longest batch, k = short_batches_per_long and
    C the chunks of long work ordered before the end of the prompt, it ends within

        B + C · (k·S + L)

    of its arrival. Only long prompts with an earlier order key count in C; none of those arrived more
    than long_age_limit_s after it.
    """

    settings: PrefillSettings
    name: str = "laps"

    def boundary_tokens(self, memory: Any) -> int:
        """The fitted boundary of the lanes."""
        return memory.boundary_tokens if memory else self.settings.short_max_uncached_tokens

    def decide(self, now_s: float, view: PrefillView) -> PrefillDecision:
        """Runs short prompts, a chunk of long ones, or waits for short company when that pays."""
        moment = self._moment(now_s, view)
        if not view.waiting:
            return PrefillDecision(memory=moment.memory)
        if not moment.shorts:
            return self._run_long(moment, view)
        if moment.longs:
            if self._short_first(moment):
                return self._run_short(moment, view)
            return self._run_long(moment, view)
        wake_s = self._wait(moment)
        if wake_s is not None:
            depth = moment.memory.depth.waiting(now_s, wake_s)
            return PrefillDecision(wake_s=wake_s, memory=replace(moment.memory, depth=depth))
        return self._run_short(moment, view)

    def _moment(self, now_s: float, view: PrefillView) -> _Moment:
        settings = self.settings
        memory: LapsMemory = view.memory or LapsMemory(MeasuredCost(), settings.short_max_uncached_tokens)
        measured = memory.measured.after(view.last_batch_s)
        boundary = memory.boundary_tokens
        if measured is not memory.measured:
            boundary = fitted_boundary(measured.cost, boundary, settings)
        shorts = [prompt for prompt in view.waiting if prompt.lane is Lane.SHORT]
        longs = [prompt for prompt in view.waiting if prompt.lane is Lane.LONG]
        arrivals = memory.arrivals.seen(prompt.arrival_s for prompt in shorts)
        memory = replace(memory, measured=measured, boundary_tokens=boundary, arrivals=arrivals)
        return _Moment(now_s, shorts, longs, measured.cost, memory)

    # Short batches

    def _short_batch(self, moment: _Moment) -> tuple[Chunk, ...]:
        settings = self.settings
        ordered = sorted(moment.shorts, key=self._short_key)
        tokens = min(settings.short_batch_tokens, settings.max_batch_tokens)
        return pack(ordered, BatchLimits(tokens, prompts=settings.depth_max))

    def _short_key(self, prompt: WaitingPrefill) -> tuple[float, float]:
        start_s = prompt.arrival_s - self._head_start_s(prompt)
        due_s = start_s + self.settings.long_age_limit_s
        return (due_s if prompt.deadline_s is None else min(prompt.deadline_s, due_s), start_s)

    def _head_start_s(self, prompt: WaitingPrefill) -> float:
        return min(max(prompt.priority, 0) * self.settings.priority_s, self.settings.long_age_limit_s)

    def _run_short(self, moment: _Moment, view: PrefillView) -> PrefillDecision:
        chunks = self._short_batch(moment)
        memory = moment.memory
        memory = replace(
            memory,
            measured=memory.measured.dispatched(chunks, view.waiting),
            short_run=memory.short_run + 1,
            depth=memory.depth.dispatched(moment.now_s, len(chunks), self.settings.depth_max),
        )
        return PrefillDecision(chunks, memory=memory)

    def _short_s(self, moment: _Moment) -> float:
        """Predicted seconds of a batch of the waiting short prompts."""
        return moment.cost.batch_s((prompt.uncached_tokens, prompt.cached_tokens) for prompt in moment.shorts)

    def _wait(self, moment: _Moment) -> float | None:
        """When to look again, or None to run now: waiting pays only with enough short arrivals."""
        if not self.settings.adaptive_wait or not moment.cost.trusted(self.settings.fit_min_samples):
            return None
        service_s = self._short_s(moment)
        latest_s = min(
            (
                prompt.deadline_s - service_s - self.settings.deadline_margin_s
                for prompt in moment.shorts
                if prompt.deadline_s is not None and moment.now_s + service_s <= prompt.deadline_s
            ),
            default=math.inf,
        )
        oldest_s = min(prompt.arrival_s for prompt in moment.shorts)
        latest_s = min(latest_s, oldest_s + self.settings.window_s)
        memory = moment.memory
        target = memory.depth.target
        return wait_until_s(moment.now_s, len(moment.shorts), target, service_s, memory.arrivals, latest_s)

    # Long chunks

    def _run_long(self, moment: _Moment, view: PrefillView) -> PrefillDecision:
        chunks = self._long_batch(moment)
        memory = moment.memory
        measured = memory.measured.dispatched(chunks, view.waiting)
        return PrefillDecision(chunks, memory=replace(memory, measured=measured, short_run=0))

    def _long_batch(self, moment: _Moment) -> tuple[Chunk, ...]:
        ordered = self._long_order(moment)
        return pack(ordered, BatchLimits(self._chunk_tokens(moment, ordered[0])))

    def _long_order(self, moment: _Moment) -> list[WaitingPrefill]:
        """By key; the service time falls as a prompt advances, so a started one keeps its place."""
        cost = moment.cost

        def key(prompt: WaitingPrefill) -> float:
            service_s = cost.prompt_s(prompt.uncached_tokens, prompt.cached_tokens)
            lead_s = self.settings.long_stretch * service_s
            if prompt.deadline_s is not None and moment.now_s + service_s > prompt.deadline_s:
                lead_s += self.settings.late_share * (moment.now_s - prompt.arrival_s)
            lead_s = min(lead_s, self.settings.long_age_limit_s)
            return prompt.arrival_s - self._head_start_s(prompt) + lead_s

        return sorted(moment.longs, key=key)

    def _chunk_tokens(self, moment: _Moment, head: WaitingPrefill) -> int:
        """Tokens of the next chunk: the longer the queue the larger, the more short prompts the smaller.

        A chunk of T seconds holds up the rate·T short prompts that arrive in it by T/2 each; a smaller
        one makes the whole long queue pay the constant part of a step more often. Their sum is least at
        T = √(2 · queue · T0 / (rate · weight)).
        """
        settings, cost = self.settings, moment.cost
        if not settings.adaptive_chunk or not cost.trusted(settings.fit_min_samples):
            return settings.long_chunk_tokens
        rate = moment.memory.arrivals.rate_per_s(moment.now_s)
        target_s = settings.long_chunk_target_s
        if rate > 0.0:
            weight = self._short_weight(moment)
            best_s = math.sqrt(2.0 * len(moment.longs) * cost.constant_s / (rate * weight))
            least_s = max(target_s / LEAST_CHUNK, MIN_EFFICIENCY * cost.constant_s)
            target_s = min(max(best_s, least_s), max(target_s, least_s))
        tokens = cost.tokens_within(target_s, head.cached_tokens)
        most = min(settings.long_chunk_max_tokens, settings.max_batch_tokens)
        return max(settings.long_chunk_min_tokens, min(tokens, most))

    def _chunk_s(self, moment: _Moment) -> float:
        """Predicted seconds of the chunk that would run now."""
        work = self._work(moment.longs, self._long_batch(moment))
        return moment.cost.batch_s(work)

    @staticmethod
    def _work(prompts: Sequence[WaitingPrefill], chunks: Sequence[Chunk]) -> list[tuple[int, int]]:
        cached = {prompt.request_id: prompt.cached_tokens for prompt in prompts}
        return [(chunk.tokens, cached[chunk.request_id]) for chunk in chunks]

    # Between the lanes

    def _short_first(self, moment: _Moment) -> bool:
        """Whether the short lane runs before the next chunk of the long lane."""
        settings = self.settings
        if moment.memory.short_run >= self._short_runs_allowed(moment):
            return False
        if not settings.defer_short or not moment.cost.trusted(settings.fit_min_samples):
            return True
        chunk_s = self._chunk_s(moment)
        short_s = self._short_s(moment)
        after_s = moment.now_s + chunk_s + short_s + settings.deadline_margin_s
        for prompt in moment.shorts:
            due_s = prompt.deadline_s
            if due_s is not None and after_s > due_s >= moment.now_s + short_s:
                return True
        # Deferring delays the short prompts by a chunk and saves the long queue one step's constant part.
        gain_s = len(moment.longs) * moment.cost.constant_s
        return len(moment.shorts) * self._short_weight(moment) * chunk_s >= gain_s

    def _short_weight(self, moment: _Moment) -> float:
        """What a second of a short prompt's wait counts against one of a long prompt's.

        As the long queue grows it falls from 1, since a delay then also reaches the long prompts to come.
        """
        return max(self.settings.short_weight, 1.0 / len(moment.longs))

    def _short_runs_allowed(self, moment: _Moment) -> int:
        """Short batches in a row, fewer as the oldest long prompt ages, never less than one."""
        settings = self.settings
        oldest_s = min(prompt.arrival_s for prompt in moment.longs)
        age = (
            (moment.now_s - oldest_s) / settings.long_age_limit_s if settings.long_age_limit_s > 0.0 else 1.0
        )
        return max(1, math.ceil(settings.short_batches_per_long * (1.0 - min(age, 1.0))))
