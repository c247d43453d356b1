"""The fitted cost: found again from its own predictions, never negative, invertible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twolane.policies.cost import DecodeCost, PrefillCost
from twolane.policies.least_squares import StepFit, solve_non_negative

T0, PAIR, TOKEN, CACHED = 0.008, 4e-10, 30e-6, 20e-9


def _seconds(work: list[tuple[int, int]]) -> float:
    pairs = sum(new * (new + 2 * held) for new, held in work)
    return T0 + PAIR * pairs + TOKEN * sum(n for n, _ in work) + CACHED * sum(h for _, h in work)


def _batches(rng: np.random.Generator, count: int) -> list[list[tuple[int, int]]]:
    made = []
    for index in range(count):
        high = 200 if index % 2 else 6000
        made.append(
            [(int(rng.integers(1, high)), int(rng.integers(0, 9000))) for _ in range(rng.integers(1, 4))]
        )
    return made


def test_the_fit_finds_the_coefficients_of_noisy_steps() -> None:
    """With 3 % noise, predictions are within 5 % for light and heavy batches."""
    rng = np.random.default_rng(0)
    cost = PrefillCost()
    for work in _batches(rng, 400):
        cost = cost.update(work, _seconds(work) * float(rng.lognormal(0, 0.03)))
    for work in _batches(rng, 50):
        assert cost.batch_s(work) == pytest.approx(_seconds(work), rel=0.05)
    assert cost.trusted(32)


def test_the_fit_follows_a_change_of_the_machine() -> None:
    """When steps become twice as slow, so do the predictions after some hundred steps."""
    rng = np.random.default_rng(0)
    cost = PrefillCost()
    for factor in (1.0, 2.0):
        for work in _batches(rng, 1500):
            cost = cost.update(work, factor * _seconds(work))
    assert cost.prompt_s(40, 0) == pytest.approx(2 * _seconds([(40, 0)]), rel=0.05)


def test_an_hour_of_light_batches_keeps_what_is_known_about_heavy_ones() -> None:
    """Light and heavy steps fade apart from each other."""
    rng = np.random.default_rng(0)
    cost = PrefillCost()
    for work in _batches(rng, 400):
        cost = cost.update(work, _seconds(work))
    for _ in range(3000):
        cost = cost.update([(40, 100)], _seconds([(40, 100)]))
    assert cost.prompt_s(4000, 0) == pytest.approx(_seconds([(4000, 0)]), rel=0.05)


def test_update_leaves_the_old_model_alone() -> None:
    """Models are values."""
    cost = PrefillCost()
    changed = cost.update([(100, 0)], 0.5)
    assert cost == PrefillCost()
    assert changed != cost


def test_one_kind_of_batch_is_never_trusted() -> None:
    """Coefficients can't be told apart from short batches alone."""
    cost = PrefillCost()
    for tokens in range(1, 200):
        cost = cost.update([(tokens, 0)], 0.01)
    assert not cost.trusted(32)


@given(st.floats(0.01, 2.0), st.integers(0, 50_000))
def test_the_largest_chunk_within_a_time_is_the_largest(seconds: float, cached: int) -> None:
    """It fits, and one token more does not."""
    cost = PrefillCost()
    tokens = cost.tokens_within(seconds, cached)
    if tokens > 0:
        assert cost.prompt_s(tokens, cached) <= seconds + 1e-9
    assert cost.prompt_s(tokens + 1, cached) > seconds - 1e-9


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 4000), st.floats(1e-4, 5.0)), min_size=1, max_size=60))
def test_coefficients_are_never_negative(steps: list[tuple[int, float]]) -> None:
    """Whatever is measured, no prediction falls below 0 or with more tokens."""
    cost = PrefillCost()
    for tokens, seconds in steps:
        cost = cost.update([(tokens, 0)], seconds)
    assert min(cost.fit.solved().coefficients) >= 0.0


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_the_solution_is_the_best_non_negative_one(seed: int) -> None:
    """No random non-negative vector has a smaller error (convex, so local search would find one)."""
    rng = np.random.default_rng(seed)
    rows, target = rng.normal(size=(12, 3)), rng.normal(size=12)
    gram, moment = rows.T @ rows, rows.T @ target
    found = np.array(solve_non_negative(gram.tolist(), moment.tolist()))

    def error(coefficients: np.ndarray) -> float:
        return float(np.sum((rows @ coefficients - target) ** 2))

    assert np.all(found >= 0.0)
    for scale in (1e-3, 0.1, 1.0):
        for _ in range(30):
            other = np.maximum(0.0, found + rng.normal(size=3) * scale)
            assert error(found) <= error(other) + 1e-6


def test_times_of_zero_are_ignored() -> None:
    """A clock that stood still says nothing."""
    fit = StepFit.start((1.0, 1.0))
    assert fit.observe((1.0, 2.0), 0.0, is_light=True) is fit


def test_decode_steps_are_fitted_and_bounded() -> None:
    """Predictions follow measurements; rows_within is the inverse of step_s."""
    rng = np.random.default_rng(0)
    cost = DecodeCost()
    for _ in range(400):
        rows = int(rng.integers(1, 128))
        held = rows * int(rng.integers(50, 4000))
        cost = cost.update(held, rows, 0.007 + 50e-9 * held + 20e-6 * rows)
    assert cost.step_s(100_000, 50) == pytest.approx(0.013, rel=0.02)
    rows = cost.rows_within(0.02, 2000)
    assert cost.step_s(rows * 2000, rows) <= 0.02 < cost.step_s((rows + 1) * 2000, rows + 1)
    assert cost.rows_within(0.001, 2000) == 0
