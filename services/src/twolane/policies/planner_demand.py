"""What the planner remembers of the load: forecasts per kind of work, mean lengths, kept targets.

`Demand.observe` takes one view; planner.py sizes pools from what comes out. Everything is counted in
worker-seconds per second, that is in workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from twolane.core.request import Lane
from twolane.policies.planner_forecast import Forecast, ForecastSettings
from twolane.policies.planner_settings import PlannerSettings
from twolane.policies.planner_sizing import DecodeRate, decode_rate
from twolane.policies.planner_view import LaneTraffic, PlannerView, PoolKind, WorkerCost

# Answers after which the mean length is known well; fewer count less.
LENGTH_ANSWERS = 200.0
FIRST_OUTPUT_TOKENS = 200.0
FIRST_PROMPT_TOKENS = 500.0
# Time over which kept and missed targets are counted.
JUDGED_S = 1800.0
# Growth of care, as a logarithm, by an hour with twice the misses allowed, and by one interval at most.
CARE_PER_HOUR = 0.7
MOST_STEP = 0.2
# Weight of the newest measure of how long answers stay.
STAY_WEIGHT = 0.1
# Below this share of use, misses have another cause than too few workers.
IN_USE = 0.35


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


@dataclass(frozen=True, slots=True)
class Demand:
    """The memory.

    Attributes:
        short: forecast of short prefill; likewise long, decode, and total for all three together.
        service_s: mean seconds that a prompt takes, by lane.
        prompt_tokens: mean prompt.
        output_tokens: mean answer.
        answers_per_s: arrivals, smoothed over the time that an answer may take.
        stay: how much longer answers hold pages than their steps take, by measure: transfers, waits between.
        waiting: answers that waited for pages at the last view.
        judged: requests judged lately, faded; missed: those that missed a target.
        care: how much less than the goal allows may arrive in bursts unmet, learned from missed targets.
        late_share: share of the work that may arrive in bursts that are not met.
    """

    short: Forecast
    long: Forecast
    decode: Forecast
    total: Forecast
    service_s: dict[Lane, float] = field(default_factory=lambda: dict.fromkeys(Lane, 0.0))
    prompt_tokens: float = FIRST_PROMPT_TOKENS
    output_tokens: float = FIRST_OUTPUT_TOKENS
    answers_per_s: float = 0.0
    stay: float = 1.1
    waiting: float = 0.0
    judged: float = 0.0
    missed: float = 0.0
    care: float = 1.0
    late_share: float = 0.01

    @classmethod
    def start(cls, settings: PlannerSettings) -> Demand:
        """Nothing seen yet."""
        horizon = max(1, math.ceil(settings.start_s / settings.interval_s))
        empty = Forecast(settings=ForecastSettings(horizon=horizon))
        return cls(empty, empty, empty, empty)

    def observe(self, view: PlannerView, settings: PlannerSettings) -> Demand:
        """With one more view; an incomplete one would look like a lull, so it is left out."""
        if not view.complete or view.span_s <= 0.0:
            return self
        learned = self._lengths(view)
        work = {lane: work_of(traffic, view.cost) for lane, traffic in view.lanes.items()}
        service = dict(learned.service_s)
        for lane, traffic in view.lanes.items():
            if traffic.requests > 0.0:
                mean_s = work[lane] / traffic.requests
                share = 0.2 if service[lane] else 1.0
                service[lane] += share * (mean_s - service[lane])
        rate = learned.rate(view.cost, settings)
        answers_per_s = learned._answers(view, settings)
        learned = replace(learned, answers_per_s=answers_per_s, stay=learned._stay(view))
        decode = learned.stay * answers_per_s * learned.output_tokens / rate.tokens_per_s
        short = work.get(Lane.SHORT, 0.0) / view.span_s
        long = work.get(Lane.LONG, 0.0) / view.span_s
        return replace(
            learned._judge(view, settings),
            short=self.short.observe(short),
            long=self.long.observe(long),
            decode=self.decode.observe(decode),
            total=self.total.observe(short + long + decode),
            service_s=service,
        )

    def rate(self, cost: WorkerCost, settings: PlannerSettings) -> DecodeRate:
        """What a well filled decode worker does with answers of these lengths."""
        return decode_rate(cost, self.prompt_tokens, self.output_tokens, settings.tpot_s)

    def latest(self, view: PlannerView) -> Work:
        """Prefill that arrived since the last view, unsmoothed."""
        span_s = max(1e-9, view.span_s)
        work = {lane: work_of(traffic, view.cost) / span_s for lane, traffic in view.lanes.items()}
        return Work(work.get(Lane.SHORT, 0.0), work.get(Lane.LONG, 0.0))

    @property
    def level(self) -> Work:
        """Work now."""
        return Work(self.short.level, self.long.level, self.decode.level)

    @property
    def expected(self) -> Work:
        """Work when a pod asked for now serves."""
        return Work(self.short.expected, self.long.expected, self.decode.expected)

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

    def _answers(self, view: PlannerView, settings: PlannerSettings) -> float:
        """Arrivals smoothed over the time that an answer may take: for so long a burst may wait for pages."""
        now = sum(traffic.requests for traffic in view.lanes.values()) / view.span_s
        if not self.total.seen:
            return now
        share = 1.0 - math.exp(-view.span_s / max(1e-3, self.output_tokens * settings.tpot_s))
        return self.answers_per_s + share * (now - self.answers_per_s)

    def _stay(self, view: PlannerView) -> float:
        """Tokens held over those that arrivals and steps explain; nothing is learned while answers wait."""
        load = view.decode
        workers = sum(
            pool.ready if pool.working is None else pool.working
            for kind, pool in view.pools.items()
            if kind in (PoolKind.DECODE, PoolKind.MIXED)
        )
        if load.waiting > 0.0 or load.running < workers or workers < 1:
            return self.stay
        step_s = view.cost.decode.step_s(int(load.held_tokens / workers), int(load.running / workers))
        held = self.answers_per_s * self.output_tokens * step_s
        held *= self.prompt_tokens + self.output_tokens / 2.0
        if held <= 0.0:
            return self.stay
        return self.stay + STAY_WEIGHT * (min(2.0, max(0.5, load.held_tokens / held)) - self.stay)

    def _judge(self, view: PlannerView, settings: PlannerSettings) -> Demand:
        """Books kept and missed targets, and learns from them how careful to be.

        Care follows the sum of what was missed beyond the allowed, in hours' worth of what is allowed: an
        hour without a miss takes away what an hour with twice the allowed misses had added. It grows only
        while no pod is on its way, since misses then are what those pods will end.
        """
        fade = math.exp(-view.span_s / JUDGED_S)
        fresh = sum(traffic.judged for traffic in view.lanes.values())
        fresh_missed = fresh - sum(traffic.met for traffic in view.lanes.values())
        judged, missed = self.judged * fade + fresh, self.missed * fade + fresh_missed
        step = 0.0
        if judged > 0.0:
            excess = fresh_missed / (1.0 - settings.goal) - fresh
            step = min(MOST_STEP, CARE_PER_HOUR * excess * JUDGED_S / (judged * 3600.0))
        ready = sum(pool.ready for pool in view.pools.values())
        pending = any(pool.pending for pool in view.pools.values())
        if step > 0.0 and (pending or self.total.level < IN_USE * ready):
            step = 0.0
        care = min(settings.care_most, max(settings.care_least, self.care * math.exp(step)))
        late_share = (1.0 - settings.goal) / care
        return replace(
            self,
            judged=judged,
            missed=missed,
            care=care,
            late_share=late_share,
            waiting=view.decode.waiting,
        )


def work_of(traffic: LaneTraffic, cost: WorkerCost) -> float:
    """Worker-seconds of prompts; estimated from their tokens where it was not measured."""
    if traffic.work_s > 0.0 or traffic.requests <= 0.0:
        return traffic.work_s
    mean = traffic.uncached_tokens / traffic.requests
    held = max(0.0, traffic.prompt_tokens - traffic.uncached_tokens) / traffic.requests
    each = cost.prefill.token_s * mean + cost.prefill.attention_s * mean * (mean + 2.0 * held)
    return traffic.requests * (each + cost.prefill.cached_token_s * held)
