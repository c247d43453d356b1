"""Plays the planner and other scalers under the same loads: the rows behind `twolane bench scaling`.

The planner and the schedule of one who knows all arrivals are played for each goal. Baselines have no
goal but a target that decides how generous they are, so each is played at many; scaling_summary.py then
compares what kept the goal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twolane.policies.planner import Planner
from twolane.policies.planner_baselines import Hpa, QueueBlind
from twolane.policies.planner_settings import PlannerSettings
from twolane.policies.planner_view import PoolKind
from twolane.sim.scaling import FleetRun
from twolane.sim.scaling_cases import SPREADS, Case, Size, case_of
from twolane.sim.scaling_outcome import misses_of, outcome_of, pool_hours, swings_of
from twolane.sim.scaling_possible import clairvoyant, work_hours
from twolane.workload.traces import read_trace

Say = Callable[[str], None]
Row = dict[str, Any]

PLANNER, POSSIBLE, WORK = "planner", "clairvoyant", "work"
RIVALS = ("hpa", "queue-blind")
# Targets of the autoscaler's two pools, played in pairs, and loads of the queue-blind planner.
HPA_PREFILL = (0.4, 0.5, 0.6, 0.7, 0.8)
HPA_DECODE = (0.3, 0.45, 0.6, 0.7, 0.8)
BLIND_LOADS = (0.15, 0.2, 0.3, 0.4, 0.5, 0.6)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        traces: files of requests.
        seeds: of runs; each takes another stretch of a long trace, other copies and other pod starts.
        goals: shares of requests within their targets.
        size: of the loads.
        quick: few settings of the baselines.
        families: what to play of planner, clairvoyant and the rivals.
        clients: names in scaling_cases.SPREADS.
    """

    traces: Sequence[Path]
    seeds: Sequence[int]
    goals: Sequence[float]
    size: Size = field(default_factory=Size)
    quick: bool = False
    families: Sequence[str] = (PLANNER, POSSIBLE, *RIVALS)
    clients: Sequence[str] = tuple(SPREADS)


def run_plan(plan: Plan, say: Say) -> Iterator[list[Row]]:
    """Plays everything; the rows of one load at a time, those of the first seed first."""
    traces = [(path.name.split(".")[0], read_trace(path)) for path in plan.traces]
    for seed in plan.seeds:
        for clients in plan.clients:
            for trace, requests in traces:
                rows = list(_rows(case_of(trace, requests, clients, seed, plan.size), plan))
                say(_line(rows))
                yield rows


def _rows(case: Case, plan: Plan) -> Iterator[Row]:
    settings, arrivals = case.settings, case.arrivals
    if "hpa" in plan.families:
        yield from hpa_rows(case, quick=plan.quick)
    if "queue-blind" in plan.families:
        for load in BLIND_LOADS[::3] if plan.quick else BLIND_LOADS:
            outcome = outcome_of(FleetRun(arrivals, QueueBlind(load), settings).run())
            yield _row(case, "queue-blind", f"load {load}", outcome.row())
    if PLANNER in plan.families:
        for goal in plan.goals:
            planner = Planner(PlannerSettings(goal=goal))
            outcome = outcome_of(FleetRun(arrivals, planner, settings).run())
            yield _row(case, PLANNER, str(goal), outcome.row())
    if POSSIBLE in plan.families:
        yield _row(case, WORK, "", {"gpu_hours": work_hours(arrivals, settings)})
        for goal in plan.goals:
            found = clairvoyant(arrivals, settings, goal)
            if found is not None:
                yield _row(case, POSSIBLE, str(goal), found.row())


def hpa_rows(case: Case, *, quick: bool = False) -> Iterator[Row]:
    """The autoscaler at all pairs of targets.

    It scales each pool by that pool's own use, so a run of pairs tells what each pool does at its target,
    and any two pools can be put together: GPU-hours add up, a request is missed where either missed it.
    """
    runs = []
    for prefill, decode in list(zip(HPA_PREFILL, HPA_DECODE, strict=True))[:: 2 if quick else 1]:
        scaler = Hpa({PoolKind.PREFILL: prefill, PoolKind.DECODE: decode})
        run = FleetRun(case.arrivals, scaler, case.settings).run()
        runs.append((prefill, decode, misses_of(run), pool_hours(run), swings_of(run)))
    for prefill, _, first, hours, swings in runs:
        for _, decode, second, other_hours, other_swings in runs:
            missed = (first.late | second.slow)[first.counted]
            yield _row(
                case,
                "hpa",
                f"prefill {prefill} decode {decode}",
                {
                    "gpu_hours": hours[PoolKind.PREFILL] + other_hours[PoolKind.DECODE],
                    "attainment": 1.0 - float(missed.mean()),
                    "swings": swings[PoolKind.PREFILL] + other_swings[PoolKind.DECODE],
                },
            )


def _row(case: Case, family: str, setting: str, numbers: Mapping[str, float]) -> Row:
    names = {"trace": case.trace, "clients": case.clients, "seed": case.seed}
    return {**names, "family": family, "setting": setting, **numbers}


def _line(rows: Sequence[Row]) -> str:
    first = rows[0]
    words = [
        f"{row['family']} {row['setting']}: {row['gpu_hours']:.1f} GPU-h, {100 * row['attainment']:.2f} %"
        for row in rows
        if row["family"] in (PLANNER, POSSIBLE)
    ]
    head = f"{first['trace']}, {first['clients']}, seed {first['seed']}, {len(rows)} rows"
    return "; ".join([head, *words])
