"""The adaptive two-lane policy: its bounds as guarantees, its choices one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policies.prefill_play import Played, linear_step_s, play
from tests.policies.prefill_views import ids, long, short, view
from twolane.core.request import Lane
from twolane.policies.cost import PrefillCost
from twolane.policies.fcfs import Fcfs
from twolane.policies.fcfs_clock import FcfsClock
from twolane.policies.laps import Laps
from twolane.policies.laps_moment import LapsMemory
from twolane.policies.measured import MeasuredCost
from twolane.policies.prefill import PrefillDecision, PrefillPolicy, PrefillView, WaitingPrefill
from twolane.policies.recent import Recent
from twolane.policies.settings import PrefillSettings
from twolane.policies.wait_depth import ShortArrivals

SETTINGS = PrefillSettings()


def _known_cost() -> PrefillCost:
    """A cost fitted to `linear_step_s`."""
    rng = np.random.default_rng(0)
    cost = PrefillCost()
    for index in range(200):
        tokens = int(rng.integers(1, 250 if index % 2 else 6000))
        cost = cost.update([(tokens, 0)], linear_step_s([(tokens, 0)]))
    return cost


KNOWN = _known_cost()


def _memory(rate_per_s: float = 0.0, **more: Any) -> LapsMemory:
    arrivals = ShortArrivals(0.0, 1.0 / rate_per_s, 100) if rate_per_s else ShortArrivals()
    return LapsMemory(MeasuredCost(KNOWN), 256, arrivals=arrivals, **more)


class _Trained(Laps):
    """The policy with a cost that is known from the start."""

    def decide(self, now_s: float, view: PrefillView) -> PrefillDecision:
        return super().decide(now_s, view if view.memory else replace(view, memory=_memory()))


LONGS = st.lists(
    st.tuples(st.floats(0, 3), st.integers(257, 20_000), st.integers(0, 2)), min_size=1, max_size=6
)


@settings(max_examples=30, deadline=None)
@given(LONGS, st.floats(20, 400), st.booleans())
def test_a_long_prompt_ends_within_the_stated_bound(
    longs: list[tuple[float, int, int]], short_rate: float, trained: bool
) -> None:
    """However many short prompts arrive, the bound of the docstring holds."""
    kind = _Trained if trained else Laps
    policy = kind(SETTINGS)
    prompts = [long(f"l{i}", at_s, tokens, priority=p) for i, (at_s, tokens, p) in enumerate(longs)]
    flood = [short(f"s{i}", i / short_rate, 200) for i in range(int(6 * short_rate))]
    played = play(policy, prompts + flood)
    short_s = linear_step_s([(SETTINGS.short_batch_tokens, 0)])
    chunk_s = linear_step_s([(SETTINGS.long_chunk_max_tokens, 0)])
    chunk_tokens = SETTINGS.long_chunk_min_tokens / 2
    for prompt in prompts:
        ahead = [one for one in prompts if one.arrival_s <= prompt.arrival_s + 2 * SETTINGS.long_age_limit_s]
        chunks = sum(math.ceil(one.uncached_tokens / chunk_tokens) for one in ahead)
        bound_s = max(short_s, chunk_s) + chunks * (SETTINGS.short_batches_per_long * short_s + chunk_s)
        assert played.finished_s[prompt.request_id] <= prompt.arrival_s + bound_s


@settings(max_examples=30, deadline=None)
@given(LONGS, st.floats(20, 400))
def test_a_waiting_long_prompt_is_passed_by_few_short_batches_and_no_idling(
    longs: list[tuple[float, int, int]], short_rate: float
) -> None:
    """At most short_batches_per_long in a row while one waits, and not one decision to wait."""
    prompts = [long(f"l{i}", at_s, tokens) for i, (at_s, tokens, _) in enumerate(longs)]
    flood = [short(f"s{i}", i / short_rate, 200) for i in range(int(6 * short_rate))]
    played = play(_Trained(SETTINGS), prompts + flood)
    assert _longest_short_run(played, prompts) <= SETTINGS.short_batches_per_long
    assert not [wait for wait in played.waits if any(one.lane is Lane.LONG for one in wait[2])]


def _longest_short_run(played: Played, longs: list[WaitingPrefill]) -> int:
    run = longest = 0
    for start_s, _, lane, _ in played.batches:
        waits = any(one.arrival_s <= start_s < played.finished_s[one.request_id] for one in longs)
        run = run + 1 if lane is Lane.SHORT and waits else 0
        longest = max(longest, run)
    return longest


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 256), st.floats(0.02, 0.6)), min_size=1, max_size=40),
    st.lists(st.tuples(st.floats(0, 1), st.integers(2000, 9000)), max_size=4),
)
def test_neither_waiting_nor_gathering_makes_a_deadline_missed(
    shorts: list[tuple[float, int, float]], longs: list[tuple[float, int]]
) -> None:
    """What immediate dispatch would meet is still met after a wait, or after a chunk that runs first."""
    prompts = [
        short(f"s{i}", at, tokens, deadline_s=at + limit) for i, (at, tokens, limit) in enumerate(shorts)
    ]
    prompts += [long(f"l{i}", at, tokens) for i, (at, tokens) in enumerate(longs)]
    policy = _Watched(SETTINGS)
    play(policy, prompts)
    for now_s, later_s, waiting in policy.postponed:
        service_s = linear_step_s([(prompt.uncached_tokens, 0) for prompt in waiting])
        for prompt in waiting:
            if prompt.deadline_s is not None and now_s + service_s <= prompt.deadline_s - 1e-3:
                assert later_s + service_s <= prompt.deadline_s + 1e-3


class _Watched(_Trained):
    """Notes when short prompts are made to wait though nothing forces them to."""

    postponed: list[tuple[float, float, list[WaitingPrefill]]]

    def __init__(self, settings: PrefillSettings) -> None:
        super().__init__(settings)
        object.__setattr__(self, "postponed", [])

    def decide(self, now_s, view):  # type: ignore[no-untyped-def]
        decision = super().decide(now_s, view)
        shorts = [prompt for prompt in view.waiting if prompt.lane is Lane.SHORT]
        forced = view.memory is not None and view.memory.short_run > 0
        if shorts and not decision.chunks and decision.wake_s is not None:
            self.postponed.append((now_s, decision.wake_s, shorts))
        elif shorts and not forced and decision.chunks[0].request_id.startswith("l"):
            seconds = linear_step_s([(chunk.tokens, 0) for chunk in decision.chunks])
            self.postponed.append((now_s, now_s + seconds, shorts))
        return decision


def test_short_prompts_slip_between_the_chunks_of_a_long_one() -> None:
    """With one of 40,000 tokens under way, short prompts end within a chunk and a batch."""
    flood = [short(f"s{i}", 0.2 + i * 0.05) for i in range(20)]
    played = play(_Trained(SETTINGS), [long("l", 0.0, 40_000), *flood])
    chunk_s = SETTINGS.long_chunk_target_s + 0.01
    for prompt in flood:
        assert played.finished_s[prompt.request_id] - prompt.arrival_s <= chunk_s + 0.03
    lanes = [lane for _, _, lane, _ in played.batches]
    assert sum(1 for before, after in pairwise(lanes) if before is not after) > 10


def test_equal_long_prompts_go_in_order_of_arrival() -> None:
    """Where length can't help, and no deadline is at stake, it is fcfs."""
    prompts = [long(f"l{i:02d}", 0.05 * i, 2000, deadline_s=100.0) for i in range(40)]
    finished_s = play(_Trained(SETTINGS), prompts).finished_s
    assert sorted(finished_s, key=lambda name: (finished_s[name], name)) == sorted(finished_s)


def test_under_overload_more_deadlines_are_met_than_by_fcfs_and_the_tail_stays() -> None:
    """Those that can still make it go first; those given up end when fcfs's slowest would, about.

    All but the two of 250 that may be postponed, and these within their factor.
    """
    sizes = [1500 + 500 * (i % 3) for i in range(250)]
    arrivals_s = [0.035 * i for i in range(250)]
    prompts = [
        long(f"l{i}", at_s, tokens, deadline_s=at_s + 1.0)
        for i, (at_s, tokens) in enumerate(zip(arrivals_s, sizes, strict=True))
    ]

    def times_s(policy: PrefillPolicy) -> list[float]:
        played = play(policy, prompts)
        return [played.finished_s[prompt.request_id] - prompt.arrival_s for prompt in prompts]

    ours, fcfs = times_s(_Trained(SETTINGS)), times_s(Fcfs(SETTINGS))
    assert sum(took_s <= 1.0 for took_s in ours) >= 1.5 * sum(took_s <= 1.0 for took_s in fcfs)
    assert sorted(ours)[-3] <= 1.1 * max(fcfs)
    assert max(ours) <= SETTINGS.postpone_factor * max(fcfs)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(257, 9000), st.floats(0.2, 3)), min_size=1, max_size=40)
)
def test_deadlines_never_cost_the_tail_more_than_a_tenth_and_a_chunk(
    arrivals: list[tuple[float, int, float]],
) -> None:
    """Whatever the sizes and deadlines of long prompts: the slowest is about as fast as under fcfs."""
    prompts = [
        long(f"l{i}", at_s, tokens, deadline_s=at_s + limit_s)
        for i, (at_s, tokens, limit_s) in enumerate(arrivals)
    ]

    def slowest_s(policy: PrefillPolicy) -> float:
        finished_s = play(policy, prompts).finished_s
        return max(finished_s[prompt.request_id] - prompt.arrival_s for prompt in prompts)

    chunk_s = SETTINGS.long_chunk_target_s + linear_step_s([])
    assert slowest_s(_Trained(SETTINGS)) <= 1.1 * slowest_s(Fcfs(SETTINGS)) + chunk_s


def test_a_negative_priority_waits_for_all_others_until_it_has_aged() -> None:
    """In both lanes, and it is no company for client work."""
    policy = Laps(SETTINGS)
    behind = [short("b", 0.0, priority=-1), long("c", 0.0, priority=-1)]
    assert ids(policy.decide(1.0, view(*behind, short("s", 0.9), memory=_memory())).chunks) == ["s"]
    assert ids(policy.decide(1.0, view(*behind, long("l", 0.9), memory=_memory())).chunks)[0] == "l"
    assert ids(policy.decide(1.0, view(*behind, memory=_memory())).chunks) == ["b"]
    aged_s = SETTINGS.long_age_limit_s + 1.0
    assert ids(policy.decide(aged_s, view(*behind, long("l", aged_s), memory=_memory())).chunks)[0] in "bc"


def test_no_lead_exceeds_the_age_limit() -> None:
    """With a limit of 1 s, a prompt with a distant deadline is not overtaken by one that came 1 s later."""
    policy = Laps(replace(SETTINGS, long_age_limit_s=1.0))
    prompts = view(
        long("old", 0.0, 60_000, deadline_s=500.0), long("new", 1.1, 300, deadline_s=1.3), memory=_memory()
    )
    assert ids(policy.decide(1.2, prompts).chunks)[0] == "old"


def test_a_priority_counts_as_an_earlier_arrival_in_both_lanes() -> None:
    """Among equals the higher goes first; the head start is bounded."""
    policy = Laps(replace(SETTINGS, depth_max=1))
    shorts = view(short("a", 1.0), short("b", 1.1, priority=1), memory=_memory())
    assert ids(policy.decide(2.0, shorts).chunks) == ["b"]
    longs = view(long("a", 1.0), long("b", 1.1, priority=1), memory=_memory())
    assert ids(policy.decide(2.0, longs).chunks)[0] == "b"
    bounded = view(long("a", 1.0), long("b", 99.0, priority=1000), memory=_memory())
    assert ids(policy.decide(100.0, bounded).chunks)[0] == "a"


def test_deadlines_order_short_prompts() -> None:
    """The one that is due first goes first, but a distant deadline puts none behind the lane's budget."""
    policy = Laps(replace(SETTINGS, depth_max=1))
    prompts = view(short("a", 1.0, deadline_s=1.9), short("b", 1.1, deadline_s=1.3), memory=_memory())
    assert ids(policy.decide(1.2, prompts).chunks) == ["b"]
    distant = view(short("a", 1.0, deadline_s=90.0), short("b", 1.1, deadline_s=1.5), memory=_memory())
    assert ids(policy.decide(1.2, distant).chunks) == ["a"]


def test_few_short_prompts_gather_behind_a_crowded_long_lane() -> None:
    """With long prompts behind fcfs, one short prompt waits for a chunk; its deadline ends that."""
    policy = Laps(SETTINGS)
    crowd = [long(f"l{i}", i / 100) for i in range(40)]
    memory = _memory(5.0, clock=FcfsClock(shorts=Recent((1.0,), (1.0,))))
    assert ids(policy.decide(1.0, view(*crowd, short("s", 0.9), memory=memory)).chunks)[0] == "l0"
    due = short("s", 0.9, deadline_s=1.05)
    assert ids(policy.decide(1.0, view(*crowd, due, memory=memory)).chunks) == ["s"]
    alone = view(long("l", 0.5), short("s", 0.9), memory=_memory(5.0))
    assert ids(policy.decide(1.0, alone).chunks) == ["s"]


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 60), st.lists(st.floats(0, 3), min_size=1, max_size=8))
def test_no_short_prompt_starves_behind_a_crowd_of_long_ones(crowd: int, arrivals_s: list[float]) -> None:
    """Without deadlines and too few to pay for a batch, they still end about when their budget does."""
    longs = [long(f"l{i}", 0.0, 8000) for i in range(crowd)]
    shorts = [short(f"s{i}", at_s) for i, at_s in enumerate(arrivals_s)]
    played = play(_Trained(SETTINGS), longs + shorts)
    for prompt in shorts:
        chunk_s = linear_step_s([(SETTINGS.long_chunk_max_tokens, 0)])
        wait_s = played.finished_s[prompt.request_id] - prompt.arrival_s
        assert wait_s <= max(SETTINGS.short_budget_s, chunk_s) + chunk_s + 0.05


def test_chunks_grow_with_the_long_queue_and_shrink_with_short_arrivals() -> None:
    """Within the bounds of the settings."""
    policy = Laps(SETTINGS)

    def tokens(longs: int, rate_per_s: float) -> int:
        prompts = view(*(long(f"l{i}", 0.0, 50_000) for i in range(longs)), memory=_memory(rate_per_s))
        return sum(chunk.tokens for chunk in policy.decide(0.001, prompts).chunks)

    assert tokens(1, 200.0) < tokens(1, 5.0)
    assert tokens(1, 50.0) < tokens(6, 50.0)
    assert tokens(50, 0.001) <= SETTINGS.long_chunk_max_tokens
    assert linear_step_s([(tokens(50, 1.0), 0)]) == pytest.approx(SETTINGS.long_chunk_target_s, rel=0.1)


def test_an_unknown_cost_means_fixed_chunks_short_first_and_no_waiting() -> None:
    """Safe defaults until enough batches were measured."""
    policy = Laps(SETTINGS)
    crowd = [long(f"l{i}", 0.0, 50_000) for i in range(40)]
    assert ids(policy.decide(1.0, view(*crowd, short("s", 0.9))).chunks) == ["s"]
    found = policy.decide(1.0, view(*crowd)).chunks
    assert [(chunk.request_id, chunk.tokens) for chunk in found] == [("l0", SETTINGS.long_chunk_tokens)]
    assert policy.decide(1.0, view(short("s", 1.0))).chunks


def test_the_boundary_is_fitted_while_playing() -> None:
    """8 ms and 25 µs per token put the knee at 320 and the boundary somewhat above, from 256."""
    rng = np.random.default_rng(0)
    prompts = [
        short(f"{i}", i * 0.1, int(rng.integers(1, 256)))
        if i % 2
        else long(f"{i}", i * 0.1, int(rng.integers(257, 9000)))
        for i in range(300)
    ]
    policy = Laps(SETTINGS)
    memory = play(policy, prompts).memory
    assert policy.boundary_tokens(None) == 256
    assert policy.boundary_tokens(memory) == pytest.approx(448, rel=0.1)
