"""Placement by predicted time: queues in seconds, lanes that pass each other, and no needless transfer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.policies.test_placement import decode, prefill, view
from twolane.core.request import Lane
from twolane.policies.cost import DecodeCost, PrefillCost
from twolane.policies.least_wait import LeastWait
from twolane.policies.placement import PowerOfTwo

POLICY = LeastWait(short_max_uncached_tokens=256)
PREFILL = PrefillCost.known(0.006, 1e-9, 3e-5, 1e-8)
SLOWER = PrefillCost.known(0.006, 1e-9, 9e-5, 1e-8)
DECODE = DecodeCost.known(0.006, 1e-8, 2e-5)


def test_a_short_prompt_goes_where_the_short_lane_is_empty() -> None:
    """A long queue in the other lane does not count, as workers let it pass."""
    busy = prefill("busy", prefill_cost=PREFILL, waiting_s={Lane.SHORT: 0.2, Lane.LONG: 0.0})
    long = prefill("long", prefill_cost=PREFILL, waiting_s={Lane.SHORT: 0.0, Lane.LONG: 2.0})
    placed = POLICY.decide(0.0, view(busy, long, decode("d", total_pages=1000), prompt_tokens=100))
    assert placed.prefill_id == "long"
    placed = POLICY.decide(0.0, view(busy, long, decode("d", total_pages=1000), prompt_tokens=5000))
    assert placed.prefill_id == "busy"


def test_a_cached_prefix_and_a_faster_worker_count_in_seconds() -> None:
    """Half the prompt at hand beats a little queue, but not a long one."""
    fast, slow = prefill("a", prefill_cost=PREFILL), prefill("b", prefill_cost=SLOWER)
    assert (
        POLICY.decide(0.0, view(slow, fast, decode("d", total_pages=1000), prompt_tokens=4000)).prefill_id
        == "a"
    )
    cached = replace(slow, cached_tokens=3900)
    assert (
        POLICY.decide(0.0, view(cached, fast, decode("d", total_pages=1000), prompt_tokens=4000)).prefill_id
        == "b"
    )
    queued = replace(cached, waiting_s={Lane.SHORT: 1.0, Lane.LONG: 0.0})
    assert (
        POLICY.decide(0.0, view(queued, fast, decode("d", total_pages=1000), prompt_tokens=4000)).prefill_id
        == "a"
    )


def test_unknown_costs_fall_back_to_tokens() -> None:
    """One worker that has measured nothing yet makes seconds incomparable."""
    known = prefill("a", prefill_cost=PREFILL, waiting_tokens=500)
    unknown = prefill("b", waiting_tokens=10)
    assert POLICY.decide(0.0, view(known, unknown, decode("d", total_pages=1000))).prefill_id == "b"


@pytest.mark.parametrize(
    ("changes", "prompt_tokens", "skips"),
    [
        pytest.param({}, 100, True, id="short prompt, idle decode worker, queue at prefill"),
        pytest.param({}, 3000, False, id="long prompt"),
        pytest.param(
            {"running": 64, "held_tokens": 10**7}, 100, False, id="it would hold up running answers"
        ),
        pytest.param({"waiting_tokens": 50}, 100, False, id="another prompt waits there already"),
        pytest.param({"decode_cost": None}, 100, False, id="its cost is not known"),
    ],
)
def test_disaggregation_is_skipped_only_when_it_pays(
    changes: dict[str, Any], prompt_tokens: int, skips: bool
) -> None:
    """The decode worker does both halves when the first and the second token come sooner that way."""
    waiting = prefill("p", prefill_cost=PREFILL, waiting_s={Lane.SHORT: 0.1, Lane.LONG: 0.0})
    target = replace(decode("d", total_pages=1000, prefill_cost=PREFILL, decode_cost=DECODE), **changes)
    placed = POLICY.decide(0.0, view(waiting, target, prompt_tokens=prompt_tokens, transfer_token_s=1e-5))
    assert placed.decode_id == "d"
    assert (placed.prefill_id == "d") is skips


def test_power_of_two_looks_at_two_different_workers() -> None:
    """Over all draws every worker is looked at, and the fuller one of a pair never wins."""
    workers = [prefill(f"p{index}", waiting_tokens=100 * index) for index in range(4)]
    policy, count = PowerOfTwo(), 48
    chosen = [
        policy.decide(0.0, view(*workers, decode("d", total_pages=1000), draw=draw / count)).prefill_id
        for draw in range(count)
    ]
    assert set(chosen) == {"p0", "p1", "p2"}
    assert chosen.count("p0") == count / 2
