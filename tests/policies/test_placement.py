"""Placement decides by uncached length, load and memory, repeatably, and says when nobody can serve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.core.request import Lane, Role
from twolane.policies.least_wait import PLACEMENT_POLICIES
from twolane.policies.placement import (
    LeastLoaded,
    LeastUncached,
    PlacementView,
    PlacementWorker,
    RoundRobin,
)


def prefill(worker_id: str, **values: Any) -> PlacementWorker:
    """A prefill worker."""
    return replace(PlacementWorker(worker_id, Role.PREFILL, total_pages=100), **values)


def decode(worker_id: str, **values: Any) -> PlacementWorker:
    """A decode worker."""
    return replace(PlacementWorker(worker_id, Role.DECODE, total_pages=100), **values)


def mixed(worker_id: str, **values: Any) -> PlacementWorker:
    """A worker that does both."""
    return replace(PlacementWorker(worker_id, Role.MIXED, total_pages=100), **values)


def view(*workers: PlacementWorker, prompt_tokens: int = 300, **values: Any) -> PlacementView:
    """A view of the workers."""
    return replace(PlacementView(workers, prompt_tokens, page_tokens=16), **values)


POLICY = LeastUncached(short_max_uncached_tokens=256)


def test_a_long_prompt_with_a_short_uncached_rest_is_short() -> None:
    """The lane follows what is left to compute, not the prompt's length."""
    placed = POLICY.decide(0.0, view(prefill("p", cached_tokens=960), decode("d"), prompt_tokens=1000))
    assert (placed.lane, placed.uncached_tokens) == (Lane.SHORT, 40)
    placed = POLICY.decide(0.0, view(prefill("p"), decode("d"), prompt_tokens=257))
    assert (placed.lane, placed.uncached_tokens) == (Lane.LONG, 257)


def test_a_worker_that_has_fitted_its_boundary_is_believed() -> None:
    """What is short depends on the machine; the policy's own number is for workers that don't know yet."""
    fitted = prefill("p", boundary_tokens=400)
    assert POLICY.decide(0.0, view(fitted, decode("d"), prompt_tokens=400)).lane is Lane.SHORT
    assert POLICY.decide(0.0, view(fitted, decode("d"), prompt_tokens=401)).lane is Lane.LONG


def test_prefill_goes_where_queue_and_own_tokens_end_first() -> None:
    """A busy worker with the prefix wins as long as its queue is shorter than what it saves."""
    cached = prefill("a", cached_tokens=256, waiting_tokens=200)
    idle = prefill("b")
    assert POLICY.decide(0.0, view(cached, idle, decode("d"))).prefill_id == "a"
    busier = replace(cached, waiting_tokens=300)
    assert POLICY.decide(0.0, view(busier, idle, decode("d"))).prefill_id == "b"


def test_decode_goes_where_memory_stays_free_then_where_fewer_run() -> None:
    """Predicted peak pages count as a share of the pool."""
    large = decode("large", predicted_peak_pages=50, total_pages=1000)
    small = decode("small", predicted_peak_pages=40, total_pages=100)
    assert POLICY.decide(0.0, view(prefill("p"), large, small)).decode_id == "large"
    busy, calm = decode("a", running=9), decode("b", running=3)
    assert POLICY.decide(0.0, view(prefill("p"), busy, calm)).decode_id == "b"


def test_a_prefix_cached_at_the_decode_worker_needs_no_new_pages() -> None:
    """Cached pages are shared with the answers that have them already."""
    cached = decode("b", cached_tokens=288)
    assert POLICY.decide(0.0, view(prefill("p"), decode("a"), cached)).decode_id == "b"


def test_a_mixed_worker_takes_what_the_pair_would_take_longer_for() -> None:
    """It loses ties: prefill there disturbs running answers."""
    pair = prefill("p", waiting_tokens=100), decode("d")
    placed = POLICY.decide(0.0, view(*pair, mixed("m", waiting_tokens=100)))
    assert (placed.prefill_id, placed.decode_id) == ("p", "d")
    placed = POLICY.decide(0.0, view(*pair, mixed("m")))
    assert (placed.prefill_id, placed.decode_id) == ("m", "m")


def test_a_worker_of_the_other_lane_is_used_only_when_there_is_no_other() -> None:
    """Lanes are preferences: no request fails for want of its lane."""
    short, long = prefill("s", lane=Lane.SHORT), prefill("l", lane=Lane.LONG, waiting_tokens=9999)
    assert POLICY.decide(0.0, view(short, long, decode("d"))).prefill_id == "l"
    assert POLICY.decide(0.0, view(short, decode("d"))).prefill_id == "s"


@pytest.mark.parametrize("name", sorted(PLACEMENT_POLICIES))
@pytest.mark.parametrize(
    ("workers", "reason"),
    [
        ((), "no worker is ready"),
        ((prefill("p"),), "no decode worker is ready"),
        ((decode("d"),), "no prefill worker is ready"),
        ((prefill("p", draining=True), decode("d")), "no prefill worker is ready"),
        ((mixed("m", draining=True),), "no worker is ready"),
    ],
)
def test_no_capacity_is_a_decision_with_a_reason(
    name: str, workers: tuple[PlacementWorker, ...], reason: str
) -> None:
    """The client hears what is missing."""
    placed = PLACEMENT_POLICIES[name](256).decide(0.0, view(*workers))
    assert (placed.no_capacity, placed.prefill_id, placed.decode_id) == (reason, "", "")


def test_a_prompt_larger_than_every_pool_is_no_capacity() -> None:
    """It could never start; waiting would be for ever."""
    workers = prefill("p"), decode("d", total_pages=18)
    assert POLICY.decide(0.0, view(*workers, prompt_tokens=287)).decode_id == "d"
    assert "19 pages" in POLICY.decide(0.0, view(*workers, prompt_tokens=288)).no_capacity


def test_equals_are_told_apart_by_id_or_by_the_draw() -> None:
    """Without a draw the first id; with one every equal worker has its turn."""
    workers = [prefill("b"), prefill("c"), prefill("a"), decode("d")]
    assert POLICY.decide(0.0, view(*workers)).prefill_id == "a"
    drawn = [POLICY.decide(0.0, view(*workers, draw=draw)).prefill_id for draw in (0.0, 0.4, 0.99)]
    assert drawn == ["a", "b", "c"]


def test_round_robin_takes_turns() -> None:
    """Its memory is the number of requests placed."""
    workers = prefill("p1"), prefill("p0"), decode("d0"), decode("d1"), decode("d2")
    policy, memory, placed = RoundRobin(), None, []
    for _ in range(4):
        decision = policy.decide(0.0, view(*workers, memory=memory))
        memory = decision.memory
        placed.append((decision.prefill_id, decision.decode_id))
    assert placed == [("p0", "d0"), ("p1", "d1"), ("p0", "d2"), ("p1", "d0")]


def test_least_loaded_is_blind_to_the_cache() -> None:
    """The baseline looks at queues alone."""
    workers = prefill("a", cached_tokens=288, waiting_tokens=1), prefill("b"), decode("d")
    assert LeastLoaded().decide(0.0, view(*workers)).prefill_id == "b"
    mixed_workers = mixed("m", running=4), mixed("n", running=2)
    assert LeastLoaded().decide(0.0, view(*mixed_workers)).decode_id == "n"


WORKERS = st.builds(
    PlacementWorker,
    worker_id=st.sampled_from("abcdefgh"),
    role=st.sampled_from(Role),
    lane=st.sampled_from([None, *Lane]),
    draining=st.booleans(),
    cached_tokens=st.integers(0, 299),
    waiting_tokens=st.integers(0, 1000),
    running=st.integers(0, 50),
    predicted_peak_pages=st.integers(0, 200),
    total_pages=st.integers(0, 100),
)


@given(
    workers=st.lists(WORKERS, max_size=8, unique_by=lambda w: w.worker_id),
    draw=st.none() | st.floats(0, 1, exclude_max=True),
    name=st.sampled_from(sorted(PLACEMENT_POLICIES)),
)
def test_any_placement_is_one_that_can_serve(
    workers: list[PlacementWorker], draw: float | None, name: str
) -> None:
    """Either a reason, or a pair of a prefill and a decode worker, or one mixed worker; none draining."""
    seen = view(*workers, draw=draw)
    policy = PLACEMENT_POLICIES[name](256)
    placed = policy.decide(0.0, seen)
    assert placed == policy.decide(0.0, seen)
    if placed.no_capacity:
        assert placed.prefill_id == placed.decode_id == ""
        return
    by_id = {worker.worker_id: worker for worker in workers}
    first, second = by_id[placed.prefill_id], by_id[placed.decode_id]
    assert not first.draining
    assert not second.draining
    roles = (first.role, second.role)
    assert roles == (Role.PREFILL, Role.DECODE) or (first is second and first.role is Role.MIXED)
    assert placed.uncached_tokens == 300 - first.cached_tokens
    assert placed.lane is (Lane.SHORT if placed.uncached_tokens <= 256 else Lane.LONG)
