"""What a scaling run cost and kept: GPU-hours, SLO attainment per class, changes and oscillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

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


def outcome_of(run: FleetRun) -> FleetOutcome:
    """Counts what happened after the warm-up."""
    arrivals, settings = run.arrivals, run.settings
    first_s, last_s = run.prefill.first_s, run.decode.last_s()
    counted = (arrivals.time_s >= settings.warmup_s) & (arrivals.time_s < arrivals.duration_s - TAIL_S)
    further = np.maximum(1.0, arrivals.output - 1.0)
    tpot_s = np.where(arrivals.output > 1.5, (last_s - first_s) / further, 0.0)
    # An answer that still runs has its end ahead: judged by its first token.
    running = np.isnan(tpot_s) & (arrivals.duration_s - first_s < further * settings.limits.tpot_s)
    met = (first_s - arrivals.time_s <= arrivals.limit_s) & (running | (tpot_s <= settings.limits.tpot_s))
    ttft_s = np.where(np.isnan(first_s), np.inf, first_s - arrivals.time_s)[counted]
    short = arrivals.is_short
    changes = [change for change in run.fleet.changes if change[0] >= settings.warmup_s]
    hours = (arrivals.duration_s - settings.warmup_s) / 3600.0
    return FleetOutcome(
        gpu_hours=(run.fleet.pod_s - run.warm_pod_s) / 3600.0,
        attainment=_share(met, counted),
        short=_share(met, counted & short),
        long=_share(met, counted & ~short),
        raises=sum(new > old for _, _, old, new in changes),
        lowers=sum(new < old for _, _, old, new in changes),
        moves=run.moves,
        swings=sum(_swings(changes, kind) for kind in run.fleet.pools) / hours,
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
