"""Compares the planner with other scalers over traces and seeds: the data behind `twolane bench scaling`.

Every scaler sees the same requests and the same seconds of pod starts. Baselines have a target that
decides how generous they are, so each is played at several and compared where it keeps as many requests'
targets as the planner: at its best target for each run, and at the one target that suits all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from twolane.policies.planner import Planner
from twolane.policies.planner_baselines import Hpa, QueueBlind
from twolane.policies.planner_settings import PlannerSettings
from twolane.policies.planner_view import PoolKind, Scaler
from twolane.sim.profile import EngineProfile
from twolane.sim.scaling import FleetRun, FleetSettings
from twolane.sim.scaling_arrivals import Arrivals, arrivals_of, decode_work_s, stretch
from twolane.sim.scaling_outcome import outcome_of
from twolane.sim.settings import SimSettings
from twolane.workload.latency import bootstrap_interval
from twolane.workload.traces import TraceRequest, read_trace

Say = Callable[[str], None]
Row = dict[str, Any]

PLANNER = "planner"
# Attainments that differ by less are called equal.
EQUAL = 0.001
# Copies of a trace stand for clients that have nothing to do with each other, or for clients that all
# follow the same events: bursts add up by chance, or always.
SPREADS = {"independent": 300.0, "in step": 15.0}


def _qwen3_32b_h200() -> EngineProfile:
    """Qwen3-32B in bf16 on one H200, by the shares of peak that the built-in 8B profiles state.

    64 layers, 64 query and 8 KV heads of 128: 262,144 bytes of KV and 64 GFLOP per token; 65.5 GB of
    weights. Large enough that a trace of some requests a second needs several workers.
    """
    kv_bytes = 262_144
    read_s = kv_bytes / (0.65 * 4.3e12)
    return EngineProfile(
        overhead_s=0.0015,
        weights_s=65.5e9 / (0.82 * 4.3e12),
        token_s=64e9 / (0.75 * 790e12),
        attention_s=64 * 64 * 128 * 4 / 2 / 450e12,
        cached_read_s=read_s,
        decode_read_s=read_s,
        kv_bytes_per_token=kv_bytes,
        capacity_tokens=int((0.9 * 141e9 - 65.5e9 - 4e9) / kv_bytes),
        transfer_bytes_per_s=25e9,
        transfer_latency_s=0.001,
    )


FLEET_PROFILE = _qwen3_32b_h200()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A scaler under the name of its family and of its setting."""

    family: str
    setting: str
    scaler: Scaler


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        traces: files of requests.
        seeds: runs per trace; each takes another stretch of a long trace and other pod starts.
        hours: of a trace at most.
        workers: workers' worth of work on average.
        warmup_share: part of each run that is not counted.
        candidates: scalers; one of them is the planner.
    """

    traces: Sequence[Path]
    seeds: int
    hours: float
    workers: float
    candidates: Sequence[Candidate]
    warmup_share: float = 0.3


def candidates(goal: float, *, quick: bool = False) -> list[Candidate]:
    """The planner, the HorizontalPodAutoscaler at several targets, and the queue-blind planner."""
    found = [Candidate(PLANNER, f"goal {goal}", Planner(PlannerSettings(goal=goal)))]
    for prefill in (0.4, 0.7) if quick else (0.4, 0.5, 0.6, 0.7, 0.8):
        for decode in (0.6,) if quick else (0.3, 0.45, 0.6):
            targets = {PoolKind.PREFILL: prefill, PoolKind.DECODE: decode}
            found.append(Candidate("hpa", f"prefill {prefill} decode {decode}", Hpa(targets)))
    for load in (0.4, 0.7) if quick else (0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        found.append(Candidate("queue-blind", f"load {load}", QueueBlind(load)))
    return found


def run_plan(plan: Plan, say: Say) -> list[Row]:
    """Plays everything; one row per run."""
    rows: list[Row] = []
    for path in plan.traces:
        requests = read_trace(path)
        name = path.name.split(".")[0]
        for kind, spread_s in SPREADS.items():
            for seed in range(plan.seeds):
                arrivals = fleet_arrivals(requests, plan, spread_s, seed)
                fresh = [_row(name, kind, seed, one, arrivals, plan) for one in plan.candidates]
                rows += fresh
                say(_line(fresh))
    return rows


def fleet_arrivals(requests: Sequence[TraceRequest], plan: Plan, spread_s: float, seed: int) -> Arrivals:
    """The stretch of a seed, laid over itself until it needs the plan's workers."""
    span_s = plan.hours * 3600.0
    room_s = max(0.0, requests[-1].arrival_s - span_s)
    start_s = room_s * (seed + 0.5) / max(1, plan.seeds)
    part = stretch(requests, start_s, span_s)
    rng = np.random.default_rng([seed, 7])
    settings = SimSettings()
    once = arrivals_of(part, 1.0, FLEET_PROFILE, settings, rng)
    decode_s = float(decode_work_s(once, FLEET_PROFILE, settings.max_rows).sum())
    workers = (float(once.work_s.sum()) + decode_s) / once.duration_s
    rng = np.random.default_rng([seed, 8])
    return arrivals_of(part, plan.workers / workers, FLEET_PROFILE, settings, rng, spread_s)


def _row(name: str, kind: str, seed: int, one: Candidate, arrivals: Arrivals, plan: Plan) -> Row:
    settings = FleetSettings(FLEET_PROFILE, seed=seed, warmup_s=plan.warmup_share * arrivals.duration_s)
    outcome = outcome_of(FleetRun(arrivals, one.scaler, settings).run())
    return {
        "trace": name,
        "clients": kind,
        "seed": seed,
        "family": one.family,
        "setting": one.setting,
        **outcome.row(),
    }


def _line(rows: Sequence[Row]) -> str:
    [ours] = [row for row in rows if row["family"] == PLANNER]
    words = f"{ours['trace']:22s} {ours['clients']:12s} seed {ours['seed']}: planner "
    words += f"{ours['gpu_hours']:6.1f} GPU-h, {100 * ours['attainment']:6.2f} % within targets"
    for family in families(rows):
        best = matched(rows, family, ours["attainment"])
        words += f"; {family} " + (
            "never" if best is None else f"{best['gpu_hours']:.1f} ({best['setting']})"
        )
    return words


def families(rows: Iterable[Row]) -> list[str]:
    """Baselines, in order."""
    return list(dict.fromkeys(row["family"] for row in rows if row["family"] != PLANNER))


def matched(rows: Iterable[Row], family: str, attainment: float) -> Row | None:
    """The cheapest run of a family that keeps as many targets; None when none does."""
    good = [row for row in rows if row["family"] == family and row["attainment"] >= attainment - EQUAL]
    return min(good, key=lambda row: row["gpu_hours"], default=None)


def summary(rows: Sequence[Row]) -> Row:
    """Ratios of GPU-hours to every family: at its best setting per run, and at one setting for all."""
    runs: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        runs.setdefault((row["trace"], row["clients"], row["seed"]), []).append(row)
    ours = {key: next(row for row in group if row["family"] == PLANNER) for key, group in runs.items()}
    found: Row = {"planner": _means(list(ours.values()))}
    for family in families(rows):
        found[family] = {
            "best setting of each run": _per_run(runs, ours, family),
            "one setting for all runs": _one_setting(runs, ours, family),
        }
    return found


Runs = Mapping[tuple[str, str, int], Sequence[Row]]


def _per_run(runs: Runs, ours: Mapping[tuple[str, str, int], Row], family: str) -> Row:
    by_trace: dict[str, list[float]] = {}
    never = 0
    for key, group in runs.items():
        best = matched(group, family, ours[key]["attainment"])
        if best is None:
            never += 1
        else:
            by_trace.setdefault(f"{key[0]}, {key[1]}", []).append(ours[key]["gpu_hours"] / best["gpu_hours"])
    every = [ratio for ratios in by_trace.values() for ratio in ratios]
    ratios = {name: _interval(values) for name, values in by_trace.items()}
    return {
        "gpu_hours_ratio": _interval(every),
        "by_trace": ratios,
        "runs": len(runs),
        "never_reached": never,
    }


def _one_setting(runs: Runs, ours: Mapping[tuple[str, str, int], Row], family: str) -> Row:
    """The cheapest setting under which the mean attainment over all runs is the planner's."""
    goal = float(np.mean([row["attainment"] for row in ours.values()]))
    settings: dict[str, list[Row]] = {}
    for group in runs.values():
        for row in group:
            if row["family"] == family:
                settings.setdefault(row["setting"], []).append(row)
    good = {
        name: group
        for name, group in settings.items()
        if float(np.mean([row["attainment"] for row in group])) >= goal - EQUAL
    }
    if not good:
        best = max(settings.values(), key=lambda group: float(np.mean([r["attainment"] for r in group])))
        return {"setting": None, "best_attainment": _means(best)["attainment"]}
    name = min(good, key=lambda one: sum(row["gpu_hours"] for row in good[one]))
    ratios = [
        ours[row["trace"], row["clients"], row["seed"]]["gpu_hours"] / row["gpu_hours"] for row in good[name]
    ]
    total = sum(row["gpu_hours"] for row in ours.values()) / sum(row["gpu_hours"] for row in good[name])
    return {
        "setting": name,
        "gpu_hours_ratio": _interval(ratios),
        "ratio_of_totals": round(total, 4),
        "least_attainment": min(row["attainment"] for row in good[name]),
        **_means(good[name]),
    }


def _means(rows: Sequence[Row]) -> Row:
    names = ("gpu_hours", "attainment", "short", "long", "raises", "lowers", "moves", "swings")
    means: Row = {name: round(float(np.mean([row[name] for row in rows])), 4) for name in names}
    return {**means, "worst_attainment": min(row["attainment"] for row in rows)}


def _interval(values: Sequence[float]) -> list[float]:
    found = bootstrap_interval(values, np.random.default_rng(0))
    return [round(float(x), 4) for x in (found.mean, found.low, found.high)]


def with_goal(plan: Plan, goal: float) -> Plan:
    """The same plan with the planner at another goal."""
    others = [one for one in plan.candidates if one.family != PLANNER]
    return replace(plan, candidates=[*candidates(goal, quick=True)[:1], *others])
