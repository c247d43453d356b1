"""What a scaling run cost and kept: GPU-hours, SLO attainment per class, changes and oscillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from twolane.policies.planner_view import PoolKind
from twolane.sim.scaling import FleetRun

# Requests that arrive later are not counted: their answers may not have ended.
TAIL_S = 120.0
# A count that is raised, lowered and raised again (or the other way round) within so long swings.
SWING_S = 900.0


@dataclass(frozen=True, slots=True)
class FleetOutcome:
    """Numbers of one run.

    Attributes:
        gpu_hours: of all pods, those that start or drain included.
        attainment: share of requests within TTFT and TPOT limits; short and long likewise.
        raises: changes of a count upward; lowers: downward; moves: workers that changed roles.
        swings: counts that turned twice within SWING_S, per hour.
        ttft_p99_s: 99th percentile over all requests.
        mean_workers: workers that served on average.
        requests: requests counted.
    """

    gpu_hours: float
    attainment: float
    short: float
    long: float
    raises: int
    lowers: int
    moves: int
    swings: float
    ttft_p99_s: float
    mean_workers: float
    requests: int

    def row(self) -> Mapping[str, float]:
        """As numbers by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Misses:
    """Requests of a run: which count, whose first token was late, whose pace was missed."""

    counted: NDArray[np.bool_]
    late: NDArray[np.bool_]
    slow: NDArray[np.bool_]


def misses_of(run: FleetRun) -> Misses:
    """Judges each request, after the warm-up."""
    arrivals, settings = run.arrivals, run.settings
    first_s, last_s = run.prefill.first_s, run.decode.last_s()
    counted = (arrivals.time_s >= settings.warmup_s) & (arrivals.time_s < arrivals.duration_s - TAIL_S)
    further = np.maximum(1.0, arrivals.output - 1.0)
    tpot_s = np.where(arrivals.output > 1.5, (last_s - first_s) / further, 0.0)
    # An answer that still runs has its end ahead: judged by its first token.
    running = np.isnan(tpot_s) & (arrivals.duration_s - first_s < further * settings.limits.tpot_s)
    late = ~(first_s - arrivals.time_s <= arrivals.limit_s)
    return Misses(counted, late, ~(running | (tpot_s <= settings.limits.tpot_s)))


def pool_hours(run: FleetRun) -> dict[PoolKind, float]:
    """GPU-hours of each pool after the warm-up."""
    return {kind: (paid_s - run.warm_pool_s[kind]) / 3600.0 for kind, paid_s in run.fleet.pool_s.items()}


def swings_of(run: FleetRun) -> dict[PoolKind, float]:
    """Swings an hour of each pool's count after the warm-up."""
    hours = (run.arrivals.duration_s - run.settings.warmup_s) / 3600.0
    changes = [change for change in run.fleet.changes if change[0] >= run.settings.warmup_s]
    return {kind: _swings(changes, kind) / hours for kind in run.fleet.pools}


def outcome_of(run: FleetRun) -> FleetOutcome:
    """Counts what happened after the warm-up."""
    arrivals, settings, judged = run.arrivals, run.settings, misses_of(run)
    counted, met = judged.counted, ~(judged.late | judged.slow)
    waited_s = run.prefill.first_s - arrivals.time_s
    ttft_s = np.where(np.isnan(waited_s), np.inf, waited_s)[counted]
    short = arrivals.is_short
    changes = [change for change in run.fleet.changes if change[0] >= settings.warmup_s]
    return FleetOutcome(
        gpu_hours=sum(pool_hours(run).values()),
        attainment=_share(met, counted),
        short=_share(met, counted & short),
        long=_share(met, counted & ~short),
        raises=sum(new > old for _, _, old, new in changes),
        lowers=sum(new < old for _, _, old, new in changes),
        moves=run.moves,
        swings=sum(swings_of(run).values()),
        ttft_p99_s=float(np.sort(ttft_s)[int(0.99 * len(ttft_s))]) if len(ttft_s) else 0.0,
        mean_workers=float(np.mean([prefill + decode for _, prefill, decode in run.sizes])),
        requests=int(counted.sum()),
    )


def _share(met: np.ndarray, chosen: np.ndarray) -> float:
    return float(met[chosen].mean()) if chosen.any() else 1.0


def _swings(changes: list[tuple[float, PoolKind, int, int]], kind: PoolKind) -> int:
    """Turns of direction whose two legs both lie within the time."""
    legs = [(at_s, new > old) for at_s, which, old, new in changes if which is kind]
    turns = [at_s for (_, up_before), (at_s, up) in pairwise(legs) if up != up_before]
    return sum(later - earlier <= SWING_S for earlier, later in pairwise(turns))
