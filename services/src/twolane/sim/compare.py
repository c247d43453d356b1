"""Compares prefill policies over workloads, loads and seeds: the data behind `twolane bench policies`.

All policies see the same requests on the same engine, so that each seed gives a paired ratio to fcfs;
intervals are bootstrapped over seeds. comparison_runs plays the runs, this module says what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from twolane.policies.settings import PrefillSettings
from twolane.sim.cluster import Simulation
from twolane.sim.outcome import SimOutcome
from twolane.sim.settings import SimSettings
from twolane.sim.workloads import Workload, decode_workers_for
from twolane.workload.latency import bootstrap_interval

Numbers = Mapping[str, float]

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
class Group:
    """Runs that share their requests: one workload, load and seed.

    Attributes:
        workload: its name.
        load: share of the fcfs capacity.
        seed: of the draw and of the simulations.
    """

    workload: str
    load: float
    seed: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One workload, load and variant: numbers by seed."""

    workload: str
    load: float
    variant: str
    mixed: bool
    runs: Mapping[int, Numbers]


def play(
    plan: Plan, group: Group, rate_per_s: float, variants: Sequence[Variant]
) -> Iterator[tuple[str, Numbers]]:
    """Simulates a group under each variant; its requests arrive at this rate."""
    workload = next(each for each in plan.workloads if each.name == group.workload)
    rng = np.random.default_rng([group.seed, round(group.load * 1000)])
    requests = workload.draw(rng, rate_per_s, plan.requests)
    decode_workers = decode_workers_for(requests, plan.settings, DECODE_USE)
    for variant in variants:
        settings = _settings(plan, variant, decode_workers, group.seed, requests[-1].arrival_s)
        yield variant.name, numbers(Simulation(settings, requests).run())


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
            row[metric] = _triple([run[metric] for run in cell.runs.values()], rng)
            if pair is not None:
                both = [seed for seed in cell.runs if seed in pair.runs]
                ours, theirs = ([one.runs[seed][metric] for seed in both] for one in (cell, pair))
                row[f"{metric}_ratio"] = _triple(ratios(ours, theirs), rng)
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


def default_settings() -> SimSettings:
    """The cluster of a comparison: two prefill workers, decode workers to suit."""
    return SimSettings(prefill_workers=2, prefill=PrefillSettings())
