"""The simulated cluster: known queues, repeatable runs, nothing lost under failures and role moves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twolane.core.errors import ConfigError
from twolane.policies.decode import DECODE_POLICIES, DecodeSettings
from twolane.policies.registry import PREFILL_POLICIES
from twolane.policies.settings import PrefillSettings
from twolane.sim.cluster import Simulation
from twolane.sim.profile_file import profile_by_name
from twolane.sim.settings import Failure, SimSettings
from twolane.workload.generator import MixSettings, generate_mix
from twolane.workload.traces import TraceRequest

PROFILE = profile_by_name("h100_qwen3_8b")
SMALL = MixSettings(rate_per_s=25.0, duration_s=12.0, output_median_tokens=30.0, output_max_tokens=100)


def _mix(seed: int = 0, **change: float) -> list[TraceRequest]:
    return generate_mix(replace(SMALL, **change), np.random.default_rng(seed))  # type: ignore[arg-type]


def test_one_at_a_time_the_queue_is_the_known_one() -> None:
    """Equal prompts, Poisson arrivals, one per batch: the mean wait is that of M/D/1, ρS/2(1−ρ)."""
    tokens = 2000
    service_s = PROFILE.prefill_s([(tokens, 0)])
    load = 0.7
    rng = np.random.default_rng(3)
    arrivals = np.cumsum(rng.exponential(service_s / load, 20_000))
    trace = [TraceRequest(float(at_s), tokens, 1) for at_s in arrivals]
    one = PrefillSettings(max_batch_tokens=tokens, long_chunk_tokens=tokens)
    outcome = Simulation(SimSettings(prefill_policy="fcfs", prefill=one, step_noise=0.0), trace).run()
    wait_s = float(np.mean(outcome.columns.ttft_s)) - service_s
    assert wait_s == pytest.approx(load * service_s / 2 / (1 - load), rel=0.06)


def test_an_idle_cluster_answers_in_the_time_of_its_steps() -> None:
    """First token after one prefill step; each further one after a decode step."""
    settings_ = SimSettings(prefill_policy="laps", step_noise=0.0)
    outcome = Simulation(settings_, [TraceRequest(0.0, 1000, 11, 200)]).run()
    assert outcome.columns.ttft_s[0] == pytest.approx(PROFILE.prefill_s([(800, 200)]))
    landing_s = PROFILE.transfer_s(1000) + PROFILE.transfer_latency_s
    step_s = PROFILE.decode_constant_s(1) + PROFILE.decode_read_s * 1005.5
    assert outcome.columns.tpot_s[0] * 10 == pytest.approx(10 * step_s + landing_s, rel=0.02)


@pytest.mark.parametrize("policy", PREFILL_POLICIES)
def test_every_policy_serves_everything_and_repeats_itself(policy: str) -> None:
    """Two runs of one seed are equal in every number."""
    runs = [Simulation(SimSettings(prefill_policy=policy), _mix()).run() for _ in "ab"]
    assert runs[0].summary == runs[1].summary
    assert runs[0].counters == runs[1].counters
    assert runs[0].summary["all"].failed == 0
    assert runs[0].summary["all"].count == len(_mix())


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 4), st.integers(0, 4), st.floats(0.1, 3)), max_size=4),
    st.sampled_from(["laps", "fcfs"]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_failures_and_moves_lose_no_request(
    failures: list[tuple[float, int, float]], policy: str, roles: bool, seed: int
) -> None:
    """Whatever fails when, each request gets all its tokens once, and no page stays behind."""
    settings_ = SimSettings(
        prefill_workers=2,
        decode_workers=3,
        prefill_policy=policy,
        roles=roles,
        role_period_s=1.0,
        lane_groups=roles,
        skip_disaggregation=True,
        failures=tuple(Failure(*failure) for failure in failures),
        seed=seed,
    )
    simulation = Simulation(settings_, _mix(seed, duration_s=3.0))
    outcome = simulation.run()
    assert outcome.summary["all"].failed == 0
    assert all(request.generated_tokens == request.output_tokens for request in simulation.requests)
    for worker in simulation.workers:
        assert worker.decode.used_tokens == 0
        assert worker.decode.left_tokens == 0
        assert worker.is_empty
        assert worker.promised_tokens == 0


@pytest.mark.parametrize("seed", range(6))
def test_all_workers_of_a_pool_failing_at_once_only_delays(seed: int) -> None:
    """Requests wait for a worker to come back, and a second failure meanwhile takes none of them twice."""
    both = tuple(Failure(1.0 + 0.5 * (index % 2), index, 1.5) for index in range(4))
    again = (Failure(1.5, 0, 1.0), Failure(2.5, 2, 1.0))
    cluster = SimSettings(prefill_workers=2, decode_workers=2, failures=both + again, seed=seed)
    simulation = Simulation(cluster, _mix(seed, duration_s=3.0))
    assert simulation.run().summary["all"].failed == 0
    for worker in simulation.workers:
        assert worker.is_empty
        assert worker.promised_tokens == worker.decode.used_tokens == worker.decode.left_tokens == 0


def test_a_failed_worker_costs_a_gap_but_no_tokens() -> None:
    """Answers that ran there go on elsewhere; their longest gap shows it."""
    calm = Simulation(SimSettings(decode_workers=2), _mix()).run()
    broken = Simulation(SimSettings(decode_workers=2, failures=(Failure(5.0, 1, 3.0),)), _mix()).run()
    assert broken.counters["replays"] > 0 == calm.counters["replays"]
    assert broken.summary["all"].worst_gap_s > calm.summary["all"].worst_gap_s


def test_the_controller_gives_a_starved_pool_workers() -> None:
    """One prefill worker of six under three times its load: with roles the tail is far shorter."""
    trace = _mix(rate_per_s=60.0, duration_s=40.0)
    cluster = SimSettings(prefill_workers=1, decode_workers=5)
    fixed = Simulation(cluster, trace).run()
    moving = Simulation(replace(cluster, roles=True, role_period_s=2.0), trace).run()
    assert moving.counters["role_moves"] >= 1
    assert moving.summary["all"].ttft_p90_s < 0.5 * fixed.summary["all"].ttft_p90_s


def test_lane_groups_keep_long_prompts_off_the_short_workers() -> None:
    """With groups every batch of a worker is of one lane until the controller moves it."""
    simulation = Simulation(SimSettings(prefill_workers=2, lane_groups=True), _mix())
    for worker in simulation.workers:
        worker.prefill.decisions = []
    simulation.run()
    longest = []
    for worker in simulation.workers[:2]:
        sizes = [chunk.tokens for _, decision in worker.prefill.decisions or [] for chunk in decision.chunks]
        longest.append(max(sizes))
    assert min(longest) <= 1024 < max(longest)


@pytest.mark.parametrize("placement", ["least_wait", "round_robin", "power_of_two"])
def test_the_routers_placement_policies_run_here_too(placement: str) -> None:
    """Everything is served, twice alike, over a failure as well."""
    cluster = SimSettings(
        prefill_workers=2, decode_workers=2, placement=placement, failures=(Failure(2.0, 0, 2.0),)
    )
    runs = [Simulation(cluster, _mix(duration_s=5.0)).run() for _ in "ab"]
    assert runs[0].summary == runs[1].summary
    assert runs[0].summary["all"].failed == 0


def test_placement_by_predicted_time_beats_round_robin() -> None:
    """Four prefill workers under load: the same requests get their first token sooner."""
    cluster = SimSettings(prefill_workers=4, decode_workers=4)
    trace = _mix(rate_per_s=100.0, duration_s=20.0)
    found = {}
    for placement in ("least_wait", "round_robin"):
        found[placement] = Simulation(replace(cluster, placement=placement), trace).run().summary["all"]
    assert found["least_wait"].ttft_p90_s < found["round_robin"].ttft_p90_s


def test_skipping_disaggregation_helps_short_prompts_of_an_idle_cluster() -> None:
    """Their second token comes sooner, since nothing is transferred."""
    trace = _mix(short_share=1.0, rate_per_s=2.0, duration_s=30.0)
    usual = Simulation(SimSettings(), trace).run()
    direct = Simulation(SimSettings(skip_disaggregation=True), trace).run()
    assert direct.counters["skipped_disaggregation"] > 0.5 * len(trace)
    assert direct.summary["all"].tpot_p50_s < usual.summary["all"].tpot_p50_s


def test_past_future_fills_memory_better_than_conservative_and_preempts_less_than_aggressive() -> None:
    """The order of the paper's table, on answers of 2,000 tokens under a limit of 4,096."""
    rng = np.random.default_rng(0)
    trace = [TraceRequest(i * 0.005, 500, int(rng.integers(1000, 3000))) for i in range(900)]
    found = {}
    for policy in DECODE_POLICIES:
        cluster = SimSettings(
            decode_policy=policy, decode=DecodeSettings(max_output_tokens=4096), max_rows=2000
        )
        found[policy] = Simulation(cluster, trace).run()
    assert found["past_future"].makespan_s < 0.9 * found["conservative"].makespan_s
    assert found["conservative"].counters["preemptions"] == 0
    assert found["past_future"].counters["preemptions"] < 0.5 * found["aggressive"].counters["preemptions"]


def test_two_lanes_beat_first_come_on_a_loaded_mix() -> None:
    """Short p90 falls by 60 % at least and misses by half, while long p99 grows by 10 % at most."""
    trace = _mix(5, rate_per_s=30.0, duration_s=100.0)
    cluster = SimSettings(decode_workers=3, warmup_s=10.0)
    found = {
        name: Simulation(replace(cluster, prefill_policy=name), trace).run().summary
        for name in ("fcfs", "laps")
    }
    assert found["laps"]["short"].ttft_p90_s <= 0.4 * found["fcfs"]["short"].ttft_p90_s
    assert found["laps"]["long"].ttft_p99_s <= 1.1 * found["fcfs"]["long"].ttft_p99_s
    misses = {name: 1.0 - summary["all"].slo_attainment for name, summary in found.items()}
    assert misses["laps"] <= 0.5 * misses["fcfs"]
    assert found["laps"]["all"].goodput_per_s >= found["fcfs"]["all"].goodput_per_s


def test_an_empty_trace_ends_at_once() -> None:
    """Nothing was measured, and nothing is claimed."""
    outcome = Simulation(SimSettings(), []).run()
    assert outcome.summary["all"].count == 0
    assert math.isnan(outcome.summary["all"].ttft_p50_s)


def test_a_cluster_that_can_not_serve_is_refused() -> None:
    """With the setting at fault."""
    with pytest.raises(ConfigError, match="prefill"):
        SimSettings(prefill_workers=0)
    with pytest.raises(ConfigError, match="lane_groups"):
        SimSettings(lane_groups=True)
    with pytest.raises(ConfigError, match="placement"):
        Simulation(SimSettings(placement="dice"), [])
    with pytest.raises(ConfigError, match="profile"):
        Simulation(SimSettings(profile="abacus"), [])
