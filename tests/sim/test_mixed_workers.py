"""Workers that do both parts, aborts, memory and progress of a simulated cluster."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from twolane.core.errors import ConfigError
from twolane.sim.cluster import Simulation
from twolane.sim.profile_file import profile_by_name
from twolane.sim.progress import shown_progress
from twolane.sim.settings import Abort, Failure, SimSettings
from twolane.workload.generator import MixSettings, generate_mix
from twolane.workload.traces import TraceRequest

MIX = MixSettings(rate_per_s=20.0, duration_s=6.0, output_median_tokens=30.0, output_max_tokens=100)


def _mix(seed: int = 0) -> list[TraceRequest]:
    return generate_mix(MIX, np.random.default_rng(seed))


@pytest.mark.parametrize("policy", ["chunked", "laps", "fcfs"])
def test_mixed_workers_serve_everything_without_a_transfer(policy: str) -> None:
    """Also when one of them fails."""
    settings = SimSettings(mixed_workers=2, prefill_policy=policy, failures=(Failure(2.0, 0, 1.0),))
    simulation = Simulation(settings, _mix())
    outcome = simulation.run()
    assert outcome.summary["all"].failed == 0
    assert outcome.counters["transferred_gb"] == 0.0
    assert len(simulation.workers) == 2
    for worker in simulation.workers:
        assert worker.is_empty
        assert worker.promised_tokens == worker.decode.used_tokens == worker.decode.left_tokens == 0


def test_chunks_bound_the_gaps_of_answers_beside_long_prompts() -> None:
    """SARATHI's point: with small chunks a long prompt holds the running answers up for less."""
    trace = [TraceRequest(0.0, 50, 400), *(TraceRequest(0.5 + i, 8000, 1) for i in range(3))]
    gaps = {}
    for budget in (256, 8192):
        settings = SimSettings(mixed_workers=1, prefill_policy="chunked", step_noise=0.0)
        settings = replace(settings, prefill=replace(settings.prefill, chunk_budget_tokens=budget))
        gaps[budget] = Simulation(settings, trace).run().columns.worst_gap_s[0]
    assert gaps[256] < 0.1 * gaps[8192]


def test_a_small_pool_holds_prompts_back_and_loses_none() -> None:
    """Prompts wait for pages, answers lose theirs: everything still ends and every page comes back."""
    profile = profile_by_name("h100_qwen3_8b")
    # Beside pages that wait for a transfer the longest prompt must find its own.
    for settings, tokens in ((SimSettings(mixed_workers=1), 20_000), (SimSettings(), 60_000)):
        simulation = Simulation(settings, _mix(1), replace(profile, capacity_tokens=tokens))
        assert simulation.run().summary["all"].failed == 0
        for worker in simulation.workers:
            assert worker.decode.used_tokens == worker.decode.pages.pinned_tokens == 0


def test_clients_that_go_away_take_their_pages_with_them() -> None:
    """At any stage; they are not counted, and nobody else is lost."""
    trace = _mix(2)
    rng = np.random.default_rng(0)
    aborts = tuple(
        Abort(one.arrival_s + float(rng.exponential(0.2)), index)
        for index, one in enumerate(trace)
        if index % 4 == 0
    )
    for settings in (SimSettings(aborts=aborts), SimSettings(aborts=aborts, mixed_workers=1)):
        simulation = Simulation(settings, trace)
        outcome = simulation.run()
        gone = sum(request.aborted for request in simulation.requests)
        assert 0 < gone <= len(aborts)
        assert outcome.summary["all"].count == len(trace) - gone
        assert outcome.summary["all"].failed == 0
        for worker in simulation.workers:
            assert worker.is_empty
            assert worker.promised_tokens == worker.decode.used_tokens == worker.decode.left_tokens == 0


def test_graphs_shorten_small_steps_alone() -> None:
    """Where the profile knows what they save; a long prompt takes as long as before."""
    trace = [TraceRequest(0.0, 100, 1), TraceRequest(1.0, 4000, 1)]
    usual = Simulation(SimSettings(step_noise=0.0), trace).run().columns.ttft_s
    graphs = Simulation(SimSettings(step_noise=0.0, graphs=True), trace).run().columns.ttft_s
    assert graphs[0] == pytest.approx(usual[0] - 0.001)
    assert graphs[1] == pytest.approx(usual[1])


def test_progress_reaches_the_end_in_a_few_lines() -> None:
    """Where there is no terminal."""
    lines: list[str] = []
    with shown_progress(1000, lines.append) as progress:
        for left in range(999, -1, -1):
            progress(float(1000 - left), left)
    assert 15 <= len(lines) <= 21
    assert lines[-1] == "1,000 s simulated, 1,000 of 1,000 requests done"


def test_mixed_workers_exclude_moves_between_pools() -> None:
    """There are no pools."""
    with pytest.raises(ConfigError, match="mixed_workers"):
        SimSettings(mixed_workers=2, roles=True)


def test_a_worker_that_is_down_is_shown_as_such() -> None:
    """From its failure until it is back."""
    settings = SimSettings(failures=(Failure(2.0, 0, 1.0),), decode_workers=2, sample_s=0.25)
    line = Simulation(settings, _mix()).run().timeline
    down = dict(zip(line.time_s, line.roles["down"], strict=True))
    assert down[1.75] == down[3.25] == 0
    assert down[2.5] == 1
    assert all(sum(counts) == 3 for counts in zip(*line.roles.values(), strict=True))
