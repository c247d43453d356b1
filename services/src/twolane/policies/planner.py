"""How many workers every pool should have: forecast, queues and targets, pools planned together.

The operator asks it every few seconds and writes the counts, the simulator plays it. Where workers can
change their role without a restart, pools share their headroom: work moves to workers that are there
(roles.py), and a new pod is asked for only when all workers together are too few.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from twolane.core.request import Lane
from twolane.policies.planner_bounds import coordinated, spread
from twolane.policies.planner_demand import Demand, Work
from twolane.policies.planner_settings import PlannerSettings
from twolane.policies.planner_sizing import PrefillLoad, prefill_workers
from twolane.policies.planner_view import PlannerView, PoolKind, PoolTarget, ScalePlan
from twolane.policies.roles import Group, GroupLoad, Move, RoleController, RolesSettings, RolesView

# Prefill that waits up to so long on each worker is normal.
NORMAL_QUEUE_S = 0.5
# Work is smoothed already, and views are far between.
ROLES = RolesSettings(smoothing_s=1.0, hold_s=0.0, cool_down_s=15.0, hysteresis=0.08, quiet_load=0.6)

_GROUPS = {
    PoolKind.PREFILL: Group.BOTH,
    PoolKind.SHORT: Group.SHORT,
    PoolKind.LONG: Group.LONG,
    PoolKind.DECODE: Group.DECODE,
}


@dataclass(frozen=True, slots=True)
class Need:
    """What a pool, or all that share, must have.

    Attributes:
        now: workers that keep the targets under the present work, its backlog included.
        peak: workers' worth of the work foreseen when a new pod would serve, with its margin.
        work: workers' worth of the present work.
        backlog: workers for the backlog.
    """

    now: int
    peak: float
    work: float
    backlog: float = 0.0

    @property
    def workers(self) -> int:
        """Workers to have."""
        return max(self.now, math.ceil(self.peak - 1e-9))

    def left_over(self, hysteresis: float) -> int:
        """Workers that must stay when some are given up."""
        return max(self.now, math.ceil(self.peak * (1.0 + hysteresis) - 1e-9))


@dataclass(frozen=True, slots=True)
class PlannerMemory:
    """The planner's state.

    Attributes:
        demand: what was seen of the load.
        wishes: (time, name, workers) of late, for the slow way down.
        raised_s: when each pool was raised last.
        idle_since_s: when the last request was seen; None while there are some.
        roles: the role controller's state.
    """

    demand: Demand
    wishes: tuple[tuple[float, str, int], ...] = ()
    raised_s: Mapping[PoolKind, float] = field(default_factory=dict)
    idle_since_s: float | None = None
    roles: Any = None


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
        before, memory = memory.demand, replace(memory, demand=demand, idle_since_s=idle_since)
        if (asleep := self._asleep(now_s, view, memory)) is not None:
            return asleep
        needs = {kind: self._need(kind, view, demand, before) for kind in view.pools}
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

    def _need(self, kind: PoolKind, view: PlannerView, demand: Demand, before: Demand) -> Need:
        level, ahead = _of(kind, demand.level), _of(kind, demand.expected)
        peak = sum(
            forecast.foreseen(self.settings.margin_share, demand.late_share)
            for forecast, part in ((demand.short, "short"), (demand.long, "long"), (demand.decode, "decode"))
            if getattr(_mask(kind), part)
        )
        backlog = self._backlog(kind, view, demand, level.total)
        if _mask(kind).decode:
            level = replace(level, decode=max(level.decode, self._held(view, demand, before)))
        sized = _sized(level, view, demand, self.settings)
        coming = _sized(ahead, view, demand, self.settings)
        now = math.ceil(max(sized, coming) + backlog - 1e-9)
        return Need(now, peak, level.total, backlog)

    def _held(self, view: PlannerView, demand: Demand, before: Demand) -> float:
        """Workers whose pages hold what is held now, and what waits unless it is soon gone."""
        load, settings = view.decode, self.settings
        left = before.waiting - load.waiting
        soon_gone = load.waiting * settings.interval_s <= left * settings.start_s
        waiting = 0.0 if soon_gone else load.waiting
        tokens = load.held_tokens + waiting * demand.prompt_tokens
        return tokens / demand.rate(view.cost, settings).held_tokens

    def _backlog(self, kind: PoolKind, view: PlannerView, demand: Demand, work: float) -> float:
        """Workers for what waits, unless those that serve end it before a new pod could."""
        settings, mask, pool = self.settings, _mask(kind), view.pools[kind]
        lanes = [lane for lane, part in ((Lane.SHORT, mask.short), (Lane.LONG, mask.long)) if part]
        waiting_s = sum(view.waiting_s.get(lane, 0.0) for lane in lanes)
        # A prompt that is computed waits no more, though its rest counts.
        normal_s = max(NORMAL_QUEUE_S, *(demand.service_s[lane] for lane in lanes)) if lanes else 0.0
        waiting_s = max(0.0, waiting_s - normal_s * max(1, pool.ready))
        if view.held and not pool.ready:
            waiting_s += view.held * max(demand.service_s.values())
        spare = pool.ready - work
        if waiting_s <= 0.0 or (spare > 0.0 and waiting_s / spare <= settings.start_s):
            return 0.0
        return waiting_s / settings.drain_s

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
            need = self._joint(kinds, needs, memory.demand) if shared else needs[kinds[0]]
            have = sum(view.pools[kind].wanted for kind in kinds)
            total = need.workers
            if total < have:
                total = min(have, need.left_over(settings.hysteresis))
            # What runs when the planner begins counts as a wish: nothing is known yet that speaks against it.
            kept = (*kept, (now_s, name, total if memory.wishes else max(total, have)))
            total = max(total, min(have, max(count for _, other, count in kept if other == name)))
            parts = {kind: max(needs[kind].peak, needs[kind].work) for kind in kinds}
            wishes |= spread(total, parts, {kind: view.pools[kind] for kind in kinds})
        return wishes, replace(memory, wishes=kept)

    def _joint(self, kinds: tuple[PoolKind, ...], needs: Mapping[PoolKind, Need], demand: Demand) -> Need:
        """One need of pools that share: their peaks hardly ever come at the same moment, so there is room
        for the peak of all together, and for that of each beside the present work of the others."""
        now = sum(needs[kind].now for kind in kinds)
        together = demand.total.foreseen(self.settings.margin_share, demand.late_share)
        alone = max(now + needs[kind].peak - needs[kind].now for kind in kinds)
        work = sum(needs[kind].work for kind in kinds)
        return Need(now, max(together, alone), work)

    def _moves(
        self, now_s: float, view: PlannerView, needs: Mapping[PoolKind, Need], memory: PlannerMemory
    ) -> tuple[tuple[Move, ...], PlannerMemory]:
        """Changes of role, by the controller that the broker has too."""
        kinds = [kind for kind in view.pools if kind in _GROUPS]
        if not self.settings.shared or len(kinds) < 2 or not view.complete:
            return (), memory
        loads = {}
        for kind in kinds:
            pool = view.pools[kind]
            working = pool.ready if pool.working is None else pool.working
            backlog_s = needs[kind].backlog * ROLES.drain_s
            # By what is foreseen, not by the lull of the moment: prompts of a burst can't wait for a move.
            loads[_GROUPS[kind]] = GroupLoad(working, needs[kind].peak, backlog_s)
        if sum(load.workers for load in loads.values()) < len(loads):
            return (), memory
        decision = RoleController(ROLES).decide(now_s, RolesView(loads, memory.roles))
        # Work that is foreseen keeps its workers: where all are short, a move only shifts the want.
        moves = [
            replace(move, workers=min(move.workers, int(load.workers - load.demand)))
            for move in decision.moves
            if (load := loads[move.source]).workers - load.demand >= 1.0
        ]
        return tuple(moves), replace(memory, roles=decision.memory)

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
        words = f"work for {need.work:.1f} workers, {need.peak:.1f} foreseen with margin"
        waiting_s = sum(view.waiting_s.values())
        if kind is not PoolKind.DECODE and waiting_s >= 1.0:
            words += f", {waiting_s:.0f} s of prompts wait"
        if pool.pending:
            words += f", {pool.pending} workers are starting"
        if demand.judged >= 1.0:
            words += f", {100.0 * (1.0 - demand.missed / demand.judged):.1f} % of requests kept their targets"
        if workers == pool.wanted and workers < need.now and self.settings.shared and len(view.pools) > 1:
            words += "; workers of other pools take its work over, so no pod is added"
        if not view.complete:
            words += "; some metrics are missing, so nothing is removed"
        return words


def _mask(kind: PoolKind) -> Work:
    """Which work a pool does: 1 or 0 each."""
    return {
        PoolKind.PREFILL: Work(1, 1, 0),
        PoolKind.SHORT: Work(1, 0, 0),
        PoolKind.LONG: Work(0, 1, 0),
        PoolKind.DECODE: Work(0, 0, 1),
        PoolKind.MIXED: Work(1, 1, 1),
    }[kind]


def _of(kind: PoolKind, work: Work) -> Work:
    mask = _mask(kind)
    return Work(work.short * mask.short, work.long * mask.long, work.decode * mask.decode)


def _sized(work: Work, view: PlannerView, demand: Demand, settings: PlannerSettings) -> float:
    """Workers under which the targets are kept, were this work to last."""
    if work.short + work.long <= 0.0:
        return max(1.0, work.decode)
    constant_s = view.cost.prefill.constant_s
    loads = [
        PrefillLoad(part, demand.service_s[lane], settings.ttft_s[lane] - constant_s)
        for lane, part in ((Lane.SHORT, work.short), (Lane.LONG, work.long))
    ]
    return prefill_workers(loads[0], loads[1], 1.0 - settings.goal) + work.decode
