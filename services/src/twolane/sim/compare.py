"""Compares prefill policies over workloads, loads and seeds: the data behind `twolane bench policies`.

All policies see the same requests on the same engine, so that each seed gives a paired ratio to fcfs;
intervals are bootstrapped over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import orjson

from twolane.core.errors import InvalidRequest
from twolane.policies.settings import PrefillSettings
from twolane.sim.cluster import Simulation
from twolane.sim.outcome import SimOutcome
from twolane.sim.settings import SimSettings
from twolane.sim.workloads import Workload, decode_workers_for, fcfs_capacity
from twolane.workload.latency import bootstrap_interval

Say = Callable[[str], None]
# Workload, load and variant.
CellKey = tuple[str, float, str]

# Numbers of a run that reports show, and whether more is better.
METRICS = (
    "short_ttft_p50_s",
    "short_ttft_p90_s",
    "short_ttft_p99_s",
    "long_ttft_p50_s",
    "long_ttft_p90_s",
    "long_ttft_p99_s",
    "all_ttft_p90_s",
    "slo_miss",
    "short_slo_miss",
    "long_slo_miss",
    "goodput_per_s",
    "tpot_p99_s",
)
BASELINE = "fcfs"
# Share of the decode workers' time that answers take: enough to matter, too little to decide.
DECODE_USE = 0.5
WARMUP_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy under a name: settings that differ from the comparison's.

    Attributes:
        name: in reports.
        policy: the prefill policy.
        prefill: its settings.
        cluster: settings of the cluster.
        colocated: as many workers in all, but each does both parts of its requests.
    """

    name: str
    policy: str
    prefill: Mapping[str, Any] = field(default_factory=dict)
    cluster: Mapping[str, Any] = field(default_factory=dict)
    colocated: bool = False


POLICIES = (
    Variant("fcfs", "fcfs"),
    Variant("chunked_2048", "chunked", {"chunk_budget_tokens": 2048}),
    Variant("colocated_512", "chunked", {"chunk_budget_tokens": 512}, colocated=True),
    Variant("colocated_2048", "chunked", {"chunk_budget_tokens": 2048}, colocated=True),
    Variant("sjf", "sjf"),
    Variant("hrrn", "hrrn"),
    Variant("laps_fixed", "laps_fixed"),
    Variant("laps", "laps"),
    Variant("colocated_laps", "laps", colocated=True),
)
_QUEUES = {
    "adaptive_wait": False,
    "adaptive_chunk": False,
    "defer_short": False,
    "reorder_long": False,
}
ABLATION = (
    Variant("fcfs", "fcfs"),
    Variant("queues", "laps", _QUEUES),
    Variant("+window", "laps", {**_QUEUES, "adaptive_wait": True}),
    Variant("+adaptive", "laps"),
    Variant("+graphs", "laps", {}, {"graphs": True}),
    Variant("+roles", "laps", {}, {"graphs": True, "roles": True}),
    Variant("+skip", "laps", {}, {"graphs": True, "roles": True, "skip_disaggregation": True}),
    Variant("fcfs+graphs", "fcfs", {}, {"graphs": True}),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        workloads: the workloads.
        variants: the policies; the first is the baseline.
        loads: offered load as shares of the fcfs capacity.
        seeds: one run each.
        requests: requests per run.
        settings: the cluster; policy, seed and decode workers are set per run.
    """

    workloads: Sequence[Workload]
    variants: Sequence[Variant]
    loads: Sequence[float]
    seeds: Sequence[int]
    requests: int
    settings: SimSettings


@dataclass(frozen=True, slots=True)
class Cell:
    """One workload, load and variant: per-seed numbers."""

    workload: str
    load: float
    variant: str
    mixed: bool
    runs: Sequence[Mapping[str, float]]


def run_plan(plan: Plan, say: Say, done: Mapping[CellKey, Cell] | None = None) -> Iterator[Cell]:
    """Runs everything, workload by workload, and says a line per cell; cells that are done are taken over."""
    known = done or {}
    for workload in plan.workloads:
        capacity = 0.0
        for load in plan.loads:
            left = [each for each in plan.variants if (workload.name, load, each.name) not in known]
            if left and capacity == 0.0:
                capacity = fcfs_capacity(workload, plan.settings, plan.requests)
            rate_per_s = capacity * plan.settings.prefill_workers * load
            fresh = {cell.variant: cell for cell in _run_load(plan, left, workload, load, rate_per_s)}
            for variant in plan.variants:
                cell = fresh.get(variant.name) or known[workload.name, load, variant.name]
                say(_line(cell))
                yield cell


def _run_load(
    plan: Plan, variants: Sequence[Variant], workload: Workload, load: float, rate_per_s: float
) -> list[Cell]:
    runs: dict[str, list[Mapping[str, float]]] = {variant.name: [] for variant in variants}
    for seed in plan.seeds if variants else ():
        requests = workload.draw(np.random.default_rng([seed, round(load * 1000)]), rate_per_s, plan.requests)
        decode_workers = decode_workers_for(requests, plan.settings, DECODE_USE)
        for variant in variants:
            settings = _settings(plan, variant, decode_workers, seed, requests[-1].arrival_s)
            runs[variant.name].append(numbers(Simulation(settings, requests).run()))
    return [Cell(workload.name, load, name, workload.mixed, found) for name, found in runs.items()]


def _settings(plan: Plan, variant: Variant, decode_workers: int, seed: int, span_s: float) -> SimSettings:
    return replace(
        plan.settings,
        prefill_policy=variant.policy,
        prefill=replace(plan.settings.prefill, **variant.prefill),
        decode_workers=decode_workers,
        mixed_workers=plan.settings.prefill_workers + decode_workers if variant.colocated else 0,
        warmup_s=WARMUP_SHARE * span_s,
        seed=seed,
        **variant.cluster,
    )


def cells_json(cells: Iterable[Cell]) -> bytes:
    """Every number of every run, for later comparisons with `cells_of`."""
    return orjson.dumps([asdict(cell) for cell in cells], default=float)


def cells_of(content: bytes, source: str) -> dict[CellKey, Cell]:
    """Cells of an earlier comparison, by workload, load and variant.

    Raises:
        InvalidRequest: it is no such file.
    """
    try:
        found = [Cell(**cell) for cell in orjson.loads(content)]
    except (orjson.JSONDecodeError, TypeError) as error:
        raise InvalidRequest(f"{source} holds no runs of a comparison: {error}") from error
    # JSON has no NaN.
    for cell in found:
        for run in cell.runs:
            run.update({name: math.nan for name, value in run.items() if value is None})  # type: ignore[attr-defined]
    return {(cell.workload, cell.load, cell.variant): cell for cell in found}


def numbers(outcome: SimOutcome) -> dict[str, float]:
    """The numbers of one run that comparisons use."""
    short, long, both = outcome.summary["short"], outcome.summary["long"], outcome.summary["all"]
    return {
        "short_ttft_p50_s": short.ttft_p50_s,
        "short_ttft_p90_s": short.ttft_p90_s,
        "short_ttft_p99_s": short.ttft_p99_s,
        "long_ttft_p50_s": long.ttft_p50_s,
        "long_ttft_p90_s": long.ttft_p90_s,
        "long_ttft_p99_s": long.ttft_p99_s,
        "all_ttft_p90_s": both.ttft_p90_s,
        "slo_miss": 1.0 - both.slo_attainment,
        "short_slo_miss": 1.0 - short.slo_attainment,
        "long_slo_miss": 1.0 - long.slo_attainment,
        "goodput_per_s": both.goodput_per_s,
        "tpot_p99_s": both.tpot_p99_s,
        "requests": float(both.count),
        "short_share": short.count / max(1, both.count),
        **outcome.counters,
    }


def summary_rows(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """One row per cell: mean and interval of every metric, and of its ratio to the baseline, paired."""
    rng = np.random.default_rng(0)
    cells = list(cells)
    base = {(cell.workload, cell.load): cell for cell in cells if cell.variant == BASELINE}
    rows = []
    for cell in cells:
        row: dict[str, Any] = {
            "workload": cell.workload,
            "load": cell.load,
            "policy": cell.variant,
            "mixed": cell.mixed,
            "seeds": len(cell.runs),
        }
        pair = base.get((cell.workload, cell.load))
        for metric in METRICS:
            values = [run[metric] for run in cell.runs]
            row[metric] = _triple(values, rng)
            if pair is not None:
                row[f"{metric}_ratio"] = _triple(ratios(values, [run[metric] for run in pair.runs]), rng)
        rows.append(row)
    return rows


def ratios(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Paired ratios; 1 where both are 0 and NaN where only the baseline is."""
    found = []
    for value, base in zip(values, baseline, strict=True):
        if base > 0.0:
            found.append(value / base)
        else:
            found.append(1.0 if value == 0.0 else float("nan"))
    return found


def _triple(values: Sequence[float], rng: np.random.Generator) -> list[float | None]:
    interval = bootstrap_interval(values, rng)
    return [None if np.isnan(x) else round(float(x), 5) for x in (interval.mean, interval.low, interval.high)]


def _line(cell: Cell) -> str:
    def mean(metric: str) -> float:
        known = [run[metric] for run in cell.runs if not math.isnan(run[metric])]
        return sum(known) / len(known) if known else math.nan

    return (
        f"{cell.workload:22s} {cell.load:4.2f} {cell.variant:13s} "
        f"short p90 {mean('short_ttft_p90_s'):8.3f} s  long p99 {mean('long_ttft_p99_s'):8.3f} s  "
        f"misses {100 * mean('slo_miss'):6.2f} %  goodput {mean('goodput_per_s'):8.2f} /s"
    )


def default_settings() -> SimSettings:
    """The cluster of a comparison: two prefill workers, decode workers to suit."""
    return SimSettings(prefill_workers=2, prefill=PrefillSettings())
