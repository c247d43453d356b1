"""What `laps` keeps and computes in steps equals what the plain forms compute from scratch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policies.prefill_play import play
from tests.policies.prefill_views import long, short
from tests.policies.slow_forms import due_order_slowly
from twolane.core.request import Lane
from twolane.policies.cost import Load, PrefillCost
from twolane.policies.due_order import Due, due_order
from twolane.policies.fcfs_clock import FcfsClock, Steps
from twolane.policies.prefill import PrefillDecision, PrefillView
from twolane.policies.registry import by_name
from twolane.policies.settings import PrefillSettings

# Whole numbers, so that sums in any order are the same; ties are likely.
DUES = st.lists(
    st.builds(
        lambda service, first, more, strict: Due(float(service), float(first), float(first + more), strict),
        st.integers(1, 9),
        st.integers(0, 40),
        st.integers(0, 30),
        st.booleans(),
    ),
    max_size=25,
)
COST = PrefillCost.known(0.008, 1e-9, 25e-6, 1e-7)
STEPS = Steps(COST, 8192, 2048)


@settings(max_examples=300, deadline=None)
@given(DUES, st.integers(0, 20))
def test_the_order_is_that_of_the_plain_form(dues: list[Due], start: int) -> None:
    """Order, slack and the number given up, broken dates and none."""
    assert due_order(float(start), dues) == due_order_slowly(float(start), dues)


class _Checked:
    """fcfs, sjf or laps with a clock beside it whose sums are counted again at every decision."""

    def __init__(self, policy: str) -> None:
        self._policy = by_name(policy, PrefillSettings(fit_min_samples=4))
        self.name = policy

    def decide(self, now_s: float, view: PrefillView) -> PrefillDecision:
        """The policy's decision."""
        clock, inner = view.memory or (FcfsClock(), None)
        before = clock.dates_s
        clock = clock.after(now_s, view.waiting, STEPS)
        self._check(clock, before, now_s, view)
        decision = self._policy.decide(
            now_s, PrefillView(view.waiting, inner, view.last_batch_s, view.last_batch_lane)
        )
        return PrefillDecision(decision.chunks, decision.wake_s, (clock, decision.memory))

    def _check(self, clock: FcfsClock, before: Any, now_s: float, view: PrefillView) -> None:
        sums, end_s = Load(), max(clock.free_s, now_s)
        expected = {}
        for one in clock.queue:
            sums = sums.plus(one.tokens, one.cached_tokens)
            end_s += COST.marginal_s(one.tokens, one.cached_tokens)
            end_s += COST.heavy_constant_s * one.tokens / STEPS.chunk_tokens
            expected[one.request_id] = end_s
        assert clock.load == sums
        longs = [one.takes_s for one in clock.queue if one.lane is Lane.LONG]
        assert clock.peak_s == max(longs, default=0.0)
        for prompt in view.waiting:
            date_s = clock.dates_s[prompt.request_id]
            if (
                prompt.request_id not in before
                and prompt.lane is Lane.SHORT
                and prompt.request_id in expected
            ):
                assert date_s == pytest.approx(expected[prompt.request_id])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1.0), st.integers(1, 6000)), min_size=1, max_size=40),
    st.dictionaries(st.integers(0, 39), st.floats(0, 2.0), max_size=6),
    st.sampled_from(["fcfs", "sjf", "laps"]),
)
def test_the_clock_keeps_its_sums(
    arrivals: list[tuple[float, int]], aborts: dict[int, float], policy: str
) -> None:
    """Under any policy and aborts: work, longest stay and new dates are those of its queue."""
    prompts = [
        (long if size > 256 else short)(f"p{i}", at_s, size) for i, (at_s, size) in enumerate(arrivals)
    ]
    play(_Checked(policy), prompts, {f"p{index}": at_s for index, at_s in aborts.items()}, COST.batch_s)
