"""Logs of steps are read and fitted by their medians; what a profile says of spread changes a simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from twolane.core.errors import InvalidRequest
from twolane.sim.cluster import Simulation
from twolane.sim.logged_steps import HEADER, LoggedStep, fit_logged, read_steps, spread_of
from twolane.sim.profile import EngineProfile
from twolane.sim.settings import SimSettings
from twolane.workload.generator import MixSettings, generate_mix

TRUTH = EngineProfile(
    overhead_s=0.005,
    weights_s=16 * 8e-5,
    token_s=8e-5,
    attention_s=3e-8,
    cached_read_s=2e-7,
    decode_read_s=4e-7,
    kv_bytes_per_token=4096,
    capacity_tokens=65536,
    transfer_bytes_per_s=5e9,
    transfer_latency_s=0.001,
    prompt_s=1e-4,
    decode_overhead_s=0.003,
    decode_weights_s=8 * 2e-4,
    decode_token_s=2e-4,
)


def _steps(spread: float = 0.0, slow_share: float = 0.0) -> list[LoggedStep]:
    """Some 1,000 steps of all kinds; a share of them take ten times as long."""
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(1000):
        size = int(rng.integers(1, 4))
        pairs = rng.integers(1, (600, 2000), (size, 2)).tolist()
        work = tuple((new, cached) for new, cached in pairs) if rng.random() < 0.4 else ()
        rows = int(rng.integers(1, 20)) if not work or rng.random() < 0.1 else 0
        step = LoggedStep(1.0, rows, rows * int(rng.integers(10, 900)), work)
        factor = float(rng.lognormal(0.0, spread)) * (10.0 if rng.random() < slow_share else 1.0)
        steps.append(replace(step, seconds=factor * step.predicted_s(TRUTH)))
    return steps


def test_a_log_is_read_as_it_was_written() -> None:
    """Prompts as new:cached; a last line that is cut off is dropped, one in the middle is an error."""
    lines = [HEADER, "0.0041,2,310,", "0.0123,0,0,64:0 20:512", "0.0200,1,90,512:1024", "0.00"]
    assert read_steps(lines, "log") == [
        LoggedStep(0.0041, 2, 310, ()),
        LoggedStep(0.0123, 0, 0, ((64, 0), (20, 512))),
        LoggedStep(0.02, 1, 90, ((512, 1024),)),
    ]
    with pytest.raises(InvalidRequest, match=r"prefill\.csv: line 2 is no step"):
        read_steps([HEADER, "nonsense", "0.0041,2,310,"], "prefill.csv")


def test_the_middle_of_steps_with_prompts_and_the_mean_of_answers_is_fitted() -> None:
    """With 3 % of steps ten times as long: those of prompts stay, those of answers are right in all."""
    found = fit_logged(_steps(slow_share=0.03), replace(TRUTH, overhead_s=1.0, token_s=1.0))
    for step in _steps():
        if not step.rows:
            assert step.predicted_s(found) == pytest.approx(step.seconds, rel=0.03)
    answers = [step for step in _steps(slow_share=0.03) if not step.work]
    predicted_s = sum(step.predicted_s(found) for step in answers)
    assert predicted_s == pytest.approx(sum(step.seconds for step in answers), rel=0.03)
    assert found.kv_bytes_per_token == TRUTH.kv_bytes_per_token


def test_a_few_steps_that_stood_still_are_no_part_of_the_mean() -> None:
    """Half a per cent of them change nothing."""
    found = fit_logged(_steps(slow_share=0.005), TRUTH)
    assert found.decode_overhead_s == pytest.approx(TRUTH.decode_overhead_s, rel=0.03)


def test_the_spread_is_found() -> None:
    """As it was put in; none where there is none."""
    assert fit_logged(_steps(spread=0.2), TRUTH).step_spread == pytest.approx(0.2, rel=0.15)
    assert fit_logged(_steps(), TRUTH).step_spread == pytest.approx(0.0, abs=0.005)
    factors = np.random.default_rng(1).lognormal(0.5, 0.3, 5000).tolist()
    assert spread_of(factors) == pytest.approx(0.3, rel=0.05)


def test_few_steps_are_refused() -> None:
    """Answers alone say nothing of prompts."""
    with pytest.raises(InvalidRequest, match="0 steps of prompts, 100 of answers"):
        fit_logged([LoggedStep(0.004, 1, 50, ())] * 100, TRUTH)


def test_ways_spread_around_their_median() -> None:
    """The median TTFT stays, its largest decile grows, and a seed repeats."""
    requests = generate_mix(
        MixSettings(rate_per_s=2.0, duration_s=200.0, short_share=1.0), np.random.default_rng(0)
    )
    profile = replace(TRUTH, arrival_s=0.02, reply_s=0.02, step_spread=0.0)
    found = []
    for spread in (0.0, 0.6, 0.6):
        outcome = Simulation(SimSettings(), requests, replace(profile, way_spread=spread)).run()
        found.append(np.quantile(outcome.columns.ttft_s, (0.5, 0.9)).tolist())
    assert found[1] == found[2]
    assert found[1][0] == pytest.approx(found[0][0], rel=0.2)
    assert found[1][1] > found[0][1] + 0.02
