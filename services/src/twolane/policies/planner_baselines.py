"""Scalers that the planner must beat: the HorizontalPodAutoscaler's rule, and a planner blind to queues.

The simulator plays them beside the planner; no live process uses them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from twolane.policies.planner_demand import Demand
from twolane.policies.planner_settings import PlannerSettings
from twolane.policies.planner_view import PlannerView, PoolKind, PoolState, PoolTarget, ScalePlan


@dataclass(frozen=True, slots=True)
class Hpa:
    """The algorithm of HorizontalPodAutoscaler v2 on the busy share of each pool, pool by pool.

    Attributes:
        targets: busy share to aim at.
        tolerance: a deviation from the target up to this share changes nothing.
        down_s: stabilisation window on the way down.
    """

    targets: Mapping[PoolKind, float]
    tolerance: float = 0.1
    down_s: float = 300.0

    def plan(self, now_s: float, view: PlannerView) -> ScalePlan:
        """Asks for ceil(workers × use / target), at most doubling or four more at a time."""
        memory: tuple[tuple[float, PoolKind, int], ...] = view.memory or ()
        kept = tuple(item for item in memory if item[0] > now_s - self.down_s)
        targets = {}
        for kind, pool in view.pools.items():
            wish = self._wish(kind, pool)
            kept = (*kept, (now_s, kind, wish))
            highest = max(count for _, other, count in kept if other is kind)
            count = wish if wish >= pool.wanted else min(pool.wanted, highest)
            count = min(count, max(2 * pool.wanted, pool.wanted + 4))
            targets[kind] = PoolTarget(pool.held(max(1, count)), f"use {pool.busy} of {self.targets[kind]}")
        return ScalePlan(targets, memory=kept)

    def _wish(self, kind: PoolKind, pool: PoolState) -> int:
        if pool.busy is None or pool.ready == 0:
            return pool.wanted
        ratio = pool.busy / self.targets[kind]
        if pool.pending and ratio > 1.0:
            # Pods that are not ready count as idle on the way up.
            ratio = ratio * pool.ready / (pool.ready + pool.pending)
            if ratio <= 1.0 + self.tolerance:
                return pool.wanted
            return math.ceil(ratio * (pool.ready + pool.pending) - 1e-9)
        if abs(ratio - 1.0) <= self.tolerance:
            return pool.wanted
        return math.ceil(ratio * pool.ready - 1e-9)


@dataclass(frozen=True, slots=True)
class BlindMemory:
    """What the blind planner remembers: the load, since when it was summed up, and the last counts."""

    demand: Demand
    since_s: float
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    counts: Mapping[PoolKind, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueBlind:
    """Throughput by profile over the load of the last period, as throughput planners have it.

    Queues, pods on their way and missed targets are not looked at.

    Attributes:
        load: share of a worker's throughput to plan with.
        period_s: seconds between two decisions.
        settings: targets, for the throughput of a decode worker.
    """

    load: float
    period_s: float = 180.0
    settings: PlannerSettings = field(default_factory=PlannerSettings)

    def plan(self, now_s: float, view: PlannerView) -> ScalePlan:
        """Decides once a period; in between the last counts stay."""
        memory: BlindMemory = view.memory or BlindMemory(Demand.start(self.settings), now_s - view.span_s)
        demand = memory.demand.observe(replace(view, complete=True), self.settings)
        requests = sum(traffic.requests for traffic in view.lanes.values())
        prefill = (demand_now := demand.latest(view)).short + demand_now.long
        sums = (
            memory.sums[0] + prefill * view.span_s,
            memory.sums[1] + requests * demand.output_tokens,
            memory.sums[2] + view.span_s,
        )
        counts = dict(memory.counts) or {kind: pool.wanted for kind, pool in view.pools.items()}
        since_s = memory.since_s
        if now_s - since_s >= self.period_s and sums[2] > 0.0:
            rate = demand.rate(view.cost, self.settings)
            works = {
                PoolKind.PREFILL: sums[0] / sums[2],
                PoolKind.DECODE: sums[1] / sums[2] / rate.tokens_per_s,
            }
            counts = {kind: max(1, math.ceil(works[kind] / self.load - 1e-9)) for kind in view.pools}
            sums, since_s = (0.0, 0.0, 0.0), now_s
        targets = {
            kind: PoolTarget(pool.held(counts[kind]), "throughput by profile")
            for kind, pool in view.pools.items()
        }
        return ScalePlan(targets, memory=BlindMemory(demand, since_s, sums, counts))
