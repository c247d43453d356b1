"""The comparison of simulated with measured latencies counts alike on both sides."""

from __future__ import annotations

from typing import Any

import pytest
from simulation_error import (
    compare,
    errors,
    measured,
    percentiles,
    probes_of,
    profile_for,
    requests_of,
    simulated,
    table,
)

from twolane.sim.profile import EngineProfile
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
    }


REQUESTS = [_sample(1.0, 2000, 1900, 5, 1.2, 1.6), _sample(0.0, 1000, 0, 1, 0.5, 0.5)]


def test_measured_latencies_are_sorted_by_what_was_computed() -> None:
    """A long prompt from the cache is short; an answer of one token has no time per further one."""
    found = measured(REQUESTS)
    assert found["short"]["ttft_p50_s"] == pytest.approx(0.2)
    assert found["short"]["tpot_p99_s"] == pytest.approx(0.1)
    assert found["long"] == {f"ttft_p{cut}_s": pytest.approx(0.5) for cut in (50, 90, 99)}
    assert found["all"]["ttft_p50_s"] == pytest.approx(0.35)


def test_the_same_requests_are_simulated() -> None:
    """In order of arrival; both sides have the same classes and metrics."""
    requests = requests_of(REQUESTS)
    assert [(one.arrival_s, one.input_tokens, one.cached_tokens) for one in requests] == [
        (0.0, 1000, 0),
        (1.0, 2000, 1900),
    ]
    found = simulated(requests, "fcfs", profile_by_name("h100_qwen3_8b"))
    ours = measured(REQUESTS)
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


def test_the_table_shows_the_spread_over_rounds() -> None:
    """The median error, and the extremes."""
    ours, theirs = {"short": percentiles([0.1], [])}, {"short": percentiles([0.2], [])}
    runs = [
        {"policy": "laps", "measured": ours, "simulated": theirs, "errors": {"short": {"ttft_p50_s": error}}}
        for error in (0.3, -0.1, 0.2)
    ]
    assert table(runs).splitlines()[2].endswith("| +20% (-10% to +30%) |")


def test_a_run_is_simulated_by_what_other_rounds_have_shown() -> None:
    """Not by its own steps and probes: those of the other seed decide the profile."""
    base = profile_by_name("h100_qwen3_8b")
    records = [_record(seed, factor, base) for seed, factor in ((0, 1.0), (1, 3.0))]
    found = [profile_for(record, records, base, "steps").overhead_s for record in records]
    assert found[0] == pytest.approx(3.0 * found[1], rel=0.02)
    assert compare(records[0], base, "loop")["errors"]["short"].keys() == {
        "ttft_p50_s",
        "ttft_p90_s",
        "ttft_p99_s",
        "tpot_p50_s",
        "tpot_p90_s",
        "tpot_p99_s",
    }


def _record(seed: int, factor: float, base: EngineProfile) -> dict[str, Any]:
    """A run whose steps take `factor` times what the profile says."""
    prompts = [(16 * count, 64 * (count % 5)) for count in range(1, 60)]
    log = [f"{factor * base.prefill_s((pair,)):.7f},0,0,{pair[0]}:{pair[1]}" for pair in prompts]
    log += [
        f"{factor * base.mixed_s((), rows, 100 * held):.7f},{rows},{100 * held},"
        for rows in range(1, 9)
        for held in range(5)
    ]
    return {
        "policy": "fcfs",
        "seed": seed,
        "load": 0.0,
        "failed": {},
        "processor_s": {},
        "steps": {"prefill": log},
        "probe": [_sample(at, 20, 0, 2 + at, at + 0.03, at + 0.03 + 0.01 * (1 + at)) for at in range(12)],
        "busy": REQUESTS,
    }


def test_a_probe_counts_from_the_sending() -> None:
    """Not from when it was due."""
    probes = probes_of(REQUESTS)
    assert len(probes) == 2
    assert (probes[0].new, probes[0].cached, probes[0].output_tokens) == (100, 1900, 5)
    assert probes[0].first_s == pytest.approx(0.2)
    assert probes[0].last_s == pytest.approx(0.6)
