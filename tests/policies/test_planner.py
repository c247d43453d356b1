"""The planner: bounds always, calm at steady load, pods on their way counted, asleep and awake."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policies.planner_play import COST, PAIR, Play, traffic, view
from twolane.core.errors import ConfigError
from twolane.core.request import Lane
from twolane.policies.planner import Planner
from twolane.policies.planner_bounds import coordinated, spread
from twolane.policies.planner_settings import PlannerSettings
from twolane.policies.planner_view import DecodeLoad, LaneTraffic, PoolKind, PoolState
from twolane.policies.roles import Group

PREFILL, DECODE = PAIR
RATES = st.lists(st.floats(0.0, 200.0), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(RATES, st.integers(0, 3), st.integers(0, 5), st.integers(0, 4))
def test_counts_never_leave_their_bounds(rates: list[float], low: int, room: int, floor: int) -> None:
    """Whatever arrives, and whatever a schedule asks for: the maximum goes before the schedule."""
    high = max(1, low + room)
    bounds = {kind: {"minimum": low, "maximum": high, "floor": floor} for kind in PAIR}
    play = Play(Planner(), bounds=bounds, wanted=dict.fromkeys(PAIR, high))
    play.run(lambda number: rates[number % len(rates)], 40)
    for kind in PAIR:
        assert all(max(1, low, min(floor, high)) <= count <= high for count in play.counts[kind])


@settings(max_examples=20, deadline=None)
@given(st.floats(1.0, 120.0), st.booleans())
def test_a_steady_load_is_left_alone_once_settled(rate: float, shared: bool) -> None:
    """After an hour nothing moves any more: no raise, no removal, no change of role."""
    play = Play(Planner(PlannerSettings(shared=shared)))
    play.run(lambda _: rate, 240)
    settled = [play.counts[kind][120:] for kind in PAIR]
    # Margins shrink as calm goes on, so a worker may still go; none may come back.
    assert all(later <= earlier for counts in settled for earlier, later in pairwise(counts))
    assert all(not plan.moves for plan in play.plans[120:])


def test_small_noise_does_not_swing_the_counts() -> None:
    """A load that wavers by a tenth turns a count at most once in two hours."""
    play = Play(Planner())
    play.run(lambda number: 50.0 * (1.1 if number % 7 < 3 else 0.9), 480)
    for kind in PAIR:
        steps = [late - early for early, late in pairwise(play.counts[kind][60:]) if late != early]
        turns = sum((early > 0) != (late > 0) for early, late in pairwise(steps))
        assert turns <= 1, play.counts[kind]


def test_pods_on_their_way_are_not_asked_for_again() -> None:
    """A jump is answered in one or two steps, not by more pods at each look while they start."""
    play = Play(Planner(), start_s=300.0)
    play.run(lambda _: 10.0, 60)
    play.run(lambda _: 60.0, 60)
    slow = sum(play.counts[kind][79] for kind in PAIR)
    again = Play(Planner(), start_s=15.0)
    again.run(lambda _: 10.0, 60)
    again.run(lambda _: 60.0, 60)
    fast = sum(again.counts[kind][79] for kind in PAIR)
    assert slow <= fast + 1


@settings(max_examples=25, deadline=None)
@given(st.floats(0.5, 100.0), st.floats(1.0, 3.0))
def test_more_load_never_gets_fewer_workers(rate: float, factor: float) -> None:
    """The same hour with all arrivals multiplied needs at least as many."""

    def total(scale: float) -> int:
        play = Play(Planner())
        play.run(lambda number: rate * scale * (1.0 + 0.2 * (number % 5)), 120)
        return sum(play.counts[kind][-1] for kind in PAIR)

    assert total(1.0) <= total(factor)


def test_an_idle_model_goes_to_sleep_and_a_held_request_wakes_it() -> None:
    """No worker after the allowed idle time, whatever the minimum; all pools at once on the first request."""
    play = Play(Planner(PlannerSettings(idle_s=600.0)))
    play.run(lambda _: 5.0, 20)
    play.run(lambda _: 0.0, 39)
    assert all(play.counts[kind][-1] >= 1 for kind in PAIR)
    play.run(lambda _: 0.0, 3)
    assert all(play.counts[kind][-1] == 0 for kind in PAIR)
    assert "no request for" in play.plans[-1].pools[DECODE].reason
    play.run(lambda _: 0.0, 20)
    assert all(play.counts[kind][-1] == 0 for kind in PAIR)
    play.step(traffic(0.0), held=1)
    assert all(play.counts[kind][-1] >= 1 for kind in PAIR)


def test_a_schedule_keeps_an_idle_model_awake() -> None:
    """Its least count holds though nothing arrives."""
    bounds = {kind: {"floor": 2} for kind in PAIR}
    play = Play(Planner(PlannerSettings(idle_s=60.0)), bounds=bounds)
    play.run(lambda _: 0.0, 60)
    assert all(play.counts[kind][-1] == 2 for kind in PAIR)


def test_missing_metrics_never_lower_a_count() -> None:
    """A router that does not answer looks like a lull."""
    play = Play(Planner())
    play.run(lambda _: 60.0, 80)
    before = {kind: play.counts[kind][-1] for kind in PAIR}
    play.run(lambda _: 0.0, 80, complete=False)
    assert all(play.counts[kind][-1] >= before[kind] for kind in PAIR)
    assert "metrics are missing" in play.plans[-1].pools[PREFILL].reason


def test_a_backlog_raises_prefill_at_equal_arrivals() -> None:
    """What a planner blind to queues does not see."""
    counts = []
    for waiting_s in (0.0, 400.0):
        play = Play(Planner(PlannerSettings(shared=False)))
        play.run(lambda _: 15.0, 60)
        waiting = {Lane.SHORT: 0.0, Lane.LONG: waiting_s}
        play.run(lambda _: 15.0, 2, waiting_s=waiting)
        counts.append(play.counts[PREFILL][-1])
    assert counts[0] < counts[1]


def test_answers_that_wait_are_work_that_passes() -> None:
    """A crowd of short answers decodes in seconds: it needs few workers, not room for all at once."""
    play = Play(Planner())
    play.run(lambda _: 30.0, 60)
    before = play.counts[DECODE][-1]
    answers = DecodeLoad(180.0, 20_000.0, 200_000.0, 450.0, 450.0 * 10.0)
    for _ in range(8):
        play.step(traffic(30.0), decode=answers)
    assert before <= play.counts[DECODE][-1] <= before + 2


def test_a_worker_changes_its_role_before_a_pod_is_added() -> None:
    """Prefill is short while decode has workers to spare: a move, and no new pod."""
    planner = Planner()
    pools = {PREFILL: PoolState(2, 2), DECODE: PoolState(12, 12)}
    memory: object = None
    moved = 0
    for number in range(1, 9):
        plan = planner.plan(15.0 * number, view(traffic(25.0), pools, memory=memory))
        memory = plan.memory
        moved += sum(
            move.workers for move in plan.moves if (move.source, move.target) == (Group.DECODE, Group.BOTH)
        )
    assert moved >= 1
    assert plan.pools[PREFILL].workers == 2
    assert "so no pod is added" in plan.pools[PREFILL].reason


def test_pools_that_share_need_no_more_than_pools_apart() -> None:
    """Their peaks come at different times, so one headroom serves both."""
    totals = {}
    for shared in (True, False):
        play = Play(Planner(PlannerSettings(shared=shared)))
        play.run(lambda number: 60.0 if number % 40 < 4 else 20.0, 400)
        totals[shared] = sum(sum(play.counts[kind][200:]) for kind in PAIR)
    assert totals[True] <= totals[False]


@given(st.integers(1, 60), st.floats(0.0, 20.0), st.floats(0.0, 20.0))
def test_a_total_is_spread_over_the_pools_by_their_work(total: int, first: float, second: float) -> None:
    """Each keeps one, the sum is the total, and no pool that is less loaded is served first."""
    pools = {kind: PoolState(3, 3) for kind in PAIR}
    sizes = spread(total, {PREFILL: first, DECODE: second}, pools)
    assert sum(sizes.values()) == max(2, total)
    assert min(sizes.values()) >= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.1, 1.0), st.floats(1.0, 4.0), st.integers(1, 60))
def test_the_ratio_holds_wherever_bounds_allow_it(
    prefill: int, decode: int, low: float, high: float, most: int
) -> None:
    """Prefill per decode stays within its bounds, or a pool is at one of its own."""
    pools = {kind: PoolState(1, 1, maximum=most) for kind in PAIR}
    sizes = {PREFILL: min(prefill, most), DECODE: min(decode, most)}
    bounded = PlannerSettings(ratio_min=low, ratio_max=high)
    found = coordinated(sizes, pools, bounded)
    at_bound = any(found[kind] in (1, most) for kind in PAIR)
    ratio = found[PREFILL] / found[DECODE]
    slack = 1.0 / found[DECODE]
    assert (low - slack <= ratio <= high + slack) or at_bound
    assert all(1 <= found[kind] <= most for kind in PAIR)


def test_a_mixed_pool_is_planned_alone() -> None:
    """Its workers do both halves."""
    pools = {PoolKind.MIXED: PoolState(1, 1)}
    memory: object = None
    planner = Planner()
    for number in range(1, 20):
        plan = planner.plan(15.0 * number, view(traffic(30.0), pools, memory=memory))
        memory = plan.memory
    # 30 prompts a second of 0.1 s each, and their answers.
    calm = plan.pools[PoolKind.MIXED].workers
    assert calm >= 4
    assert not plan.moves
    crowd = DecodeLoad(180.0, 20_000.0, 200_000.0, 450.0, 450.0 * 200.0)
    plan = planner.plan(400.0, view(traffic(30.0), pools, memory=memory, decode=crowd))
    assert plan.pools[PoolKind.MIXED].workers > calm


def test_lanes_with_pools_of_their_own_are_sized_apart() -> None:
    """Short prompts bring work to their pool alone."""
    pools = {kind: PoolState(1, 1) for kind in (PoolKind.SHORT, PoolKind.LONG, DECODE)}
    planner, memory = Planner(PlannerSettings(shared=False)), None
    requests = 15.0 * 400.0
    lanes = {Lane.SHORT: LaneTraffic(requests, requests * 100, requests * 100), Lane.LONG: LaneTraffic()}
    for number in range(1, 20):
        plan = planner.plan(15.0 * number, view(lanes, pools, memory=memory, decode=DecodeLoad()))
        memory = plan.memory
    assert plan.pools[PoolKind.SHORT].workers >= 4
    assert plan.pools[PoolKind.LONG].workers == 1


@pytest.mark.parametrize(
    "wrong", [{"goal": 1.0}, {"goal": 0.0}, {"ratio_min": 2.0, "ratio_max": 1.0}, {"start_s": 0.0}]
)
def test_settings_that_cannot_be_kept_are_refused(wrong: dict[str, float]) -> None:
    """At the start, not in the middle of the night."""
    with pytest.raises(ConfigError):
        PlannerSettings(**wrong)  # type: ignore[arg-type]


def test_the_cost_of_the_play_is_what_its_tests_assume() -> None:
    """A prompt of a thousand tokens takes a tenth of a second."""
    assert COST.prefill.marginal_s(1000, 0) == pytest.approx(0.101)
