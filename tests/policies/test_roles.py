"""The role controller: best sizes, enough moves at once, and calm at steady load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twolane.policies.roles import (
    Group,
    GroupLoad,
    Move,
    RoleController,
    RolesDecision,
    RolesMemory,
    RolesSettings,
    RolesView,
    best_sizes,
    moves_between,
)

GROUPS = (Group.SHORT, Group.LONG, Group.DECODE)
SETTINGS = RolesSettings()


def _splits(workers: int) -> Iterator[dict[Group, int]]:
    for short in range(1, workers - 1):
        for long in range(1, workers - short):
            yield dict(zip(GROUPS, (short, long, workers - short - long), strict=True))


@given(st.lists(st.floats(0, 50), min_size=3, max_size=3), st.integers(3, 12))
def test_sizes_make_the_fullest_group_as_empty_as_possible(needs: list[float], workers: int) -> None:
    """Compared with every split; each group keeps a worker."""
    need = dict(zip(GROUPS, needs, strict=True))
    found = best_sizes(need, workers)
    best = min(max(need[group] / split[group] for group in GROUPS) for split in _splits(workers))
    assert max(need[group] / found[group] for group in GROUPS) == pytest.approx(best)
    assert sum(found.values()) == workers
    assert min(found.values()) >= 1


@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.randoms(use_true_random=False))
def test_moves_reach_the_wanted_sizes_with_the_fewest_workers(sizes: list[int], chance: object) -> None:
    """Their sum is what spare groups give, none passes through a third group."""
    before = dict(zip(GROUPS, sizes, strict=True))
    shuffled = sorted(sizes, key=lambda _: chance.random())  # type: ignore[attr-defined]
    after = dict(zip(GROUPS, shuffled, strict=True))
    reached = dict(before)
    moves = moves_between(before, after)
    for move in moves:
        reached[move.source] -= move.workers
        reached[move.target] += move.workers
    assert reached == after
    spare = sum(max(0, before[group] - after[group]) for group in GROUPS)
    assert sum(move.workers for move in moves) == spare


def _loads(demand: Mapping[Group, float], sizes: Mapping[Group, int]) -> dict[Group, GroupLoad]:
    return {group: GroupLoad(sizes[group], demand[group]) for group in sizes}


def test_a_large_imbalance_moves_as_many_workers_as_it_needs_at_once() -> None:
    """Twelve workers, prefill starved: several go in one decision, once it was so for hold_s."""
    sizes = {Group.BOTH: 2, Group.DECODE: 10}
    loads = _loads({Group.BOTH: 6.0, Group.DECODE: 3.0}, sizes)
    first = RoleController().decide(0.0, RolesView(loads))
    assert first.moves == ()
    found = RoleController().decide(SETTINGS.hold_s, RolesView(loads, first.memory))
    assert found.moves == (Move(Group.DECODE, Group.BOTH, 6),)


def test_a_backlog_counts_as_demand() -> None:
    """Equal arrivals, but one group has work for 50 seconds in its queue."""
    groups = {Group.BOTH: GroupLoad(4, 2.0, 50.0), Group.DECODE: GroupLoad(4, 2.0)}
    controller = RoleController(RolesSettings(hold_s=0.0))
    assert controller.decide(0.0, RolesView(groups)).moves[0].target is Group.BOTH


def test_a_group_that_lost_all_its_workers_gets_one() -> None:
    """Even when nothing arrives for it at the moment."""
    controller = RoleController(RolesSettings(hold_s=0.0))
    groups = {Group.BOTH: GroupLoad(0, 0.0), Group.DECODE: GroupLoad(4, 0.4)}
    assert controller.decide(0.0, RolesView(groups)).moves == (Move(Group.DECODE, Group.BOTH, 1),)


def test_nothing_moves_while_every_group_has_room() -> None:
    """An imbalance at low load harms nobody."""
    sizes = {Group.BOTH: 2, Group.DECODE: 10}
    controller = RoleController(RolesSettings(hold_s=0.0))
    found = controller.decide(0.0, RolesView(_loads({Group.BOTH: 0.9, Group.DECODE: 0.1}, sizes)))
    assert found.moves == ()


def _play(
    controller: RoleController,
    demands: list[dict[Group, float]],
    sizes: dict[Group, int],
    period_s: float = 5.0,
) -> list[tuple[float, RolesDecision]]:
    memory: RolesMemory | None = None
    found = []
    for step, demand in enumerate(demands):
        decision = controller.decide(step * period_s, RolesView(_loads(demand, sizes), memory))
        memory = decision.memory
        for move in decision.moves:
            sizes[move.source] -= move.workers
            sizes[move.target] += move.workers
        assert min(sizes.values()) >= 1
        if decision.moves:
            found.append((step * period_s, decision))
    return found


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3),
    st.integers(3, 16),
    st.floats(0.3, 1.2),
)
def test_the_controller_does_not_oscillate_at_steady_load(
    seed: int, shares: list[float], workers: int, load: float
) -> None:
    """An hour of demand with 15 % noise: after two minutes a worker moves at most once."""
    rng = np.random.default_rng(seed)
    scale = load * workers / sum(shares)
    demands = [
        {
            group: scale * share * float(rng.normal(1.0, 0.15))
            for group, share in zip(GROUPS, shares, strict=True)
        }
        for _ in range(1440)
    ]
    sizes = {Group.SHORT: 1, Group.LONG: 1, Group.DECODE: workers - 2}
    moves = _play(RoleController(), demands, sizes)
    late = [decision for at_s, decision in moves if at_s > 120.0]
    assert sum(move.workers for decision in late for move in decision.moves) <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_moves_keep_a_cool_down_under_wild_demand(seed: int) -> None:
    """Whatever happens, two decisions with moves are a cool-down apart."""
    rng = np.random.default_rng(seed)
    demands = [{group: float(rng.uniform(0, 20)) for group in GROUPS} for _ in range(300)]
    times = [at_s for at_s, _ in _play(RoleController(), demands, dict.fromkeys(GROUPS, 4), 1.0)]
    assert all(after - before >= SETTINGS.cool_down_s for before, after in pairwise(times))


def test_workers_go_home_when_a_burst_is_over() -> None:
    """Ten times the prompts for half a minute, then as before: the sizes are as before."""
    calm, burst = {Group.BOTH: 1.6, Group.DECODE: 3.2}, {Group.BOTH: 12.0, Group.DECODE: 3.2}
    sizes = {Group.BOTH: 2, Group.DECODE: 4}
    moves = _play(RoleController(), [calm] * 20 + [burst] * 6 + [calm] * 60, sizes)
    assert sizes == {Group.BOTH: 2, Group.DECODE: 4}
    assert 2 <= len(moves) <= 4
