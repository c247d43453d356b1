"""The simulator decides what the production scheduler decides, entry by entry of their logs.

The same requests go through the worker's own request table, queues and step loop under virtual time (see
live_worker.py) and through the simulator; both charge the same seconds for a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.sim.live_worker import Ask, LiveWorker
from tests.sim.one_worker import Landing, decode_side
from twolane.core.request import Phase
from twolane.policies.decode import DecodeSettings, decode_by_name
from twolane.policies.prefill import PrefillDecision
from twolane.policies.registry import PREFILL_POLICIES, by_name
from twolane.policies.settings import PrefillSettings
from twolane.sim.cluster import Simulation
from twolane.sim.events import EventQueue
from twolane.sim.profile import EngineProfile
from twolane.sim.request import SimRequest
from twolane.sim.settings import Abort, SimSettings
from twolane.workload.traces import TraceRequest

PROFILE = EngineProfile(
    overhead_s=0.0015,
    weights_s=0.006,
    token_s=2.5e-5,
    attention_s=1e-9,
    cached_read_s=1e-7,
    decode_read_s=1e-7,
    kv_bytes_per_token=1,
    capacity_tokens=1_000_000,
    transfer_bytes_per_s=1e30,
    transfer_latency_s=0.003,
)
SETTINGS = PrefillSettings(window_s=0.004)
SHORT_S, LONG_S = 0.4, 2.0


def asks(seed: int, count: int = 300, rate_per_s: float = 60.0, outputs: int = 12) -> list[Ask]:
    """A mix with history in the cache, some clients of which go away at any stage."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1.0 / rate_per_s, count))
    found = []
    for index, arrival_s in enumerate(arrivals.tolist()):
        long = rng.random() < 0.15
        new = int(rng.integers(600, 6000)) if long else int(rng.integers(4, 250))
        cached = 16 * int(rng.integers(0, 128)) if rng.random() < 0.5 else 0
        abort_s = arrival_s + float(rng.exponential(0.15)) if rng.random() < 0.15 else None
        ttft_ms = round(1e3 * (SHORT_S if new <= 256 else LONG_S))
        output = int(rng.integers(1, outputs + 1))
        found.append(
            Ask(str(index), arrival_s, new + cached, output, cached, ttft_ms, abort_s, float(rng.random()))
        )
    return found


def simulated(requests: Sequence[Ask], profile: EngineProfile, settings: SimSettings) -> Simulation:
    """A simulation of them, with the decisions of its first worker kept; not run yet."""
    settings = replace(
        settings,
        step_noise=0.0,
        long_slowdown=0.0,
        aborts=tuple(Abort(one.abort_s, at) for at, one in enumerate(requests) if one.abort_s is not None),
    )
    trace = [
        TraceRequest(one.arrival_s, one.prompt_tokens, one.output_tokens, one.cached_tokens)
        for one in requests
    ]
    simulation = Simulation(settings, trace, profile)
    for made, one in zip(simulation.requests, requests, strict=True):
        made.max_tokens, made.draw = one.output_tokens, one.draw
    simulation.workers[0].prefill.decisions = []
    return simulation


def prefill_log(entries: Sequence[tuple[float, PrefillDecision]]) -> list[tuple[float, Any]]:
    """What was decided when: tokens per request, or until when to wait.

    Two changes at one moment wake the live loop once, and the simulator twice, to the same answer.
    """
    found: list[tuple[float, Any]] = []
    for at_s, decision in entries:
        chunks = [(chunk.request_id, chunk.tokens) for chunk in decision.chunks]
        entry = (at_s, chunks or decision.wake_s)
        if chunks or not found or found[-1] != entry:
            found.append(entry)
    return found


def assert_same(live: list[tuple[float, Any]], simulation: list[tuple[float, Any]]) -> None:
    """Entry by entry; times may differ by rounding."""
    for number, (ours, theirs) in enumerate(zip(live, simulation, strict=False)):
        same = ours[0] == pytest.approx(theirs[0], abs=1e-7)
        if isinstance(ours[1], float) and isinstance(theirs[1], float):
            same = same and ours[1] == pytest.approx(theirs[1], abs=1e-7)
        else:
            same = same and ours[1] == theirs[1]
        around = slice(max(0, number - 2), number + 2)
        assert same, f"entry {number}: live {live[around]}, simulator {simulation[around]}"
    assert len(live) == len(simulation)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("policy", PREFILL_POLICIES)
def test_a_prefill_worker_decides_alike(policy: str, seed: int) -> None:
    """Prompts alone, pages leave; under a load that queues."""
    requests = asks(seed)
    live = LiveWorker(
        PROFILE,
        by_name(policy, SETTINGS),
        decode_by_name("aggressive"),
        SETTINGS,
        phase=Phase.PREFILL,
        transfer_s=PROFILE.transfer_latency_s,
    )
    live.replay(requests)
    simulation = simulated(
        requests, PROFILE, SimSettings(prefill_policy=policy, prefill=SETTINGS, decode_policy="aggressive")
    )
    simulation.run()
    assert len(live.prefill.log) > 60
    assert_same(prefill_log(live.prefill.log), prefill_log(simulation.workers[0].prefill.decisions or []))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("policy", PREFILL_POLICIES)
def test_a_mixed_worker_decides_alike(policy: str, seed: int) -> None:
    """Prompts and answers share steps."""
    requests = asks(seed, rate_per_s=30.0)
    live = LiveWorker(PROFILE, by_name(policy, SETTINGS), decode_by_name("aggressive"), SETTINGS)
    live.replay(requests)
    simulation = simulated(
        requests, PROFILE, SimSettings(mixed_workers=1, prefill_policy=policy, prefill=SETTINGS)
    )
    simulation.run()
    assert len(live.prefill.log) > 60
    assert_same(prefill_log(live.prefill.log), prefill_log(simulation.workers[0].prefill.decisions or []))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("policy", "use_limit"),
    [("past_future", 0.95), ("conservative", 0.95), ("aggressive", 0.4), ("aggressive", 0.5)],
)
def test_a_decode_worker_admits_alike(policy: str, use_limit: float, seed: int) -> None:
    """Prompts of others arrive and begin, in another order, and pages are short: who is admitted when.

    No policy takes pages away here. Of an answer that lost its pages a live worker finds some still in its
    cache; the simulator charges all of it, so that the log of an aggressive one differs from then on.
    """
    small = replace(PROFILE, capacity_tokens=600)
    settings = DecodeSettings(max_output_tokens=64, window=32, use_limit=use_limit)
    chosen = decode_by_name(policy, settings)
    requests = [
        replace(one, prompt_tokens=1 + one.prompt_tokens % 150, cached_tokens=0, abort_s=None)
        for one in asks(seed, count=120, rate_per_s=40.0, outputs=64)
        if one.output_tokens > 1
    ]
    rng = np.random.default_rng(seed)
    requests = [replace(one, begun_s=one.arrival_s + float(rng.exponential(0.5))) for one in requests]
    live = LiveWorker(
        small, by_name("fcfs"), chosen, SETTINGS, 8, Phase.DECODE, small.transfer_latency_s, page_tokens=1
    )
    live.replay(requests)
    events = EventQueue()
    host = Landing(events, small.transfer_latency_s)
    side = decode_side(events, small, chosen, 8, host)
    log: list[tuple[float, Any]] = []
    side.decisions, side.ask_every = log, 1
    for index, one in enumerate(requests):
        made = SimRequest(index, one.arrival_s, one.prompt_tokens, one.output_tokens, 0)
        made.name, made.draw, made.queued_s = one.name, one.draw, one.arrival_s
        made.source = made.target = 0
        events.at(one.arrival_s, side.offer, made)
        events.at(one.begun_s or 0.0, side.begun, made)
    events.run()
    assert side.is_empty
    ours = [(at_s, list(decision.admit)) for at_s, decision in live.decode.log if decision.admit]
    theirs = [(at_s, list(decision.admit)) for at_s, decision in log if decision.admit]
    assert len(ours) > 40
    assert_same(ours, theirs)
