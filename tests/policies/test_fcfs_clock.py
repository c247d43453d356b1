"""The reference clock against the policy fcfs itself, and the windows it keeps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policies.prefill_play import play
from tests.policies.prefill_views import long, short
from twolane.policies.cost import PrefillCost
from twolane.policies.fcfs import Fcfs
from twolane.policies.fcfs_clock import FcfsClock, Steps
from twolane.policies.prefill import PrefillDecision, PrefillView
from twolane.policies.recent import MEMORY_S, WINDOW, Recent, Shares
from twolane.policies.settings import PrefillSettings

SETTINGS = PrefillSettings()
COST = PrefillCost.known(0.008, 0.0, 25e-6, 0.0)
STEPS = Steps(COST, SETTINGS.max_batch_tokens, SETTINGS.long_chunk_tokens)


class _Clocked(Fcfs):
    """fcfs, with a clock beside it."""

    def decide(self, now_s: float, view: PrefillView) -> PrefillDecision:
        clock = (view.memory or FcfsClock()).after(now_s, view.waiting, STEPS)
        decision = super().decide(now_s, view)
        return PrefillDecision(decision.chunks, memory=clock)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 9000)), min_size=1, max_size=30))
def test_the_clock_takes_what_fcfs_takes(arrivals: list[tuple[float, int]]) -> None:
    """While a giant keeps the worker busy, the imaginary one ends every prompt when fcfs does."""
    prompts = [long("giant", 0.0, 200_000)]
    prompts += [
        (long if size > 256 else short)(f"p{i}", at_s, size) for i, (at_s, size) in enumerate(arrivals)
    ]
    # Keeps the worker busy to the end, so that nothing is dropped unmeasured.
    prompts += [long("after", 0.5, 50_000)]
    played = play(_Clocked(SETTINGS), prompts, step_s=COST.batch_s)
    clock: FcfsClock = played.memory
    measured_s = sorted([*clock.longs.values, *clock.shorts.values])
    real_s = sorted(played.finished_s[p.request_id] - p.arrival_s for p in prompts if p.request_id != "after")
    assert measured_s == pytest.approx(real_s)


def test_a_date_follows_the_tail_but_is_no_earlier_than_under_fcfs() -> None:
    """A prompt may end as late as the lane's slowest would under fcfs."""
    first = long("a", 0.0, 2000)
    alone = FcfsClock().after(0.0, [first], STEPS)
    assert alone.dates_s["a"] == pytest.approx(0.058, abs=1e-3)
    crowd = [first, *(long(f"b{i}", 0.01, 2000) for i in range(20))]
    behind = alone.after(0.02, crowd, STEPS)
    assert behind.dates_s["b19"] == pytest.approx(21 * 0.058, rel=0.05)
    assert behind.dates_s["a"] == pytest.approx(0.95 * (behind.dates_s["b19"] - 0.01), rel=0.05)
    later = behind.after(10.0, [first, *crowd[1:], long("c", 9.9, 300)], STEPS)
    assert later.dates_s["a"] >= 0.058
    assert later.dates_s["b19"] == pytest.approx(behind.dates_s["b19"], rel=0.1)


def test_one_that_comes_back_is_counted_once_and_aborted_work_is_dropped() -> None:
    """The queue follows what really waits."""
    both = [long("a", 0.0, 9000), long("b", 0.1, 9000)]
    clock = FcfsClock().after(0.1, both, STEPS)
    clock = clock.after(0.2, both[:1], STEPS).after(0.3, both, STEPS)
    assert [one.request_id for one in clock.queue] == ["b"]
    assert clock.after(0.4, [short("c", 0.4)], STEPS).backlog_s(0.4, COST) < 0.3


def test_the_window_keeps_the_newest_and_knows_their_quantiles() -> None:
    """Nothing known is 0."""
    recent = Recent()
    assert recent.quantile(0.9) == 0.0
    for value in range(2 * WINDOW):
        recent = recent.after([float(value)])
    assert len(recent.values) == WINDOW
    assert recent.quantile(0.0) == WINDOW
    assert recent.quantile(1.0) == 2 * WINDOW - 1
    assert recent.ordered == tuple(sorted(recent.values))


def test_shares_need_a_second_and_fade() -> None:
    """A worker of which nothing is known counts as busy."""
    assert Shares().idle == 0.0
    half = Shares()
    for _ in range(1000):
        half = half.after(0.1, 0.05, 0.02)
    assert half.idle == pytest.approx(0.5, abs=0.01)
    assert half.short == pytest.approx(0.2, abs=0.01)
    assert half.after(10 * MEMORY_S, 0.0, 0.0).idle == 1.0
