"""The loads that scalers are compared under: a trace, its clients, a seed, at the size of a fleet.

scaling_compare.py plays every scaler under each of them; all see the same requests and the same starts
of pods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from twolane.sim.profile import EngineProfile
from twolane.sim.scaling import FleetSettings
from twolane.sim.scaling_arrivals import Arrivals, arrivals_of, decode_work_s, stretch
from twolane.sim.settings import SimSettings
from twolane.workload.traces import TraceRequest

# Copies of a trace stand for clients that have nothing to do with each other, or for clients that all
# follow the same events: bursts add up by chance, or always.
SPREADS = {"independent": 300.0, "in step": 15.0}
# A trace that ends sooner is played over and over.
SHORTEST_S = 1800.0
# Stretches of a long trace lie apart by this share of it: any number of seeds is spread evenly.
GOLDEN = 0.6180339887


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
class Size:
    """How large and how long a load is.

    Attributes:
        hours: of a trace at most.
        workers: workers' worth of work on average.
        warmup_share: part of each run that is not counted.
    """

    hours: float = 1.0
    workers: float = 6.0
    warmup_share: float = 0.3


@dataclass(frozen=True, slots=True)
class Case:
    """One load under its names."""

    trace: str
    clients: str
    seed: int
    arrivals: Arrivals
    settings: FleetSettings


def case_of(trace: str, requests: Sequence[TraceRequest], clients: str, seed: int, size: Size) -> Case:
    """The stretch of a seed, laid over itself until it needs as many workers."""
    part = _part(requests, seed, size.hours * 3600.0)
    limits = SimSettings()
    once = arrivals_of(part, 1.0, FLEET_PROFILE, limits, np.random.default_rng([seed, 7]))
    decode_s = float(decode_work_s(once, FLEET_PROFILE, limits.max_rows).sum())
    workers = (float(once.work_s.sum()) + decode_s) / once.duration_s
    rng = np.random.default_rng([seed, 8])
    arrivals = arrivals_of(part, size.workers / workers, FLEET_PROFILE, limits, rng, SPREADS[clients])
    warmup_s = size.warmup_share * arrivals.duration_s
    return Case(
        trace, clients, seed, arrivals, FleetSettings(FLEET_PROFILE, limits, seed=seed, warmup_s=warmup_s)
    )


def _part(requests: Sequence[TraceRequest], seed: int, span_s: float) -> list[TraceRequest]:
    length_s = requests[-1].arrival_s
    if length_s < SHORTEST_S:
        rounds = int(span_s // (length_s + 1.0)) + 1
        again = (
            replace(one, arrival_s=one.arrival_s + (length_s + 1.0) * number)
            for number in range(rounds)
            for one in requests
        )
        return [one for one in again if one.arrival_s < span_s]
    start_s = max(0.0, length_s - span_s) * ((0.5 + GOLDEN * seed) % 1.0)
    return stretch(requests, start_s, span_s)
