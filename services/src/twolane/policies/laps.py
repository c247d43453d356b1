"""Two lanes measured against first come, first served: twolane's own prefill policy.

Starts from LAPS (arXiv 2601.11589) and adds what its public code lacks; `laps_fixed` is that code. Prefill
workers run it by default, the simulator runs the same object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from twolane.policies.laps_moment import Moment, head_start_s, may_postpone, moment_of
from twolane.policies.long_chunks import long_batch
from twolane.policies.packing import BatchLimits, pack
from twolane.policies.prefill import Chunk, PrefillDecision, PrefillView, WaitingPrefill
from twolane.policies.settings import PrefillSettings
from twolane.policies.wait_depth import wait_until_s

# Predicted times may be exceeded by this share before a deadline is at risk.
SAFETY = 1.1
# Short prompts may always take this long: less can't be told from the noise of steps.
SHORT_FLOOR_S = 0.05


@dataclass(frozen=True, slots=True)
class Laps:
    """Short batches and chunks of long prompts, never in one batch.

    Reference. `FcfsClock` plays fcfs over the same prompts. Every long prompt has a date: what fcfs gives
    it, or what keeps the lane's tail as fcfs would have it. Where that is past its deadline, the deadline
    comes first, and as few deadlines as possible are given up for the dates (`due_order`). Equal prompts
    thus go in order of arrival until deadlines break; then those that can still make it go first. A
    priority makes a prompt older; negative ones wait for all others, at most long_age_limit_s.

    Whom to run. Short prompts run at once while the long lane has slack and the worker is not behind what
    fcfs would have computed (no debt beyond what idle time repays). Else they gather behind chunks for a
    share of the time that fcfs would let them wait, as few large batches save what the lane lacks.

    A short prompt gathers behind no chunk that would end after it is due, by its deadline or short_budget_s
    after its arrival, and a late one behind none at all, save for the chunk that ends a run of short batches.

    Few of the largest long prompts, postpone_share of all, may be `postponed` where that keeps deadlines of
    others: they are due at postpone_factor times their time under fcfs (or the lane's tail).

    Bound. While a long prompt waits the worker never idles, and at most short_batches_per_long short
    batches run between two chunks of long prompts. Let A = long_age_limit_s, for the few that are postponed
    the longer of it and postpone_limit_s, k = short_batches_per_long, S the longest short batch
    (short_batch_tokens tokens, depth_max prompts), L the longest chunk (long_chunk_max_tokens), B the longer
    of both, and W the uncached tokens of each long prompt that waits or arrives up to A later (another
    long_age_limit_s for those with a priority), the prompt itself included. Then it ends within

        B + C · (k·S + L),    C = Σ ⌈2W / long_chunk_min_tokens⌉

    of its arrival (A later with a negative priority), however many short prompts arrive; a longer lane of
    long prompts changes nothing unless they arrive within A.
    """

    settings: PrefillSettings
    name: str = "laps"

    def boundary_tokens(self, memory: Any) -> int:
        """The fitted boundary of the lanes."""
        return memory.boundary_tokens if memory else self.settings.short_max_uncached_tokens

    def decide(self, now_s: float, view: PrefillView) -> PrefillDecision:
        """Runs short prompts, a chunk of long ones, or waits for short company when that pays."""
        moment = moment_of(self.settings, now_s, view)
        if not view.waiting:
            return PrefillDecision(memory=moment.memory)
        if moment.longs:
            gather_s = self._gather_until_s(moment)
            chunks = long_batch(self.settings, moment, self._patience_s(moment, gather_s))
            if moment.shorts and self._short_first(moment, chunks, gather_s):
                return self._run_short(moment, view)
            return self._run_long(moment, chunks, view)
        wake_s = self._wait(moment)
        if wake_s is not None:
            depth = moment.memory.depth.waiting(now_s, wake_s)
            return PrefillDecision(wake_s=wake_s, memory=replace(moment.memory, depth=depth))
        return self._run_short(moment, view)

    def _run_short(self, moment: Moment, view: PrefillView) -> PrefillDecision:
        settings, memory = self.settings, moment.memory
        ordered = sorted(moment.shorts, key=self._short_key)
        tokens = min(settings.short_batch_tokens, settings.max_batch_tokens)
        chunks = pack(ordered, BatchLimits(tokens, prompts=settings.depth_max))
        memory = replace(
            memory,
            measured=memory.measured.dispatched(chunks, view.waiting),
            short_run=memory.short_run + 1,
            depth=memory.depth.dispatched(moment.now_s, len(chunks), settings.depth_max),
        )
        return PrefillDecision(chunks, memory=memory)

    def _run_long(self, moment: Moment, chunks: tuple[Chunk, ...], view: PrefillView) -> PrefillDecision:
        postponed = moment.memory.postponed
        if may_postpone(self.settings):
            postponed = postponed.started([chunk.request_id for chunk in chunks])
        measured = moment.memory.measured.dispatched(chunks, view.waiting)
        memory = replace(moment.memory, measured=measured, short_run=0, postponed=postponed)
        return PrefillDecision(chunks, memory=memory)

    # When short prompts are due

    def _short_key(self, prompt: WaitingPrefill) -> tuple[float, float]:
        # A distant deadline is no reason to let all others pass.
        due_s = start_s = prompt.arrival_s
        due_s += self.settings.short_budget_s
        if prompt.deadline_s is not None and prompt.deadline_s < due_s:
            due_s = prompt.deadline_s
        if prompt.priority <= 0:
            return due_s, start_s
        older_s = head_start_s(self.settings, prompt)
        return due_s - older_s, start_s - older_s

    def _gather_until_s(self, moment: Moment) -> list[float]:
        """When each short prompt has gathered enough: a share of its time under fcfs, and before it is due.

        Due by its deadline or by the budget of its lane. It gathers longer while dates of the long lane are
        broken.
        """
        settings = self.settings
        share = settings.short_share_late if moment.slack_s < 0.0 else settings.short_share
        wait_s = max(share * moment.memory.clock.short_s, SHORT_FLOOR_S)
        most_s = min(wait_s, settings.short_budget_s)
        return [
            prompt.arrival_s + most_s
            if prompt.deadline_s is None
            else min(prompt.deadline_s, prompt.arrival_s + wait_s)
            for prompt in moment.shorts
        ]

    def _patience_s(self, moment: Moment, gather_s: Sequence[float]) -> float:
        """Seconds for which the waiting short prompts can still wait, those aside that are late anyway."""
        if not gather_s:
            return math.inf
        ready_s = moment.now_s + moment.short_s
        slack_s = min([each - ready_s for each in gather_s if each >= ready_s], default=math.inf)
        return (slack_s - self.settings.deadline_margin_s) / SAFETY

    # Between the lanes

    def _short_first(self, moment: Moment, chunks: tuple[Chunk, ...], gather_s: Sequence[float]) -> bool:
        """Whether the short lane runs before these chunks of the long lane."""
        settings = self.settings
        if moment.memory.short_run >= self._short_runs_allowed(moment):
            return False
        if not settings.defer_short or not moment.cost.trusted(settings.fit_min_samples):
            return True
        short_s = moment.short_s
        if moment.slack_s >= SAFETY * short_s and moment.debt_s <= moment.credit_s:
            return True
        # Chunks are the first of the lane, in its order.
        work = [(chunk.tokens, one.cached_tokens) for chunk, one in zip(chunks, moment.longs, strict=False)]
        chunk_s = moment.cost.batch_s(work)
        after_s = moment.now_s + SAFETY * (chunk_s + short_s) + settings.deadline_margin_s
        return min(gather_s) < after_s

    def _short_runs_allowed(self, moment: Moment) -> int:
        """Short batches in a row, fewer as the oldest long prompt ages, never less than one."""
        settings = self.settings
        oldest_s = moment.now_s - min([prompt.arrival_s for prompt in moment.longs])
        age = oldest_s / settings.long_age_limit_s if settings.long_age_limit_s > 0.0 else 1.0
        return max(1, math.ceil(settings.short_batches_per_long * (1.0 - min(age, 1.0))))

    # Short prompts alone

    def _wait(self, moment: Moment) -> float | None:
        """When to look again, or None to run now: waiting pays only with enough short arrivals."""
        settings = self.settings
        if not settings.adaptive_wait or not moment.cost.trusted(settings.fit_min_samples):
            return None
        service_s = moment.short_s
        latest_s = min(
            (
                prompt.deadline_s - service_s - settings.deadline_margin_s
                for prompt in moment.shorts
                if prompt.deadline_s is not None and moment.now_s + service_s <= prompt.deadline_s
            ),
            default=math.inf,
        )
        latest_s = min(latest_s, min(prompt.arrival_s for prompt in moment.shorts) + settings.window_s)
        memory = moment.memory
        return wait_until_s(
            moment.now_s, len(moment.shorts), memory.depth.target, service_s, memory.arrivals, latest_s
        )
