"""How many workers every pool should have: forecast, queues and targets, pools planned together.

The operator asks it every few seconds and writes the counts, the simulator plays it. Where workers can
change their role without a restart, pools share their headroom: a worker goes where the fewest requests
are late for it, and a new pod is asked for only when all workers together are too few.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from twolane.core.request import Lane
from twolane.policies.planner_bounds import coordinated, spread
from twolane.policies.planner_demand import Demand
from twolane.policies.planner_needs import Need, best_split, late_with, workers_within
from twolane.policies.planner_settings import PlannerSettings
from twolane.policies.planner_sizing import PrefillLoad, prefill_workers
from twolane.policies.planner_view import PlannerView, PoolKind, PoolTarget, ScalePlan
from twolane.policies.roles import Group, Move, moves_between

# Prefill that waits up to so long on each worker is normal.
NORMAL_QUEUE_S = 0.5
# Pause between two changes of role, and what one must spare, as a share of what may be late.
MOVE_S = 15.0
MOVE_GAIN = 0.5

_GROUPS = {
    PoolKind.PREFILL: Group.BOTH,
    PoolKind.SHORT: Group.SHORT,
    PoolKind.LONG: Group.LONG,
    PoolKind.DECODE: Group.DECODE,
}
_LANES = {
    PoolKind.PREFILL: (Lane.SHORT, Lane.LONG),
    PoolKind.SHORT: (Lane.SHORT,),
    PoolKind.LONG: (Lane.LONG,),
    PoolKind.DECODE: (),
    PoolKind.MIXED: (Lane.SHORT, Lane.LONG),
}


@dataclass(frozen=True, slots=True)
class PlannerMemory:
    """The planner's state.

    Attributes:
        demand: what was seen of the load.
        wishes: (time, name, workers) of late, for the slow way down.
        raised_s: when each pool was raised last.
        idle_since_s: when the last request was seen; None while there are some.
        moved_s: when workers changed their role last.
    """

    demand: Demand
    wishes: tuple[tuple[float, str, int], ...] = ()
    raised_s: Mapping[PoolKind, float] = field(default_factory=dict)
    idle_since_s: float | None = None
    moved_s: float = -math.inf


@dataclass(frozen=True, slots=True)
class Planner:
    """Sizes pools so that the goal is kept at the least cost."""

    settings: PlannerSettings = field(default_factory=PlannerSettings)

    def plan(self, now_s: float, view: PlannerView) -> ScalePlan:
        """Decides; the same view and memory give the same plan."""
        settings = self.settings
        memory: PlannerMemory = view.memory or PlannerMemory(Demand.start(settings))
        demand = memory.demand.observe(view, settings)
        idle_since = self._idle_since(now_s, view, memory)
        memory = replace(memory, demand=demand, idle_since_s=idle_since)
        if (asleep := self._asleep(now_s, view, memory)) is not None:
            return asleep
        needs = {kind: self._need(kind, view, demand) for kind in view.pools}
        wishes, memory = self._wishes(now_s, view, needs, memory)
        wishes = coordinated(wishes, view.pools, settings)
        targets = {}
        for kind, pool in view.pools.items():
            workers = self._paced(now_s, kind, wishes[kind], view, memory)
            targets[kind] = PoolTarget(workers, self._why(kind, workers, view, needs, demand))
            if workers > pool.wanted:
                memory = replace(memory, raised_s={**memory.raised_s, kind: now_s})
        moves, memory = self._moves(now_s, view, needs, memory)
        return ScalePlan(targets, moves, memory)

    # None at all, and awake again

    def _idle_since(self, now_s: float, view: PlannerView, memory: PlannerMemory) -> float | None:
        traffic = sum(lane.requests for lane in view.lanes.values())
        busy = traffic + view.decode.running + view.decode.waiting + view.held + sum(view.waiting_s.values())
        if busy > 0.0 or not view.complete:
            return None
        return now_s if memory.idle_since_s is None else memory.idle_since_s

    def _asleep(self, now_s: float, view: PlannerView, memory: PlannerMemory) -> ScalePlan | None:
        idle_s, since_s = self.settings.idle_s, memory.idle_since_s
        if idle_s is None or since_s is None or any(pool.floor for pool in view.pools.values()):
            return None
        asleep = not any(pool.wanted for pool in view.pools.values())
        if not asleep and now_s - since_s < idle_s:
            return None
        why = f"no request for {now_s - since_s:.0f} s, and {idle_s:.0f} s were allowed: no worker is kept"
        return ScalePlan({kind: PoolTarget(0, why) for kind in view.pools}, memory=memory)

    # Needs

    def _need(self, kind: PoolKind, view: PlannerView, demand: Demand) -> Need:
        settings, forecast = self.settings, demand.forecasts[kind]
        usable = 1.0 if kind is PoolKind.DECODE else settings.fullness
        backlog = self._backlog(kind, view, demand, forecast.level)
        way, tail = forecast.believed(demand.late_share)
        # A steep rise shows in the fastest way first.
        expected = max(way.level, tail.expected, forecast.level, forecast.expected)
        present = expected * settings.least_room / usable
        floor = max(present, float(self._queues(kind, way.level, view, demand))) + backlog
        return Need(max(1, math.ceil(floor - 1e-9)), way.level, tail, usable, backlog)

    def _queues(self, kind: PoolKind, work: float, view: PlannerView, demand: Demand) -> int:
        """Prefill workers under which few prompts wait too long, were this work to last."""
        settings, lanes = self.settings, _LANES[kind]
        levels = {
            Lane.SHORT: demand.forecasts[PoolKind.SHORT].level,
            Lane.LONG: demand.forecasts[PoolKind.LONG].level,
        }
        here = sum(levels[lane] for lane in lanes)
        if here <= 0.0:
            return 0
        constant_s = view.cost.prefill.constant_s
        short, long = (
            PrefillLoad(
                levels[lane] if lane in lanes else 0.0,
                demand.service_s[lane],
                settings.ttft_s[lane] - constant_s,
                demand.variation(lane),
            )
            for lane in (Lane.SHORT, Lane.LONG)
        )
        return prefill_workers(short, long, demand.late_share) + math.ceil(work - here - 1e-9)

    def _backlog(self, kind: PoolKind, view: PlannerView, demand: Demand, work: float) -> float:
        """Workers for what waits, unless those that serve end it before a new pod could."""
        settings, pool = self.settings, view.pools[kind]
        waiting_s, within_s = self._waiting(kind, view, demand)
        spare = pool.ready - work
        if waiting_s <= 0.0 or (spare > 0.0 and waiting_s / spare <= settings.start_s):
            return 0.0
        return waiting_s / within_s

    def _waiting(self, kind: PoolKind, view: PlannerView, demand: Demand) -> tuple[float, float]:
        """Worker-seconds that wait beyond what is normal, and in how many seconds they should be done."""
        settings, lanes, pool = self.settings, _LANES[kind], view.pools[kind]
        rate = demand.rate(view.cost, settings)
        answers_s = view.decode.waiting * demand.output_tokens / rate.tokens_per_s
        if kind is PoolKind.DECODE:
            # Answers run side by side: what takes long needs no more workers than hold all of it at once.
            return answers_s, max(settings.interval_s, demand.output_tokens * rate.rows / rate.tokens_per_s)
        waiting_s = sum(view.waiting_s.get(lane, 0.0) for lane in lanes)
        # A prompt that is computed waits no more, though its rest counts.
        normal_s = max(NORMAL_QUEUE_S, *(demand.service_s[lane] for lane in lanes))
        waiting_s = max(0.0, waiting_s - normal_s * max(1, pool.ready))
        if view.held and not pool.ready:
            waiting_s += view.held * max(demand.service_s.values())
        if kind is PoolKind.MIXED:
            waiting_s += answers_s
        return waiting_s, settings.drain_s

    def _wishes(
        self, now_s: float, view: PlannerView, needs: Mapping[PoolKind, Need], memory: PlannerMemory
    ) -> tuple[dict[PoolKind, int], PlannerMemory]:
        """Counts before pauses: raised at once, lowered to the highest wish of the last `down_s`."""
        settings = self.settings
        shared = settings.shared and len(view.pools) > 1
        groups = {"all": tuple(view.pools)} if shared else {kind.value: (kind,) for kind in view.pools}
        kept = tuple(item for item in memory.wishes if item[0] > now_s - settings.down_s)
        wishes: dict[PoolKind, int] = {}
        for name, kinds in groups.items():
            here = {kind: needs[kind] for kind in kinds}
            # A request passes all pools: what may be late is shared out among those that are sized apart.
            late = memory.demand.late_share * len(kinds) / len(view.pools)
            have = sum(view.pools[kind].wanted for kind in kinds)
            total = sum(workers_within(here, late).values())
            if total < have:
                total = min(have, sum(workers_within(here, late, settings.hysteresis).values()))
            # What runs when the planner begins counts as a wish: nothing is known yet that speaks against it.
            kept = (*kept, (now_s, name, total if memory.wishes else max(total, have)))
            total = max(total, min(have, max(count for _, other, count in kept if other == name)))
            split = best_split(here, total)
            parts = {kind: float(count) for kind, count in split.items()}
            wishes |= spread(total, parts, {kind: view.pools[kind] for kind in kinds})
        return wishes, replace(memory, wishes=kept)

    def _moves(
        self, now_s: float, view: PlannerView, needs: Mapping[PoolKind, Need], memory: PlannerMemory
    ) -> tuple[tuple[Move, ...], PlannerMemory]:
        """Changes of role: where fewer requests are late for it, by what is foreseen."""
        kinds = [kind for kind in view.pools if kind in _GROUPS]
        if not self.settings.shared or len(kinds) < 2 or not view.complete:
            return (), memory
        here = {kind: needs[kind] for kind in kinds}
        sizes = {
            kind: pool.ready if pool.working is None else pool.working
            for kind, pool in view.pools.items()
            if kind in here
        }
        workers = sum(sizes.values())
        # A worker that leaves decode ends its answers first and does little else meanwhile.
        pause_s = max(MOVE_S, memory.demand.output_tokens * self.settings.tpot_s)
        if workers < len(sizes) or now_s - memory.moved_s < pause_s:
            return (), memory
        best = best_split(here, workers)
        gain = late_with(here, sizes) - late_with(here, best)
        if gain <= MOVE_GAIN * memory.demand.late_share:
            return (), memory
        moves = moves_between(
            {_GROUPS[kind]: count for kind, count in sizes.items()},
            {_GROUPS[kind]: count for kind, count in best.items()},
        )
        return moves, replace(memory, moved_s=now_s)

    # Pauses and words

    def _paced(
        self, now_s: float, kind: PoolKind, wish: int, view: PlannerView, memory: PlannerMemory
    ) -> int:
        pool, settings = view.pools[kind], self.settings
        paused = now_s - memory.raised_s.get(kind, -math.inf) < settings.up_s
        if wish > pool.wanted and pool.ready + pool.pending and paused:
            return pool.held(max(pool.wanted, min(wish, pool.low)))
        if wish < pool.wanted and not view.complete:
            return pool.held(pool.wanted)
        return pool.held(wish)

    def _why(
        self,
        kind: PoolKind,
        workers: int,
        view: PlannerView,
        needs: Mapping[PoolKind, Need],
        demand: Demand,
    ) -> str:
        need, pool = needs[kind], view.pools[kind]
        words = f"work for {need.work:.1f} workers, {need.floor} at least"
        waiting_s = sum(view.waiting_s.values())
        if kind is not PoolKind.DECODE and waiting_s >= 1.0:
            words += f", {waiting_s:.0f} s of prompts wait"
        if pool.pending:
            words += f", {pool.pending} workers are starting"
        if demand.judged >= 1.0:
            words += f", {100.0 * (1.0 - demand.missed / demand.judged):.1f} % of requests kept their targets"
        if workers == pool.wanted and workers < need.floor and self.settings.shared and len(view.pools) > 1:
            words += "; workers of other pools take its work over, so no pod is added"
        if not view.complete:
            words += "; some metrics are missing, so nothing is removed"
        return words
