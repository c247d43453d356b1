"""Waiting for company: only when it pays, never beyond the latest time, with a depth that grows back."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tests.policies.prefill_play import play
from tests.policies.prefill_views import short
from twolane.policies.laps import Laps
from twolane.policies.settings import PrefillSettings
from twolane.policies.wait_depth import ShortArrivals, WaitDepth, wait_until_s


def _arrivals(rate_per_s: float, last_s: float = 0.0) -> ShortArrivals:
    return ShortArrivals(last_s, 1.0 / rate_per_s, 50)


@given(st.floats(0.1, 5000), st.integers(1, 40), st.floats(0.001, 0.2), st.floats(-0.1, 0.1))
def test_a_wait_is_never_longer_than_allowed_nor_one_that_can_not_pay(
    rate: float, queued: int, service_s: float, slack_s: float
) -> None:
    """It ends by the latest time; with one expected arrival per queued prompt or less there is none."""
    found = wait_until_s(1.0, queued, 64, service_s, _arrivals(rate, 1.0), 1.0 + slack_s)
    if found is not None:
        assert 1.0 < found <= 1.0 + slack_s
        assert rate * service_s > queued + 1
    if rate * service_s <= queued + 1 or slack_s <= 0.0:
        assert found is None


def test_a_target_that_is_reached_ends_the_wait() -> None:
    """Four queued of four wanted."""
    busy = _arrivals(1000.0)
    assert wait_until_s(0.0, 3, 4, 0.05, busy, 1.0) is not None
    assert wait_until_s(0.0, 4, 4, 0.05, busy, 1.0) is None


def test_the_rate_follows_gaps_and_falls_in_silence() -> None:
    """Ten per second, then nothing for ten seconds."""
    arrivals = ShortArrivals()
    for index in range(100):
        arrivals = arrivals.seen([index * 0.1])
    assert math.isclose(arrivals.rate_per_s(9.95), 10.0, rel_tol=1e-6)
    assert arrivals.rate_per_s(20.0) <= 0.1
    assert arrivals.seen([9.9]) is arrivals
    assert ShortArrivals().rate_per_s(5.0) == 0.0


def test_the_depth_shrinks_after_an_unfilled_wait_and_grows_back() -> None:
    """As printed it could only shrink; a batch that fills in half the window doubles it."""
    depth = WaitDepth(8).waiting(0.0, 0.01).dispatched(0.01, 2, 64)
    assert depth == WaitDepth(2)
    for _ in range(3):
        depth = depth.waiting(0.0, 0.01).dispatched(0.004, depth.target, 64)
    assert depth.target == 16
    assert depth.waiting(0.0, 0.01).dispatched(0.004, 16, 20).target == 20
    assert WaitDepth(2).dispatched(0.0, 9, 64).target == 9


def test_a_lone_trickle_is_never_made_to_wait() -> None:
    """Two prompts per second on an 8 ms step: every one starts at once."""
    played = play(Laps(PrefillSettings()), [short(str(index), index * 0.5) for index in range(200)])
    assert played.waits == []
    assert all(abs(start_s - index * 0.5) < 1e-9 for index, (start_s, *_) in enumerate(played.batches))
