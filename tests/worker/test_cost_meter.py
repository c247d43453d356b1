"""The meter finds what steps cost from their times, and counts work whatever kind of step did it."""

from __future__ import annotations

import random
from array import array

import pytest

from twolane.core.request import Lane, SamplingParams
from twolane.engine.sequence import Sequence
from twolane.prefill.queue import PrefillBatch, Prompt
from twolane.v1 import worker_pb2
from twolane.worker.cost_meter import CostMeter

CONSTANT_S, TOKEN_S = 0.004, 2e-5


def sequence(n_computed: int) -> Sequence:
    """One whose first tokens are computed."""
    return Sequence("r", array("I", [0]) * (n_computed + 1), n_computed, SamplingParams(1), n_computed)


def prefill_batch(tokens: int, lane: Lane) -> PrefillBatch:
    """A batch of one prompt, as it is after its step."""
    return PrefillBatch(((Prompt(sequence(tokens), 0.0, lane=lane), tokens),))


def test_costs_are_reported_once_they_are_known() -> None:
    """A worker that has measured nothing says nothing; later it says what the steps really cost."""
    meter, load = CostMeter(), worker_pb2.Load()
    meter.fill(load)
    assert not load.HasField("costs")
    rng = random.Random(1)
    for _ in range(400):
        tokens = rng.choice([20, 60, 200, 800, 2000])
        meter.observe([], prefill_batch(tokens, Lane.SHORT), CONSTANT_S + TOKEN_S * tokens)
    for rows in list(range(1, 33)) * 16:
        meter.observe([sequence(100)] * rows, PrefillBatch(), 0.002 + 1e-4 * rows)
    meter.fill(load)
    assert load.costs.prefill_constant_s == pytest.approx(CONSTANT_S, rel=0.05)
    assert load.costs.prefill_token_s == pytest.approx(TOKEN_S, rel=0.05)
    assert load.costs.decode_constant_s + load.costs.decode_row_s == pytest.approx(0.0021, rel=0.3)


def test_work_counts_by_lane_and_a_lone_row_is_little_of_it() -> None:
    """A nearly empty decode step is no sign that decode workers are short."""
    meter, load = CostMeter(), worker_pb2.Load()
    meter.observe([], prefill_batch(100, Lane.SHORT), 0.01)
    meter.observe([], prefill_batch(5000, Lane.LONG), 0.2)
    meter.observe([sequence(50)], PrefillBatch(), 0.01)
    meter.fill(load)
    assert 0 < load.done.short_prefill_s < load.done.long_prefill_s
    assert 0 < load.done.decode_s < 0.001
