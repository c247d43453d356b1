"""What the planner remembers of the load: forecasts per kind of pool, mean lengths, kept targets.

`Demand.observe` takes one view; planner.py sizes pools from what comes out. Everything is counted in
worker-seconds per second, that is in workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from twolane.core.request import Lane
from twolane.policies.planner_forecast import Forecast, ForecastSettings
from twolane.policies.planner_settings import PlannerSettings
from twolane.policies.planner_sizing import DecodeRate, decode_rate, fullest_rows
from twolane.policies.planner_view import LaneTraffic, PlannerView, PoolKind, WorkerCost

# Answers after which the mean length is known well; fewer count less.
LENGTH_ANSWERS = 200.0
FIRST_OUTPUT_TOKENS = 200.0
FIRST_PROMPT_TOKENS = 500.0
# Weight of the newest mean of how long prompts take and how unequal they are.
SERVICE_WEIGHT = 0.2
SCATTER_WEIGHT = 0.05
# Prompts are taken for no less and no more unequal: squared coefficient of variation.
VARIATION = (1.0, 4.0)
# Time over which kept and missed targets are counted, and intervals' worth of requests it holds at least.
JUDGED_S = 1800.0
LEAST_JUDGED = 20.0
# Growth of care, as a logarithm, by an hour with twice the misses allowed, and by one interval at most.
CARE_PER_HOUR = 6.0
MOST_STEP = 0.5
# Below this share of use, misses have another cause than too few workers.
IN_USE = 0.2
# No more of the work may be left to chance, however calm it was.
MOST_LATE = 0.3


@dataclass(frozen=True, slots=True)
class Work:
    """Workers' worth of work, by kind."""

    short: float = 0.0
    long: float = 0.0
    decode: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.short + self.long + self.decode

    def of(self, kind: PoolKind) -> float:
        """What a pool has to do of it."""
        return {
            PoolKind.PREFILL: self.short + self.long,
            PoolKind.SHORT: self.short,
            PoolKind.LONG: self.long,
            PoolKind.DECODE: self.decode,
            PoolKind.MIXED: self.total,
        }[kind]


@dataclass(frozen=True, slots=True)
class Demand:
    """The memory.

    Attributes:
        forecasts: of the work of each kind of pool.
        service_s: mean seconds that a prompt takes, by lane.
        scatter_s: variance over mean of the work of an interval: how unequal prompts are and how they bunch.
        prompt_tokens: mean prompt.
        output_tokens: mean answer.
        judged: requests judged lately, faded; missed: those that missed a target.
        care: learned from missed targets. At 1 as much may be late as the goal allows, below it more, since
            many are in time although workers are too few for a moment.
        late_share: share of the work that may arrive while workers are too few: what the goal allows by care.
    """

    forecasts: Mapping[PoolKind, Forecast]
    service_s: Mapping[Lane, float] = field(default_factory=lambda: dict.fromkeys(Lane, 0.0))
    scatter_s: Mapping[Lane, float] = field(default_factory=lambda: dict.fromkeys(Lane, 0.0))
    prompt_tokens: float = FIRST_PROMPT_TOKENS
    output_tokens: float = FIRST_OUTPUT_TOKENS
    judged: float = 0.0
    missed: float = 0.0
    care: float = 0.4
    late_share: float = 0.025

    @classmethod
    def start(cls, settings: PlannerSettings) -> Demand:
        """Nothing seen yet."""
        horizon = max(1, math.ceil(settings.start_s / settings.interval_s))
        empty = Forecast(settings=ForecastSettings(horizon=horizon))
        return cls(dict.fromkeys(PoolKind, empty))

    def observe(self, view: PlannerView, settings: PlannerSettings) -> Demand:
        """With one more view; an incomplete one would look like a lull, so it is left out."""
        if not view.complete or view.span_s <= 0.0:
            return self
        learned = self._prompts(view)._lengths(view)._judge(view, settings)
        work = replace(learned.latest(view), decode=learned.held(view, settings))
        forecasts = {kind: one.observe(work.of(kind)) for kind, one in self.forecasts.items()}
        return replace(learned, forecasts=forecasts)

    def rate(self, cost: WorkerCost, settings: PlannerSettings) -> DecodeRate:
        """What a well filled decode worker does with answers of these lengths."""
        return decode_rate(cost, self.prompt_tokens, self.output_tokens, settings.tpot_s)

    def latest(self, view: PlannerView) -> Work:
        """Prefill that arrived since the last view, unsmoothed."""
        span_s = max(1e-9, view.span_s)
        work = {lane: work_of(traffic, view.cost) / span_s for lane, traffic in view.lanes.items()}
        return Work(work.get(Lane.SHORT, 0.0), work.get(Lane.LONG, 0.0))

    def variation(self, lane: Lane) -> float:
        """Squared coefficient of variation of the seconds that a prompt takes."""
        least, most = VARIATION
        mean_s = self.service_s[lane]
        return least if mean_s <= 0.0 else min(most, max(least, self.scatter_s[lane] / mean_s - 1.0))

    def held(self, view: PlannerView, settings: PlannerSettings) -> float:
        """Decode workers that all answers would fill, were they as full as pages, rows and pace allow.

        Answers on emptier workers end sooner, so what is held now stands for more on fuller ones.
        """
        load, cost = view.decode, view.cost
        if load.running <= 0.0:
            # No worker says what it decodes: what arrived, at mean lengths.
            requests = sum(traffic.requests for traffic in view.lanes.values())
            rate = self.rate(cost, settings)
            return requests / view.span_s * self.output_tokens / rate.tokens_per_s
        rows = min(cost.max_rows, load.running / max(1.0, decode_workers(view)))
        each = load.held_tokens / load.running
        now_s = cost.decode.step_s(int(rows * each), int(rows))
        full_rows = fullest_rows(cost, each, settings.tpot_s)
        full_s = cost.decode.step_s(int(full_rows * each), int(full_rows))
        return load.running / full_rows * max(1.0, full_s / max(1e-9, now_s))

    def _prompts(self, view: PlannerView) -> Demand:
        service, scatter = dict(self.service_s), dict(self.scatter_s)
        for lane, traffic in view.lanes.items():
            if traffic.requests <= 0.0:
                continue
            work = work_of(traffic, view.cost)
            share = SERVICE_WEIGHT if service[lane] else 1.0
            service[lane] += share * (work / traffic.requests - service[lane])
            kind = PoolKind.SHORT if lane is Lane.SHORT else PoolKind.LONG
            usual = self.forecasts[kind].level * view.span_s
            if usual > 0.0:
                scatter[lane] += SCATTER_WEIGHT * ((work - usual) ** 2 / usual - scatter[lane])
        return replace(self, service_s=service, scatter_s=scatter)

    def _lengths(self, view: PlannerView) -> Demand:
        output, prompt = self.output_tokens, self.prompt_tokens
        if view.decode.ended > 0.0:
            mean = view.decode.output_tokens / view.decode.ended
            output += min(1.0, view.decode.ended / LENGTH_ANSWERS) * (max(1.0, mean) - output)
        requests = sum(traffic.requests for traffic in view.lanes.values())
        if requests > 0.0:
            mean = sum(traffic.prompt_tokens for traffic in view.lanes.values()) / requests
            prompt += min(1.0, requests / LENGTH_ANSWERS) * (max(1.0, mean) - prompt)
        return replace(self, output_tokens=output, prompt_tokens=prompt)

    def _judge(self, view: PlannerView, settings: PlannerSettings) -> Demand:
        """Books kept and missed targets, and learns from them how careful to be.

        Care follows the sum of what was missed beyond the allowed, in hours' worth of what is allowed: an
        hour without a miss takes away what an hour with twice the allowed misses had added.
        """
        fade = math.exp(-view.span_s / JUDGED_S)
        fresh = sum(traffic.judged for traffic in view.lanes.values())
        fresh_missed = fresh - sum(traffic.met for traffic in view.lanes.values())
        judged, missed = self.judged * fade + fresh, self.missed * fade + fresh_missed
        step = 0.0
        if judged > 0.0:
            excess = fresh_missed / (1.0 - settings.goal) - fresh
            base = max(judged, LEAST_JUDGED * fresh)
            step = min(MOST_STEP, CARE_PER_HOUR * excess * JUDGED_S / (base * 3600.0))
        ready = sum(pool.ready for pool in view.pools.values())
        if step > 0.0 and self.forecasts[PoolKind.MIXED].level < IN_USE * ready:
            step = 0.0
        care = min(settings.care_most, max(settings.care_least, self.care * math.exp(step)))
        late_share = min(MOST_LATE, (1.0 - settings.goal) / care)
        return replace(self, judged=judged, missed=missed, care=care, late_share=late_share)


def decode_workers(view: PlannerView) -> int:
    """Workers that decode now, whichever pool they are of."""
    return sum(
        pool.ready if pool.working is None else pool.working
        for kind, pool in view.pools.items()
        if kind in (PoolKind.DECODE, PoolKind.MIXED)
    )


def work_of(traffic: LaneTraffic, cost: WorkerCost) -> float:
    """Worker-seconds of prompts; estimated from their tokens where it was not measured."""
    if traffic.work_s > 0.0 or traffic.requests <= 0.0:
        return traffic.work_s
    mean = traffic.uncached_tokens / traffic.requests
    held = max(0.0, traffic.prompt_tokens - traffic.uncached_tokens) / traffic.requests
    each = cost.prefill.token_s * mean + cost.prefill.attention_s * mean * (mean + 2.0 * held)
    return traffic.requests * (each + cost.prefill.cached_token_s * held)
