"""What the planner is made of: forecast, sizing by queues, and the scalers it is compared with."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policies.planner_play import COST, PAIR, traffic, view
from twolane.core.request import Lane
from twolane.policies.planner_baselines import Hpa, QueueBlind
from twolane.policies.planner_demand import Demand
from twolane.policies.planner_forecast import WAYS, Forecast, Tail
from twolane.policies.planner_needs import Need, best_split, late_with, workers_within
from twolane.policies.planner_settings import PlannerSettings
from twolane.policies.planner_sizing import (
    PrefillLoad,
    decode_rate,
    late_share,
    prefill_workers,
    waiting_share,
)
from twolane.policies.planner_view import DecodeLoad, LaneTraffic, PoolState

PREFILL, DECODE = PAIR


def _seen(demands: Iterable[float]) -> Forecast:
    forecast = Forecast()
    for demand in demands:
        forecast = forecast.observe(demand)
    return forecast


def _tail(demands: Iterable[float]) -> Tail:
    return _seen(demands).believed(0.05)[1]


def test_a_step_is_followed_within_a_minute() -> None:
    """Four intervals after a doubling the level is most of the way."""
    forecast = _seen([5.0] * 40 + [10.0] * 4)
    assert 8.5 < forecast.level <= 10.5
    assert forecast.expected >= forecast.level


def test_a_ramp_is_foreseen_above_its_present_level() -> None:
    """The trend reaches over the start of a pod."""
    forecast = _seen([5.0 + 0.25 * number for number in range(40)])
    assert forecast.expected > 5.0 + 0.25 * 39


def test_a_drifting_load_is_followed_fast_and_a_bursting_one_slowly() -> None:
    """The way that needs the least room is believed."""
    drifting = (10.0 + 8.0 * math.sin(number / 25.0) for number in range(400))
    assert _seen(drifting).believed(0.05)[0].level_weight == WAYS[0][0]
    dice = random.Random(1)
    bursting = (25.0 if dice.random() < 0.1 else 4.0 for _ in range(400))
    assert _seen(bursting).believed(0.05)[0].level_weight == WAYS[-1][0]


def test_a_lull_does_not_make_later_peaks_look_larger() -> None:
    """After a lull work is many times its forecast; what is remembered of it is how much more it was."""
    ramp = [1.0] * 60 + [1.0 + 0.25 * number for number in range(24)] + [7.0] * 24
    assert _tail(ramp).late(15.0) == 0.0


def test_a_rough_load_leaves_more_work_without_workers_than_a_calm_one() -> None:
    """Of the same mean; the more workers there are, the less is left."""
    calm, rough = _tail([10.0] * 400), _tail([6.0, 6.0, 6.0, 6.0, 26.0] * 80)
    assert calm.late(14.0) < rough.late(14.0)
    shares = [rough.late(float(work)) for work in range(1, 40)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(1.0)
    assert shares[-1] == 0.0


def test_errors_of_long_ago_count_little() -> None:
    """An hour after a burst its work is hardly expected any more."""
    burst = [5.0] * 40 + [15.0] * 8
    soon, later = _tail(burst + [5.0] * 12), _tail(burst + [5.0] * 200)
    assert soon.late(6.6) > 5.0 * later.late(6.6)


def test_workers_go_where_the_fewest_requests_are_late_for_it() -> None:
    """Of two pools with equal work the one whose work is less sure gets more; floors come first."""
    sure, unsure = _tail([6.0] * 400), _tail([4.0, 4.0, 4.0, 4.0, 14.0] * 80)
    needs = {PREFILL: Need(7, 6.0, unsure, 0.9), DECODE: Need(7, 6.0, sure, 0.9)}
    split = best_split(needs, 19)
    assert split[PREFILL] > split[DECODE] >= 7
    fewest = workers_within(needs, 0.02)
    assert late_with(needs, fewest) <= 0.02
    assert sum(workers_within(needs, 0.02, spare=0.1).values()) >= sum(fewest.values())
    small = {PREFILL: Need(7, 6.0, unsure, 0.9), DECODE: Need(2, 1.0, _tail([1.0] * 400), 0.9)}
    assert best_split(small, 9) == {PREFILL: 7, DECODE: 2}


def test_unequal_prompts_are_noticed() -> None:
    """Work that comes in few large prompts needs more room than the same work in many small ones."""
    settings = PlannerSettings()
    even, uneven = Demand.start(settings), Demand.start(settings)
    for number in range(120):
        even = even.observe(view(traffic(10.0), {PREFILL: PoolState(2, 2)}), settings)
        rate = 50.0 if number % 5 == 0 else 0.0
        uneven = uneven.observe(view(traffic(rate), {PREFILL: PoolState(2, 2)}), settings)
    assert even.variation(Lane.LONG) == 1.0
    assert uneven.variation(Lane.LONG) > 2.0


@given(st.integers(1, 40), st.floats(0.05, 0.94))
def test_erlang_c_is_a_share_and_falls_with_more_workers(workers: int, use: float) -> None:
    """One worker waits as often as it is busy; more of them at the same use wait less often."""
    share = waiting_share(workers, use * workers)
    assert 0.0 <= share <= 1.0
    assert waiting_share(1, use) == pytest.approx(use)
    assert waiting_share(workers + 1, use * (workers + 1)) <= share + 1e-12


def test_erlang_c_agrees_with_a_known_value() -> None:
    """Ten servers at an offered load of eight: 0.4092 by the tables."""
    assert waiting_share(10, 8.0) == pytest.approx(0.4092, abs=1e-4)


def test_a_tighter_target_takes_more_workers() -> None:
    """The same prompts, a tenth of the time to wait."""
    none = PrefillLoad(0.0, 0.0, 0.4)
    relaxed = prefill_workers(none, PrefillLoad(7.0, 0.3, 5.0), 0.01)
    strict = prefill_workers(none, PrefillLoad(7.0, 0.3, 0.5), 0.01)
    assert 8 <= relaxed < strict


def test_a_target_below_the_work_itself_does_not_ask_for_the_world() -> None:
    """No number of workers makes one prompt faster."""
    assert prefill_workers(PrefillLoad(0.0, 0.0, 0.4), PrefillLoad(3.0, 2.0, 0.1), 0.01) < 20
    assert late_share(PrefillLoad(3.0, 2.0, 0.1), 0.0, 3) == 1.0


def test_a_decode_worker_is_bounded_by_pages_or_by_pace() -> None:
    """Long answers fill the pages; a strict pace fills the step first."""
    by_pages = decode_rate(COST, 2000.0, 400.0, 0.5)
    assert by_pages.held_tokens == pytest.approx(0.85 * COST.capacity_tokens, rel=0.01)
    by_pace = decode_rate(COST, 2000.0, 400.0, 0.025)
    assert by_pace.rows < by_pages.rows
    assert COST.decode.step_s(int(by_pace.held_tokens), int(by_pace.rows)) <= 0.0251


def test_missed_targets_raise_care_and_an_hour_without_lowers_it() -> None:
    """Misses beyond the goal add to it, up to a most; where workers idle, misses have another cause."""
    bad = {Lane.LONG: LaneTraffic(100, 1e5, 1e5, judged=100, met=50), Lane.SHORT: LaneTraffic()}
    settings = PlannerSettings()
    busy, idle = ({PREFILL: PoolState(ready, ready)} for ready in (1, 400))
    demand = Demand.start(settings).observe(view(bad, busy), settings)
    careful = demand.observe(view(bad, busy), settings)
    assert careful.care > demand.care
    assert demand.observe(view(bad, idle), settings).care <= demand.care
    for _ in range(60):
        careful = careful.observe(view(bad, busy), settings)
    assert careful.care == settings.care_most
    for _ in range(240):
        demand = demand.observe(view(traffic(7.0), busy), settings)
    assert demand.care < Demand.start(settings).care


@pytest.mark.parametrize(
    ("use", "ready", "pending", "wish"),
    [
        (0.9, 4, 0, 8),
        (0.52, 4, 0, 4),
        (0.2, 4, 0, 4),
        (0.9, 4, 4, 8),
        (0.6, 10, 2, 12),
    ],
)
def test_the_autoscaler_rule_is_the_real_one(use: float, ready: int, pending: int, wish: int) -> None:
    """ceil(ready × use / target); 10 % tolerance; pods that start count as idle on the way up; the
    way down waits for five minutes."""
    pools = {PREFILL: PoolState(ready + pending, ready, pending, busy=use)}
    plan = Hpa({PREFILL: 0.5}).plan(
        15.0, view(traffic(0.0), pools, memory=((14.0, PREFILL, ready + pending),))
    )
    assert plan.pools[PREFILL].workers == wish


def test_the_autoscaler_goes_down_after_its_window() -> None:
    """The highest wish of five minutes holds."""
    scaler, memory = Hpa({PREFILL: 0.5}), None
    counts = []
    for number in range(1, 30):
        pools = {PREFILL: PoolState(8, 8, busy=0.5 if number == 1 else 0.1)}
        plan = scaler.plan(15.0 * number, view(traffic(0.0), pools, memory=memory))
        memory = plan.memory
        counts.append(plan.pools[PREFILL].workers)
    assert counts[:20] == [8] * 20
    assert counts[-1] == 2


def test_the_queue_blind_planner_sees_no_queue() -> None:
    """The same arrivals with an hour of work waiting give the same counts."""
    results = []
    for waiting_s in (0.0, 3600.0):
        scaler, memory = QueueBlind(0.5, period_s=60.0), None
        for number in range(1, 20):
            waiting = {Lane.SHORT: 0.0, Lane.LONG: waiting_s}
            pools = {kind: PoolState(2, 2) for kind in PAIR}
            load = DecodeLoad(ended=300.0, output_tokens=60_000.0)
            seen = view(traffic(20.0), pools, memory=memory, waiting_s=waiting, decode=load)
            plan = scaler.plan(15.0 * number, seen)
            memory = plan.memory
        results.append({kind: target.workers for kind, target in plan.pools.items()})
    assert results[0] == results[1]
    assert results[0][PREFILL] == math.ceil(20.0 * 0.101 / 0.5)
