"""Whoever waits for pages gets them: small pools, aborts, failing workers, every order of computing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.one_worker import Landing, decode_side
from twolane.policies.decode import DECODE_POLICIES, DecodeSettings, decode_by_name
from twolane.policies.registry import PREFILL_POLICIES
from twolane.policies.settings import PrefillSettings
from twolane.sim.cluster import Simulation
from twolane.sim.events import EventQueue
from twolane.sim.profile_file import profile_by_name
from twolane.sim.request import SimRequest
from twolane.sim.settings import Abort, Failure, SimSettings
from twolane.workload.traces import TraceRequest

CAPACITY = 2000
PROFILE = replace(profile_by_name("h100_qwen3_8b"), capacity_tokens=CAPACITY)
# Prompts of up to half the pool, as the simulator cuts them, and answers that may fill the rest.
REQUESTS = st.lists(
    st.tuples(st.floats(0.0, 0.5), st.integers(1, CAPACITY // 2), st.integers(1, 60)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    requests=REQUESTS,
    prefill=st.sampled_from(PREFILL_POLICIES),
    decode=st.sampled_from(DECODE_POLICIES),
    workers=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    aborts=st.dictionaries(st.integers(0, 39), st.floats(0.0, 1.0), max_size=8),
    failures=st.lists(st.tuples(st.floats(0.0, 0.6), st.integers(0, 4), st.floats(0.01, 0.3)), max_size=2),
    early_share=st.sampled_from([0.0, 0.25, 1.0]),
)
def test_every_request_ends_however_small_the_pools(
    requests: list[tuple[float, int, int]],
    prefill: str,
    decode: str,
    workers: tuple[int, int],
    aborts: dict[int, float],
    failures: list[tuple[float, int, float]],
    early_share: float,
) -> None:
    """No order of computing and no ending of others leaves a request waiting; all pages come back."""
    trace = [TraceRequest(at_s, prompt, output, 0) for at_s, prompt, output in sorted(requests)]
    chosen = SimSettings(
        prefill_workers=workers[0],
        decode_workers=workers[1],
        prefill_policy=prefill,
        prefill=PrefillSettings(long_chunk_tokens=512, max_batch_tokens=1024),
        decode_policy=decode,
        decode=DecodeSettings(max_output_tokens=60, early_share=early_share),
        aborts=tuple(Abort(at_s, index) for index, at_s in aborts.items() if index < len(trace)),
        failures=tuple(Failure(*each) for each in failures),
    )
    simulation = Simulation(chosen, trace, PROFILE)
    simulation.run()
    simulation.events.run(simulation.events.now_s + 5.0)
    for worker in simulation.workers:
        assert worker.is_empty
        assert worker.decode.used_tokens == 0
        assert not worker.decode.waiting.held_early
        assert not worker.decode.waiting.owed


def test_a_prompt_that_is_computed_first_does_not_wait_for_the_pages_of_one_that_is_queued() -> None:
    """Long prompts came first, short ones are computed first: their answers go on at once."""
    trace = [TraceRequest(i * 1e-4, 900, 4, 0) for i in range(10)]
    trace += [TraceRequest(0.002 + i * 1e-4, 100, 4, 0) for i in range(40)]
    chosen = SimSettings(
        prefill_policy="sjf",
        prefill=PrefillSettings(max_batch_tokens=200),
        decode_policy="conservative",
        decode=DecodeSettings(max_output_tokens=4),
    )
    outcome = Simulation(chosen, trace, PROFILE).run()
    assert float(outcome.columns.worst_gap_s[10:].max()) < 0.05


@pytest.mark.parametrize("policy", DECODE_POLICIES)
def test_pages_go_to_the_begun_before_the_queued(policy: str) -> None:
    """In the order in which they begin; the others only while there is room for all."""
    events = EventQueue()
    host = Landing(events, 1e9)
    side = decode_side(events, PROFILE, decode_by_name(policy, DecodeSettings(max_output_tokens=4)), 64, host)
    made = [SimRequest(index, 0.0, 450, 4, 0) for index in range(6)]
    for request in made:
        request.max_tokens = 4
        side.offer(request)
    # A quarter of the pool holds one of them.
    assert list(side.holders) == ["0"]
    for index in (5, 3, 4):
        side.begun(made[index])
    assert list(side.holders) == ["0", "5", "3", "4"]
    side.begun(made[2])
    side.cancel(made[5])
    assert list(side.holders) == ["0", "3", "4", "2"]
    assert [request.name for request in side.waiting] == ["1"]
