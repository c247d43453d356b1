"""Which shapes get a graph, and when a step uses one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from twolane.engine.buckets import Bucket, Costs, Gate, Grid, GridLimits, Kind, first_grid, plan_grid

COSTS = Costs(
    launch_s=2e-3, token_s=1e-5, row_s=1e-5, fixed_bytes=2_000_000, token_bytes=50_000, row_bytes=500_000
)
LIMITS = GridLimits(budget_bytes=200_000_000, max_rows=64, max_short_tokens=512)

SHAPES = st.dictionaries(
    st.one_of(
        st.integers(1, 80).map(lambda rows: (Kind.DECODE, rows, rows)),
        st.tuples(st.just(Kind.PREFILL), st.integers(1, 16), st.integers(1, 40)).map(
            lambda shape: (shape[0], shape[1], shape[1] * shape[2])
        ),
    ),
    st.integers(1, 1000),
    min_size=1,
    max_size=25,
)


def saved_s(grid: Grid, observed: dict[tuple[Kind, int, int], int]) -> float:
    """Time the grid saves on the observed steps, each using its best bucket."""
    total = 0.0
    for (kind, rows, tokens), count in observed.items():
        fitting = [b for b in grid.buckets if b.kind is kind and b.covers(rows, tokens)]
        total += count * max((max(0.0, COSTS.saving_s(b, rows, tokens)) for b in fitting), default=0.0)
    return total


def test_a_step_takes_the_smallest_bucket_that_covers_it() -> None:
    """Fewest tokens first, then fewest rows; the kind must match."""
    small, wide, cell = (Bucket(Kind.PREFILL, *size) for size in ((4, 64), (16, 64), (16, 128)))
    grid = Grid((cell, wide, small, Bucket(Kind.DECODE, 16, 16)))
    assert grid.fit(Kind.PREFILL, 3, 60) == small
    assert grid.fit(Kind.PREFILL, 5, 60) == wide
    assert grid.fit(Kind.PREFILL, 5, 65) == cell
    assert grid.fit(Kind.PREFILL, 17, 20) is None
    assert grid.fit(Kind.DECODE, 17, 17) is None


def test_the_gate_narrows_as_the_queue_grows() -> None:
    """Half-empty buckets are fine while nobody waits, not while requests queue."""
    grid, gate = Grid((Bucket(Kind.PREFILL, 8, 128),)), Gate()
    assert grid.choose(Kind.PREFILL, 2, 64, gate) is not None
    assert grid.choose(Kind.PREFILL, 2, 63, gate) is None
    assert grid.choose(Kind.PREFILL, 2, 64, gate, queue_depth=1) is None
    assert grid.choose(Kind.PREFILL, 2, 103, gate, queue_depth=100) is not None
    assert grid.choose(Kind.PREFILL, 2, 102, gate, queue_depth=100) is None


@given(depth=st.integers(0, 100))
def test_the_allowed_padding_never_grows_with_the_queue(depth: int) -> None:
    """Monotone between its two ends."""
    gate = Gate()
    assert gate.busy_ratio <= gate.allowed_ratio(depth + 1) <= gate.allowed_ratio(depth) <= gate.idle_ratio


def test_the_first_grid_is_powers_of_two_within_the_budget() -> None:
    """Small shapes are the commonest and win when memory is short."""
    grid = first_grid(replace(LIMITS, budget_bytes=400_000_000), COSTS)
    assert [b.n_rows for b in grid.buckets if b.kind is Kind.DECODE] == [1, 2, 4, 8, 16, 32, 64]
    assert [b.n_tokens for b in grid.buckets if b.kind is Kind.PREFILL] == [16, 32, 64, 128, 256, 512]
    tight = first_grid(replace(LIMITS, budget_bytes=10_000_000), COSTS)
    assert tight.buckets == grid.buckets[: len(tight.buckets)]
    assert 0 < len(tight.buckets) < 6


@settings(deadline=None, max_examples=60)
@given(observed=SHAPES, budget=st.integers(0, 200_000_000))
def test_a_plan_keeps_its_budget_and_more_memory_never_hurts(
    observed: dict[tuple[Kind, int, int], int], budget: int
) -> None:
    """Whatever was observed: within memory, rows and tokens; the richest plan saves the most."""
    limits = replace(LIMITS, budget_bytes=budget)
    grid = plan_grid(observed, limits, COSTS)
    assert COSTS.memory_bytes(grid.buckets) <= budget
    assert all(b.n_rows <= 64 and (b.kind is Kind.DECODE or b.n_tokens <= 512) for b in grid.buckets)
    unlimited = plan_grid(observed, replace(LIMITS, budget_bytes=1 << 50), COSTS)
    assert saved_s(grid, observed) <= saved_s(unlimited, observed) + 1e-9


@settings(deadline=None, max_examples=60)
@given(observed=SHAPES)
def test_without_a_budget_every_step_that_can_gain_has_a_bucket(
    observed: dict[tuple[Kind, int, int], int],
) -> None:
    """All observed short shapes are covered with a saving."""
    grid = plan_grid(observed, replace(LIMITS, budget_bytes=1 << 50), COSTS)
    for kind, rows, tokens in observed:
        if rows <= 64 and (kind is Kind.DECODE or -(-tokens // 16) * 16 <= 512):
            assert grid.fit(kind, rows, tokens) is not None


def test_a_plan_follows_the_histogram() -> None:
    """One bucket's worth of memory goes to the shape that is run most, not to the largest."""
    observed = Counter({(Kind.PREFILL, 4, 60): 1000, (Kind.PREFILL, 4, 400): 10, (Kind.DECODE, 7, 7): 50})
    one = COSTS.memory_bytes([Bucket(Kind.PREFILL, 4, 64)])
    grid = plan_grid(observed, replace(LIMITS, budget_bytes=one), COSTS)
    assert grid.buckets == (Bucket(Kind.PREFILL, 4, 64),)


def test_a_plan_beats_powers_of_two_on_a_skewed_load() -> None:
    """At the same memory, buckets at the observed lengths waste less padding."""
    observed = dict(Counter({(Kind.PREFILL, rows, rows * 36): 100 for rows in (1, 3, 5, 9, 14)}))
    blind = first_grid(LIMITS, COSTS)
    limits = replace(LIMITS, budget_bytes=COSTS.memory_bytes(blind.buckets))
    planned = plan_grid(observed, limits, COSTS)
    assert saved_s(planned, observed) > 1.1 * saved_s(blind, observed)


def test_buckets_that_cost_more_than_they_save_are_not_captured() -> None:
    """Where padding to the multiple eats the saving."""
    costs = replace(COSTS, launch_s=1e-5)
    assert plan_grid({(Kind.PREFILL, 1, 1): 5}, LIMITS, costs).buckets == ()
    assert plan_grid({(Kind.PREFILL, 1, 16): 5}, LIMITS, costs).buckets != ()


@pytest.mark.parametrize("kind", list(Kind))
def test_memory_counts_shared_activations_once(kind: Kind) -> None:
    """Graphs share one pool: the largest bucket sets the activations."""
    two = [Bucket(kind, 8, 8), Bucket(kind, 4, 4)]
    assert COSTS.memory_bytes(two) == 8 * 50_000 + 2 * 2_000_000 + 12 * 500_000
    assert COSTS.memory_bytes([]) == 0
