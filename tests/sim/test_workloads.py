"""Workloads of a comparison: the asked rate, other draws per seed, capacity as measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from twolane.core.errors import InvalidRequest
from twolane.sim.compare import default_settings, ratios
from twolane.sim.profile_file import profile_by_name
from twolane.sim.workloads import fcfs_capacity, mix_workloads, trace_workload
from twolane.workload.traces import TraceRequest


def _rate(requests: list[TraceRequest]) -> float:
    return len(requests) / requests[-1].arrival_s


@pytest.mark.parametrize("workload", mix_workloads(), ids=lambda workload: workload.name)
def test_a_mix_has_the_asked_rate_and_differs_per_seed(workload) -> None:  # type: ignore[no-untyped-def]
    """Equal seeds repeat."""
    draws = [workload.draw(np.random.default_rng(seed), 20.0, 2000) for seed in (1, 1, 2)]
    assert _rate(draws[0]) == pytest.approx(20.0, rel=0.25)
    assert draws[0] == draws[1] != draws[2]


def test_a_trace_is_cut_and_stretched_to_the_asked_rate(tmp_path: Path) -> None:
    """Each seed takes another part."""
    rows = "".join(f"{index * 2},{index + 1},1\n" for index in range(500))
    path = tmp_path / "long.trace.csv"
    path.write_text(f"arrival_s,input_tokens,output_tokens\n{rows}", encoding="utf-8")
    workload = trace_workload(path)
    assert workload.name == "long"
    parts = [workload.draw(np.random.default_rng(seed), 7.0, 100) for seed in (1, 2)]
    assert _rate(parts[0]) == pytest.approx(7.0)
    assert parts[0][0].input_tokens != parts[1][0].input_tokens


def test_sessions_become_a_trace_and_too_few_requests_are_refused(tmp_path: Path) -> None:
    """A trace of sessions is read with random starts."""
    rows = "".join(f"s{index // 4},{index % 4},{index + 1},1\n" for index in range(200))
    path = tmp_path / "sessions.csv"
    path.write_text(f"session,t_s,input_tokens,output_tokens\n{rows}", encoding="utf-8")
    assert len(trace_workload(path).draw(np.random.default_rng(0), 5.0, 150)) == 150
    with pytest.raises(InvalidRequest, match="needs 100"):
        trace_workload(path, max_input_tokens=50)


def test_the_capacity_of_equal_prompts_is_one_over_their_step() -> None:
    """2,000 tokens each, four to a batch, as fcfs packs them in chunks of 2,048."""
    workload = next(one for one in mix_workloads() if one.name == "same_length")
    profile = profile_by_name("h100_qwen3_8b")
    found = fcfs_capacity(workload, default_settings(), 400)
    drawn = workload.draw(np.random.default_rng(12345), 1.0, 400)
    work_s = sum(
        profile.token_s * one.uncached_tokens
        + profile.attention_s * one.uncached_tokens * (one.uncached_tokens + 2 * one.cached_tokens)
        for one in drawn
    )
    assert found == pytest.approx(len(drawn) / work_s, rel=0.05)


def test_ratios_are_paired_and_careful_with_zero() -> None:
    """Nothing over nothing is equal; something over nothing is unknown."""
    found = ratios([1.0, 0.0, 2.0], [2.0, 0.0, 0.0])
    assert found[:2] == [0.5, 1.0]
    assert np.isnan(found[2])
