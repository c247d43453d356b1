"""What a simulation found: latencies per class, counters, and queues and roles over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from twolane.policies.roles import Group
from twolane.workload.latency import ClassSummary, LatencyColumns, SloLimits, summarize

if TYPE_CHECKING:
    from twolane.sim.cluster import Simulation

CLASSES = ("short", "long")
ROLES = (*(group.value for group in Group), "down")


@dataclass(slots=True)
class TimeLine:
    """Samples over virtual time, one entry per sample in every list."""

    time_s: list[float] = field(default_factory=list)
    queued: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in CLASSES})
    decoding: list[int] = field(default_factory=list)
    kv_use: dict[str, list[float]] = field(default_factory=lambda: {"mean": [], "fullest worker": []})
    roles: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in ROLES})

    def sample(self, simulation: Simulation) -> None:
        """Adds the state of now."""
        counts = simulation.groups.counts()
        tally = simulation.tally
        self.time_s.append(simulation.events.now_s)
        self.queued["short"].append(tally.short)
        self.queued["long"].append(tally.long)
        self.decoding.append(tally.decoding)
        used = [worker.decode.used_tokens for worker in simulation.workers]
        capacity = simulation.profile.capacity_tokens
        self.kv_use["mean"].append(sum(used) / len(used) / capacity)
        self.kv_use["fullest worker"].append(max(used) / capacity)
        for name, count in counts.items():
            self.roles[name].append(count)


@dataclass(frozen=True, slots=True)
class SimOutcome:
    """Results of one run.

    Attributes:
        columns: counted requests (those after the warm-up).
        summary: per class and for "all".
        counters: events, batches, preemptions, replays, role moves, utilisation of both pools.
        timeline: queues and roles over time.
        duration_s: seconds over which the counted requests arrived.
        makespan_s: virtual time at which the last request ended.
    """

    columns: LatencyColumns
    summary: Mapping[str, ClassSummary]
    counters: Mapping[str, float]
    timeline: TimeLine
    duration_s: float
    makespan_s: float


def outcome_of(simulation: Simulation) -> SimOutcome:
    """Collects the results once every request has ended."""
    settings = simulation.settings
    counted = [
        request
        for request in simulation.requests
        if request.arrival_s >= settings.warmup_s and not request.aborted
    ]
    duration_s = max(1e-09, counted[-1].arrival_s - settings.warmup_s) if counted else 1.0
    first = np.array([request.first_token_s for request in counted], dtype=np.float64)
    last = np.array([request.last_token_s for request in counted], dtype=np.float64)
    indices = np.array([request.index for request in counted], dtype=np.int64)
    arrival = np.array([request.arrival_s for request in counted], dtype=np.float64)
    further = np.array([request.output_tokens - 1 for request in counted], dtype=np.float64)
    columns = LatencyColumns(
        classes=CLASSES,
        class_index=np.array([0 if request.is_short else 1 for request in counted], dtype=np.int64),
        ttft_s=first - arrival + simulation.profile.reply_s * simulation.ways[indices],
        tpot_s=np.where(further > 0, (last - first) / np.maximum(further, 1.0), np.nan),
        worst_gap_s=np.array([request.worst_gap_s for request in counted], dtype=np.float64),
        done=~np.isnan(last),
        ttft_limit_s=np.array([request.ttft_limit_s for request in counted], dtype=np.float64),
    )
    slo = SloLimits(tpot_s=settings.tpot_s)
    summary = summarize(columns, slo, duration_s)
    return SimOutcome(
        columns, summary, _counters(simulation), simulation.timeline, duration_s, simulation.events.now_s
    )


def _counters(simulation: Simulation) -> dict[str, float]:
    workers, now_s = simulation.workers, max(1e-9, simulation.events.now_s)
    return {
        "events": simulation.events.processed,
        "prefill_batches": sum(worker.prefill.batches for worker in workers),
        "prefill_busy_workers": sum(worker.prefill.busy_s for worker in workers) / now_s,
        "decode_busy_workers": sum(worker.decode.busy_s for worker in workers) / now_s,
        "transferred_gb": simulation.transferred_bytes / 1e9,
        "preemptions": sum(worker.decode.preemptions for worker in workers),
        "replays": sum(request.replays for request in simulation.requests),
        "skipped_disaggregation": sum(request.skips for request in simulation.requests),
        "role_moves": sum(move.workers for _, move in simulation.groups.moves),
    }
