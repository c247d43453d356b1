"""What a scaler could reach at best: the work itself, and a fleet sized by one who knows all arrivals.

`twolane bench scaling` plays the second beside the scalers, so that their GPU-hours can be read as
multiples of it. It is a schedule and no planner: nothing here is used by a live process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from twolane.policies.planner_view import PlannerView, PoolKind, PoolTarget, ScalePlan
from twolane.policies.roles import Group, Move
from twolane.sim.scaling import FleetRun, FleetSettings
from twolane.sim.scaling_arrivals import Arrivals, Floats, decode_work_s
from twolane.sim.scaling_outcome import FleetOutcome, outcome_of

# Kinds of care, from much to little: how full prefill and decode are, seconds that work may wait, and the
# share of what the goal lets be missed.
CARE: tuple[tuple[float, ...], ...] = (
    (0.55, 0.65, 0.75, 0.85, 0.92, 1.0),
    (0.55, 0.65, 0.75, 0.82, 0.9, 1.0),
    (0.5, 1.0, 2.0, 4.0, 8.0),
    (0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 2.0, 3.0),
)
START = (3, 3, 1, 1)


def work_hours(arrivals: Arrivals, settings: FleetSettings) -> float:
    """GPU-hours of the counted requests' work on workers that are never idle, starts left out."""
    counted = arrivals.time_s >= settings.warmup_s
    decode_s = decode_work_s(arrivals, settings.profile, settings.limits.max_rows)
    return float((arrivals.work_s + decode_s)[counted].sum()) / 3600.0


@dataclass(frozen=True, slots=True)
class Needs:
    """Workers' worth of work in each slice: prefill, and decode spread over the time answers take."""

    prefill: Floats
    decode: Floats
    requests: Floats


def needs_of(arrivals: Arrivals, settings: FleetSettings) -> Needs:
    """What arrives, slice by slice."""
    slices = math.ceil(arrivals.duration_s / settings.slice_s)
    edges = np.arange(slices + 1) * settings.slice_s
    prefill, _ = np.histogram(arrivals.time_s, edges, weights=arrivals.work_s)
    requests, _ = np.histogram(arrivals.time_s, edges)
    work_s = decode_work_s(arrivals, settings.profile, settings.limits.max_rows)
    full_s = settings.profile.decode_constant_s(1) + (
        settings.profile.decode_read_s * settings.profile.capacity_tokens
    )
    begin_s = arrivals.time_s + arrivals.alone_s
    span_s = np.maximum(settings.slice_s, (arrivals.output - 1.0) * full_s)
    # Each answer's work is laid evenly over its time: differences of cumulated ramps.
    rate = np.zeros(slices + 1)
    for at_s, sign in ((begin_s, 1.0), (begin_s + span_s, -1.0)):
        place = np.minimum(slices, (at_s / settings.slice_s).astype(np.int64))
        np.add.at(rate, place, sign * work_s / span_s)
    decode = np.maximum(0.0, np.cumsum(rate)[:slices])
    return Needs(prefill / settings.slice_s, decode, requests.astype(np.float64))


@dataclass(frozen=True, slots=True)
class Schedule:
    """Workers that do prefill and decode in each slice."""

    prefill: Floats
    decode: Floats


@dataclass(frozen=True, slots=True)
class Care:
    """How a schedule is made: how full the workers of either half are at most, and what may wait how long."""

    prefill: float
    decode: float
    patience_s: float
    missed: float


def schedule_of(needs: Needs, settings: FleetSettings, care: Care) -> Schedule:
    """The fewest workers for the needs; short peaks may be missed, short lulls are bridged."""
    gap = sum(settings.start_s) / 2.0 / settings.slice_s
    first = int(settings.warmup_s / settings.slice_s)
    allowed = care.missed * float(needs.requests[first:].sum())
    counts = []
    for need, fullness, patience_s in (
        (needs.prefill, care.prefill, care.patience_s),
        (needs.decode, care.decode, 4.0 * care.patience_s),
    ):
        late = Lateness(need / fullness, needs.requests, first, settings.slice_s, patience_s)
        counts.append(_given_up(late, gap, allowed / 2.0))
    return Schedule(*counts)


@dataclass(frozen=True, slots=True)
class Lateness:
    """Requests that are late with so many workers: those of slices in which work waits too long."""

    need: Floats
    requests: Floats
    first: int
    slice_s: float
    patience_s: float

    def missed(self, workers: Floats) -> float:
        """How many."""
        free = np.concatenate(([0.0], np.cumsum((self.need - workers) * self.slice_s)))
        left = free - np.minimum.accumulate(np.minimum(free, 0.0))
        late = left[1:] / workers > self.patience_s
        return float(self.requests[self.first :][late[self.first :]].sum())


def _given_up(late: Lateness, gap: float, allowed: float) -> Floats:
    """Enough for every slice, less the stretches that save most for each request that is then late."""
    workers = np.maximum(1.0, np.ceil(late.need - 1e-9))
    missed = late.missed(workers)
    while True:
        best: tuple[float, float, Floats] | None = None
        for level, begin, end in _islands(workers, gap):
            fewer = workers.copy()
            fewer[begin:end] = np.minimum(fewer[begin:end], level - 1.0)
            then = late.missed(fewer)
            saved = (end - begin + gap) / (max(0.0, then - missed) + 1.0)
            if then <= allowed and (best is None or saved > best[0]):
                best = (saved, then, fewer)
        if best is None:
            return workers
        _, missed, workers = best


def _islands(total: np.ndarray, gap: float) -> Iterator[tuple[int, int, int]]:
    """Stretches (level, begin, end) on which the fleet is highest around; short gaps join two."""
    for level in range(int(total.max()), 2, -1):
        at = np.flatnonzero(total >= level)
        if not len(at):
            continue
        cuts = np.flatnonzero(np.diff(at) > gap)
        begins, ends = at[np.r_[0, cuts + 1]], at[np.r_[cuts, len(at) - 1]] + 1
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            if total[begin:end].max() == level:
                yield level, begin, end


@dataclass(frozen=True, slots=True)
class Clairvoyant:
    """Follows a schedule: asks for pods one start ahead, and moves workers before work comes."""

    schedule: Schedule
    start_s: float
    slice_s: float
    interval_s: float

    def plan(self, now_s: float, view: PlannerView) -> ScalePlan:
        """Counts by the schedule; the load is not looked at."""
        schedule = self.schedule
        here = min(len(schedule.prefill) - 1, round(now_s / self.slice_s))
        ahead = here + math.ceil((self.start_s + self.interval_s) / self.slice_s)
        soon = here + math.ceil(self.interval_s / self.slice_s)
        total = int((schedule.prefill + schedule.decode)[here : ahead + 1].max())
        prefill = int(schedule.prefill[here : soon + 1].max())
        pools = view.pools
        now = {kind: pool.ready if pool.working is None else pool.working for kind, pool in pools.items()}
        ready = sum(now.values())
        decode = int(schedule.decode[here : soon + 1].max())
        # What both halves have beyond their need is shared.
        wish = min(ready - 1, max(1, prefill + (ready - prefill - decode) // 2))
        missing = wish - now[PoolKind.PREFILL]
        moves: tuple[Move, ...] = ()
        if missing > 0 and now[PoolKind.PREFILL] < prefill:
            moves = (Move(Group.DECODE, Group.BOTH, missing),)
        elif missing < 0 and now[PoolKind.DECODE] < decode:
            moves = (Move(Group.BOTH, Group.DECODE, -missing),)
        share = max(1, min(total - 1, pools[PoolKind.PREFILL].wanted))
        counts = {PoolKind.PREFILL: share, PoolKind.DECODE: max(1, total - share)}
        return ScalePlan(
            {kind: PoolTarget(count, "known beforehand") for kind, count in counts.items()}, moves
        )


def clairvoyant(arrivals: Arrivals, settings: FleetSettings, goal: float) -> FleetOutcome | None:
    """The cheapest run found by a schedule that keeps the goal; None when none of those played does.

    Begins with a careful schedule and gives up care, one kind at a time, as long as the goal is kept.
    """
    start_s = sum(settings.start_s) / 2.0
    needs = needs_of(arrivals, settings)
    exact = replace(settings, start_s=(start_s, start_s))

    def played(care: tuple[int, ...]) -> FleetOutcome:
        prefill, decode, patience_s, missed = (kind[step] for kind, step in zip(CARE, care, strict=True))
        schedule = schedule_of(needs, settings, Care(prefill, decode, patience_s, missed * (1.0 - goal)))
        scaler = Clairvoyant(schedule, start_s, settings.slice_s, settings.interval_s)
        return outcome_of(FleetRun(arrivals, scaler, exact).run())

    care: tuple[int, ...] = START
    best = played(care)
    while best.attainment < goal and care[0] > 0:
        care = (care[0] - 1, max(0, care[1] - 1), *care[2:])
        best = played(care)
    if best.attainment < goal:
        return None
    open_kinds = list(range(len(CARE)))
    while open_kinds:
        for kind in tuple(open_kinds):
            less = tuple(step + (place == kind) for place, step in enumerate(care))
            if less[kind] < len(CARE[kind]):
                then = played(less)
                if then.attainment >= goal and then.gpu_hours <= best.gpu_hours:
                    care, best = less, then
                    continue
            open_kinds.remove(kind)
    return best
