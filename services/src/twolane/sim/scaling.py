"""Plays hours of a trace against a fleet whose size a scaler decides: the loop of `twolane bench scaling`.

The scaler is the object that the operator uses. Time goes in slices of seconds; within
one, every request keeps its own arrival, lane, wait and length (scaling_prefill, scaling_decode). That is
coarser than cluster.py, which plays every batch; tests compare the two on one stretch.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twolane.core.request import Lane
from twolane.policies.cost import DecodeCost, PrefillCost
from twolane.policies.planner_view import (
    DecodeLoad,
    LaneTraffic,
    PlannerView,
    PoolKind,
    PoolState,
    Scaler,
    WorkerCost,
)
from twolane.policies.roles import Group, Move
from twolane.sim.profile import EngineProfile
from twolane.sim.scaling_arrivals import Arrivals, decode_work_s
from twolane.sim.scaling_decode import TICK_S, DecodeFlow
from twolane.sim.scaling_fleet import Fleet
from twolane.sim.scaling_prefill import PrefillFlow
from twolane.sim.settings import SimSettings

# Time over which an autoscaler's metrics are averaged.
METRIC_S = 30.0
# The first counts suit the load of so long.
FIRST_S = 300.0


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """A fleet and how it is run.

    Attributes:
        profile: of a worker.
        limits: targets of requests, and the size of a batch.
        start_s: least and most seconds until a new pod serves.
        interval_s: seconds between two questions to the scaler.
        slice_s: seconds that are played at once; whole ticks.
        first_use: share of their time that the first workers are sized for.
        warmup_s: requests and pods before are not counted.
        seed: of the pods' starts.
    """

    profile: EngineProfile
    limits: SimSettings = field(default_factory=SimSettings)
    start_s: tuple[float, float] = (60.0, 180.0)
    interval_s: float = 15.0
    slice_s: float = 5.0
    first_use: float = 0.6
    warmup_s: float = 300.0
    seed: int = 0


def worker_cost(profile: EngineProfile, max_rows: int) -> WorkerCost:
    """What a worker would report of itself once its costs are fitted."""
    step_s = profile.overhead_s + profile.weights_s
    prefill = PrefillCost.known(step_s, profile.attention_s, profile.token_s, profile.cached_read_s)
    # A line through the steps, as workers fit one: rows cost nothing until computing takes over.
    rows = np.arange(1, max_rows + 1)
    row_s, constant_s = np.polyfit(rows, [profile.decode_constant_s(int(count)) for count in rows], 1)
    decode = DecodeCost.known(float(constant_s), profile.decode_read_s, max(0.0, float(row_s)))
    return WorkerCost(prefill, decode, profile.capacity_tokens, max_rows)


class FleetRun:
    """One run.

    Attributes:
        fleet: its pods.
        prefill: prompts; decode: answers.
        sizes: (time, prefill, decode) workers that serve, once an interval.
        moves: workers that changed their role.
        reasons: (time, pool, count, why) of every change that a scaler asked for.
    """

    def __init__(self, arrivals: Arrivals, scaler: Scaler, settings: FleetSettings) -> None:
        self.arrivals, self.settings = arrivals, settings
        self.cost = worker_cost(settings.profile, settings.limits.max_rows)
        self.prefill = PrefillFlow(arrivals)
        self.decode = DecodeFlow(arrivals, settings.profile, settings.limits.max_rows, settings.limits.tpot_s)
        self.fleet = Fleet(self._first_sizes(), settings.start_s, np.random.default_rng(settings.seed))
        self.sizes: list[tuple[float, float, float]] = []
        self.moves = 0
        self.reasons: list[tuple[float, str, int, str]] = []
        self.warm_pool_s = dict.fromkeys(self.fleet.pools, 0.0)
        self._scaler = scaler
        self._memory: Any = None
        self._lent = 0
        self._moving: list[float] = []
        self._traffic = {lane: LaneTraffic() for lane in Lane}
        self._seen = (0.0, 0.0)
        self._busy: deque[float] = deque(maxlen=max(1, round(METRIC_S / settings.slice_s)))

    def run(self) -> FleetRun:
        """Plays everything; returns itself."""
        settings, arrivals = self.settings, self.arrivals
        steps = math.ceil(arrivals.duration_s / settings.slice_s)
        edges = np.searchsorted(arrivals.time_s, np.arange(steps + 1) * settings.slice_s)
        every = max(1, round(settings.interval_s / settings.slice_s))
        for step in range(steps):
            from_s = step * settings.slice_s
            if from_s < settings.warmup_s <= from_s + settings.slice_s:
                self.warm_pool_s = dict(self.fleet.pool_s)
            self._slice(slice(int(edges[step]), int(edges[step + 1])), from_s)
            now_s = from_s + settings.slice_s
            self.fleet.advance(now_s, settings.slice_s)
            self._moving = [until for until in self._moving if until > now_s]
            if (step + 1) % every == 0:
                self._scale(now_s)
        return self

    def workers(self) -> tuple[float, float]:
        """Workers' worth of prefill and of decode now; one on its way between the two counts half."""
        pools, halves = self.fleet.pools, 0.5 * len(self._moving)
        prefill, decode = pools[PoolKind.PREFILL], pools[PoolKind.DECODE]
        return (
            max(0.0, prefill.ready + self._lent - halves),
            max(0.0, decode.ready - self._lent + halves + len(decode.ending)),
        )

    def _first_sizes(self) -> dict[PoolKind, int]:
        arrivals, settings = self.arrivals, self.settings
        first = arrivals.time_s < FIRST_S
        span_s = FIRST_S * settings.first_use
        work_s = decode_work_s(arrivals, settings.profile, settings.limits.max_rows)
        decode = float(work_s[first].sum()) / span_s
        prefill = float(arrivals.work_s[first].sum()) / span_s
        return {
            PoolKind.PREFILL: max(1, math.ceil(prefill)),
            PoolKind.DECODE: max(1, math.ceil(decode)),
        }

    def _slice(self, part: slice, from_s: float) -> None:
        settings, arrivals = self.settings, self.arrivals
        prefill, decode = self.workers()
        before_s = self.prefill.busy_s
        known = self.prefill.run(part, from_s, settings.slice_s, prefill)
        self._busy.append((self.prefill.busy_s - before_s) / max(1e-9, prefill * settings.slice_s))
        first_s = self.prefill.first_s[known]
        late = self.decode.late
        self.decode.join(known, first_s)
        for number in range(round(from_s / TICK_S), round((from_s + settings.slice_s) / TICK_S)):
            self.decode.tick(number, decode)
        met = first_s - arrivals.time_s[known] <= arrivals.limit_s[known]
        short, known_short = arrivals.is_short[part], arrivals.is_short[known]
        for lane, here, there in (
            (Lane.SHORT, short, known_short),
            (Lane.LONG, ~short, ~known_short),
        ):
            # Answers that are late for want of pages are counted once, whatever their lane.
            missed = self.decode.late - late if lane is Lane.LONG else 0
            old = self._traffic[lane]
            self._traffic[lane] = LaneTraffic(
                old.requests + int(here.sum()),
                old.prompt_tokens + float(arrivals.prompt[part][here].sum()),
                old.uncached_tokens + float(arrivals.uncached[part][here].sum()),
                old.work_s + float(arrivals.work_s[part][here].sum()),
                old.judged + int(there.sum()),
                old.met + int(met[there].sum()) - missed,
            )

    def _decode_use(self, workers: float) -> float:
        """Share of the pages or of the rows, whichever is scarcer."""
        pages = self.decode.held_tokens / self.settings.profile.capacity_tokens
        return max(pages, self.decode.rows / self.settings.limits.max_rows) / max(1e-9, workers)

    def _scale(self, now_s: float) -> None:
        prefill, decode = self.workers()
        self.sizes.append((now_s, prefill, decode))
        answer = self._scaler.plan(now_s, self._view(now_s, decode))
        self._memory = answer.memory
        pools = self.fleet.pools
        for kind, target in answer.pools.items():
            if target.workers != pools[kind].wanted:
                self.reasons.append((now_s, kind.value, target.workers, target.reason))
            drain_s = self._drain_s(kind) if target.workers < pools[kind].wanted else 0.0
            self.fleet.ask(now_s, kind, target.workers, drain_s)
        for move in answer.moves:
            self._move(now_s, move)
        ready = (pools[PoolKind.PREFILL].ready, pools[PoolKind.DECODE].ready)
        self._lent = max(min(0, 1 - ready[0]), min(self._lent, max(0, ready[1] - 1)))

    def _view(self, now_s: float, decode_workers: float) -> PlannerView:
        decode, pools = self.decode, self.fleet.pools
        busy = {
            PoolKind.PREFILL: sum(self._busy) / max(1, len(self._busy)),
            PoolKind.DECODE: self._decode_use(decode_workers),
        }
        lent = {PoolKind.PREFILL: self._lent, PoolKind.DECODE: -self._lent}
        states = {
            kind: PoolState(
                pods.wanted,
                pods.ready,
                len(pods.starting),
                working=pods.ready + lent[kind],
                busy=busy[kind],
            )
            for kind, pods in pools.items()
        }
        ended, tokens = self._seen
        self._seen = (decode.ended, decode.output_tokens)
        lanes, self._traffic = self._traffic, {lane: LaneTraffic() for lane in Lane}
        load = DecodeLoad(
            decode.rows,
            len(decode.waiting),
            decode.held_tokens,
            decode.ended - ended,
            decode.output_tokens - tokens,
        )
        waiting = {
            Lane.SHORT: self.prefill.short.backlog_s,
            Lane.LONG: self.prefill.long.backlog_s(now_s),
        }
        return PlannerView(
            self.settings.interval_s, lanes, waiting, load, states, self.cost, memory=self._memory
        )

    def _drain_s(self, kind: PoolKind) -> float:
        _, decode = self.workers()
        if kind is PoolKind.PREFILL:
            # A pod that leaves ends the prompt it computes.
            return 2.0
        return 1.0 + self.decode.drain_s(max(1.0, decode))

    def _move(self, now_s: float, move: Move) -> None:
        """A worker that leaves prefill serves at once; one that leaves decode still has rows for a while."""
        self.moves += move.workers
        if move.source is Group.DECODE:
            until_s = now_s + self._drain_s(PoolKind.DECODE)
            self._moving += [until_s] * move.workers
            self._lent += move.workers
        else:
            self._lent -= move.workers
