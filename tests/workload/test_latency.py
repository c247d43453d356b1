"""Latency metrics on records small enough to count by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from twolane.core.errors import InvalidRequest
from twolane.workload.latency import (
    Outcome,
    RequestRecord,
    SloLimits,
    bootstrap_interval,
    intervals_over_seeds,
    summarize_records,
)

SLO = SloLimits(ttft_s={"short": 0.4, "long": 2.0}, tpot_s=0.1)


def _record(length_class: str, ttft_s: float, tpot_s: float = 0.05, tokens: int = 3) -> RequestRecord:
    times = [10.0 + ttft_s + index * tpot_s for index in range(tokens)]
    return RequestRecord.from_token_times(length_class, 10.0, times, Outcome.DONE)


def test_a_record_knows_its_times() -> None:
    """First token, mean and worst gap come from the token times."""
    record = RequestRecord.from_token_times("short", 1.0, [1.5, 1.6, 2.0], Outcome.DONE)
    assert record.ttft_s == pytest.approx(0.5)
    assert record.tpot_s == pytest.approx(0.25)
    assert record.worst_gap_s == pytest.approx(0.4)


def test_a_record_without_tokens_has_no_times() -> None:
    """Nothing is invented for a request that failed."""
    record = RequestRecord.from_token_times("short", 1.0, [], Outcome.FAILED)
    assert (record.ttft_s, record.tpot_s, record.worst_gap_s) == (None, None, 0.0)


def test_goodput_counts_only_answers_within_both_limits() -> None:
    """A late first token, slow tokens and a failure are misses; one token has no TPOT to miss."""
    records = [
        _record("short", 0.3),
        _record("short", 0.5),
        _record("short", 0.3, tpot_s=0.2),
        _record("long", 1.9),
        _record("long", 1.9, tokens=1),
        RequestRecord.from_token_times("long", 10.0, [], Outcome.FAILED),
    ]
    found = summarize_records(records, SLO, duration_s=2.0)
    assert found["all"].goodput_per_s == pytest.approx(1.5)
    assert found["short"].slo_attainment == pytest.approx(1 / 3)
    assert found["long"].slo_attainment == pytest.approx(2 / 3)
    assert (found["all"].count, found["long"].failed, found["short"].failed) == (6, 1, 0)
    assert found["short"].ttft_p50_s == pytest.approx(0.3)


def test_a_limit_of_its_own_overrides_the_class() -> None:
    """A very long prompt may bring a limit of its own."""
    record = RequestRecord("long", 0.0, 5.0, 5.0, 1, 0.0, Outcome.DONE, ttft_limit_s=6.0)
    assert summarize_records([record], SLO, 1.0)["long"].slo_attainment == 1.0


def test_an_empty_run_has_counts_but_no_percentiles() -> None:
    """NaN says that nothing was measured; a duration of 0 is refused."""
    found = summarize_records([], SLO, 1.0)["all"]
    assert found.count == 0
    assert math.isnan(found.ttft_p50_s)
    with pytest.raises(InvalidRequest, match="duration_s"):
        summarize_records([], SLO, 0.0)


def test_the_interval_holds_the_mean_and_narrows_with_seeds() -> None:
    """More seeds of equal spread give a narrower interval; NaN seeds are left out."""
    rng = np.random.default_rng(0)
    few = bootstrap_interval([1.0, 2.0, 3.0, math.nan], rng)
    many = bootstrap_interval([1.0, 2.0, 3.0] * 20, rng)
    assert few.mean == pytest.approx(2.0)
    assert few.low < 2.0 < few.high
    assert many.high - many.low < few.high - few.low
    assert math.isnan(bootstrap_interval([], rng).mean)


def test_summaries_of_seeds_become_intervals() -> None:
    """Every number of the summary gets one."""
    runs = [summarize_records([_record("short", ttft)], SLO, 1.0)["short"] for ttft in (0.2, 0.4)]
    found = intervals_over_seeds(runs, np.random.default_rng(0))
    assert found["ttft_p50_s"].mean == pytest.approx(0.3)
    assert found["count"].mean == 1.0
