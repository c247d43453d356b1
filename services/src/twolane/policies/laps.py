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
# How steeply the weight of short prompts falls with the age of the oldest long one.
WEIGHT_POWER = 4
LEAST_WEIGHT = 1e-6
# A lane that is fully behind counts the capacity that a larger batch saves this many times inversely.
LEAST_AHEAD = 0.02
# A step costs at least this share of its time as such; steps of equal size alone don't tell how much.
LEAST_SAVING = 0.01
# Predicted times may be exceeded by this share before a deadline is at risk.
SAFETY = 1.1


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


@dataclass(frozen=True, slots=True)
class Laps:
    """Short batches and chunks of long prompts, never in one batch.

    Order. Short prompts go by deadline. A long prompt is ordered by its arrival plus a lead: the time it
    has until its deadline; up to size_share of the lane's present wait, the more the larger it is beside
    the others; and late_share of its own wait once its deadline can't be met. So deadlines decide; smaller
    ones go first when the lane is behind; and a late one gives way to those that need not be late. The lead
    is at most long_age_limit_s. A priority counts as an earlier arrival, bounded alike.

    Whom to run. With both lanes waiting, short prompts gather behind chunks of the long lane until their
    waits outweigh what a batch of them costs the long prompts, or until one of them becomes due. A chunk
    is as large as pays for both lanes.

    A short prompt gathers behind no chunk that would end after it is due, by its deadline or short_budget_s
    after its arrival, and a late one behind none at all, save for the chunk that ends a run of short batches.

    Bound. While a long prompt waits the worker never idles, and at most short_batches_per_long short
    batches run between two chunks of long prompts. Let A = long_age_limit_s, k = short_batches_per_long,
    S the longest short batch (short_batch_tokens tokens, depth_max prompts), L the longest chunk
    (long_chunk_max_tokens), B the longer of both, and W the uncached tokens of each long prompt that
    waits or arrives up to A later (2A for those with a priority), the prompt itself included. Then it ends
    within

        B + C · (k·S + L),    C = Σ ⌈2W / long_chunk_min_tokens⌉

    of its arrival, however many short prompts arrive; a longer lane of long prompts changes nothing
    unless they arrive within A.
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
        head_start_s = self._head_start_s(prompt)
        return (self._due_s(prompt) - head_start_s, prompt.arrival_s - head_start_s)

    def _due_s(self, prompt: WaitingPrefill) -> float:
        """When a short prompt's first token is due, by its deadline or by the budget of its lane."""
        due_s = prompt.arrival_s + self.settings.short_budget_s
        return due_s if prompt.deadline_s is None else prompt.deadline_s

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
        """The next chunk of the first long prompt; if that ends it, whole others that cost it little.

        A prompt is cut into equal chunks, so that none ends in a small step. A prompt that joins delays the
        first by its own time and saves the queue the constant part of a step; a lane that is behind needs
        the capacity, so there the saving counts for the prompts to come, too.
        """
        ordered = self._long_order(moment)
        first, settings = ordered[0], self.settings
        if not self._adapts_chunks(moment):
            return pack(ordered, BatchLimits(settings.long_chunk_tokens))
        longest_s = self._chunk_target_s(moment)
        most = min(settings.long_chunk_max_tokens, settings.max_batch_tokens)
        room = max(settings.long_chunk_min_tokens, moment.cost.tokens_within(longest_s, first.cached_tokens))
        room = min(room, most)
        if first.uncached_tokens > room:
            pieces = math.ceil(first.uncached_tokens / room)
            return (Chunk(first.request_id, math.ceil(first.uncached_tokens / pieces)),)
        ahead = max(1.0 - self._behind(moment), LEAST_AHEAD)
        step_s = moment.cost.prompt_s(first.uncached_tokens, first.cached_tokens)
        saved_s = max(moment.cost.heavy_constant_s, LEAST_SAVING * step_s)
        fill_s = min(len(ordered) * saved_s / ahead, longest_s - moment.cost.constant_s)
        chosen, tokens, batch_s = 0, 0, 0.0
        for prompt in ordered:
            tokens += prompt.uncached_tokens
            batch_s += moment.cost.marginal_s(prompt.uncached_tokens, prompt.cached_tokens)
            if chosen and (batch_s > fill_s or tokens > most):
                break
            chosen += 1
        return pack(ordered[:chosen], BatchLimits(most))

    def _long_order(self, moment: _Moment) -> list[WaitingPrefill]:
        """By arrival plus lead; service times fall as prompts advance, so a started one keeps its place."""
        settings, cost, now_s = self.settings, moment.cost, moment.now_s
        services = [cost.prompt_s(prompt.uncached_tokens, prompt.cached_tokens) for prompt in moment.longs]
        mean_s = sum(services) / len(services)
        oldest_s = now_s - min(prompt.arrival_s for prompt in moment.longs)
        # Sizes matter as far as the lane is behind: with all deadlines far off, first come is fair.
        size_s = settings.size_share * self._behind(moment) * oldest_s
        keys = {}
        for prompt, service_s in zip(moment.longs, services, strict=True):
            budget_s = self._long_budget_s(prompt)
            lead_s = budget_s + size_s * service_s / (service_s + mean_s)
            if now_s + service_s > prompt.arrival_s + budget_s:
                lead_s += settings.late_share * (now_s - prompt.arrival_s)
            start_s = prompt.arrival_s - self._head_start_s(prompt)
            keys[prompt.request_id] = start_s + min(lead_s, settings.long_age_limit_s)
        return sorted(moment.longs, key=lambda prompt: keys[prompt.request_id])

    def _behind(self, moment: _Moment) -> float:
        """How far the long lane is behind: its oldest wait as a share of its tightest budget, at most 1."""
        oldest_s = moment.now_s - min(prompt.arrival_s for prompt in moment.longs)
        return min(1.0, oldest_s / max(min(map(self._long_budget_s, moment.longs)), 1e-9))

    def _long_budget_s(self, prompt: WaitingPrefill) -> float:
        """Seconds from a long prompt's arrival until it is due."""
        if prompt.deadline_s is None:
            return self.settings.long_budget_s
        return max(0.0, prompt.deadline_s - prompt.arrival_s)

    def _chunk_target_s(self, moment: _Moment) -> float:
        """Seconds of the next chunk: the longer the queue the more, the more short prompts the less."""
        target_s = self.settings.long_chunk_target_s
        longest_s = min(target_s, self._slack_s(moment))
        least_s = max(target_s / LEAST_CHUNK, MIN_EFFICIENCY * moment.cost.constant_s)
        return max(min(self._best_chunk_s(moment), longest_s), least_s)

    def _adapts_chunks(self, moment: _Moment) -> bool:
        """Whether chunks are sized by cost. Long prompts alone never show what light steps cost."""
        return self.settings.adaptive_chunk and moment.cost.fit.heavy.samples >= self.settings.fit_min_samples

    def _best_chunk_s(self, moment: _Moment) -> float:
        """Seconds of a chunk at which both lanes together lose least.

        A chunk of T seconds holds up the rate·T short prompts that arrive in it by T/2 each; a smaller
        one makes the whole long queue pay for a step more often. With c the cost of a step the sum is least
        at T = √(2 · queue · c / (rate · weight)). When short prompts come often, a short batch cuts in after
        each chunk and c is its constant part; else c is what one more heavy step costs alone.
        """
        rate = moment.memory.arrivals.rate_per_s(moment.now_s)
        if rate <= 0.0:
            return math.inf
        queue, weight = len(moment.longs), self._short_weight(moment)
        cuts_s, alone_s = moment.cost.constant_s, moment.cost.heavy_constant_s
        full_s = math.sqrt(2.0 * queue * cuts_s / (rate * weight))
        often = max(0.0, min(1.0, rate * full_s - 0.5))
        return math.sqrt(2.0 * queue * (alone_s + often * (cuts_s - alone_s)) / (rate * weight))

    def _slack_s(self, moment: _Moment) -> float:
        """Seconds for which the waiting short prompts can still wait, those aside that are late anyway."""
        ready_s = moment.now_s + self._short_s(moment)
        slacks = (self._due_s(prompt) - ready_s for prompt in moment.shorts)
        slack_s = min((slack for slack in slacks if slack >= 0.0), default=math.inf)
        return (slack_s - self.settings.deadline_margin_s) / SAFETY

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
        after_s = moment.now_s + SAFETY * (chunk_s + short_s) + settings.deadline_margin_s
        if any(self._due_s(prompt) < after_s for prompt in moment.shorts):
            return True
        # As in renting skis: gather until the waits, by the end of the chunk, equal what a batch costs the
        # long prompts, each of which it delays by its own time. That is at most twice the least possible.
        chunk_end_s = moment.now_s + chunk_s
        waits_s = sum(chunk_end_s - prompt.arrival_s for prompt in moment.shorts)
        return self._short_weight(moment) * waits_s >= len(moment.longs) * short_s

    def _short_weight(self, moment: _Moment) -> float:
        """What a second of a short prompt's wait counts against one of a long prompt's.

        Most while the oldest long prompt is fresh; it falls steeply as that one uses its time up, as then
        the lane is behind and every delay reaches the long prompts to come, too.
        """
        settings = self.settings
        oldest = min(moment.longs, key=lambda prompt: prompt.arrival_s)
        budget_s = max(self._long_budget_s(oldest), 1e-9)
        left = max(0.0, 1.0 - (moment.now_s - oldest.arrival_s) / budget_s)
        return max(settings.short_weight, settings.fresh_weight * left**WEIGHT_POWER, LEAST_WEIGHT)

    def _short_runs_allowed(self, moment: _Moment) -> int:
        """Short batches in a row, fewer as the oldest long prompt ages, never less than one."""
        settings = self.settings
        oldest_s = min(prompt.arrival_s for prompt in moment.longs)
        age = (
            (moment.now_s - oldest_s) / settings.long_age_limit_s if settings.long_age_limit_s > 0.0 else 1.0
        )
        return max(1, math.ceil(settings.short_batches_per_long * (1.0 - min(age, 1.0))))
