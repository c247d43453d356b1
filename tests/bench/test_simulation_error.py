"""The comparison of simulated with measured latencies counts alike on both sides."""

from __future__ import annotations

from typing import Any

import pytest
from simulation_error import (
    errors,
    measured,
    percentiles,
    probes_of,
    requests_of,
    simulated,
    table,
)

from twolane.sim.profile_file import profile_by_name


def _sample(
    due_s: float, prompt: int, cached: int, output: int, first_s: float, last_s: float
) -> dict[str, Any]:
    return {
        "due_s": due_s,
        "sent_s": due_s,
        "first_s": first_s,
        "last_s": last_s,
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "output_tokens": output,
        "outcome": "done",
    }


REPORT = {
    "requests": [
        _sample(1.0, 2000, 1900, 5, 1.2, 1.6),
        _sample(0.0, 1000, 0, 1, 0.5, 0.5),
        {**_sample(2.0, 10, 0, 1, 2.1, 2.1), "outcome": "failed"},
    ]
}


def test_measured_latencies_are_sorted_by_what_was_computed() -> None:
    """A long prompt from the cache is short; an answer of one token has no time per further one."""
    found = measured(REPORT)
    assert found["short"]["ttft_p50_s"] == pytest.approx(0.2)
    assert found["short"]["tpot_p99_s"] == pytest.approx(0.1)
    assert found["long"] == {f"ttft_p{cut}_s": pytest.approx(0.5) for cut in (50, 90, 99)}
    assert found["all"]["ttft_p50_s"] == pytest.approx(0.35)


def test_the_same_requests_are_simulated() -> None:
    """In order of arrival, without those that failed; both sides have the same classes and metrics."""
    requests = requests_of(REPORT)
    assert [(one.arrival_s, one.input_tokens, one.cached_tokens) for one in requests] == [
        (0.0, 1000, 0),
        (1.0, 2000, 1900),
    ]
    found = simulated(requests, "fcfs", profile_by_name("h100_qwen3_8b"))
    ours = measured(REPORT)
    assert {name: set(values) for name, values in found.items()} == {
        name: set(values) for name, values in ours.items()
    }


def test_an_error_is_relative_to_the_measurement() -> None:
    """Twice as long is +100 %; what was not measured is left out, and the table shows the rest."""
    ours = {"short": percentiles([0.1], [0.01]), "long": {}}
    theirs = {"short": percentiles([0.2], []), "long": percentiles([1.0], [1.0])}
    found = errors(ours, theirs)
    assert found == {"short": {f"ttft_p{cut}_s": pytest.approx(1.0) for cut in (50, 90, 99)}, "long": {}}
    lines = table([{"policy": "fcfs", "measured": ours, "simulated": theirs, "errors": found}]).splitlines()
    assert lines[2] == "| fcfs | short | ttft p50 | 100.0 | 200.0 | +100% |"
    assert len(lines) == 5


def test_a_probe_counts_from_the_sending() -> None:
    """And leaves out what failed."""
    probes = probes_of(REPORT)
    assert len(probes) == 2
    assert (probes[0].new, probes[0].cached, probes[0].output_tokens) == (100, 1900, 5)
    assert probes[0].first_s == pytest.approx(0.2)
    assert probes[0].last_s == pytest.approx(0.6)
