"""The order of long prompts: fewest deadlines missed, last dates kept, one started prompt finished."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from twolane.policies.due_order import Due, due_order

FAR = 1e6


def _deadline(service_s: float, first_s: float, last_s: float = FAR) -> Due:
    return Due(service_s, first_s, last_s, is_deadline=True)


def _tail(service_s: float, first_s: float, last_s: float) -> Due:
    return Due(service_s, first_s, last_s, is_deadline=False)


def _met(dues: list[Due], order: tuple[int, ...] | list[int]) -> int:
    end_s, met = 0.0, 0
    for position in order:
        end_s += dues[position].service_s
        met += end_s <= dues[position].first_s
    return met


JOBS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(JOBS)
def test_no_order_meets_more_deadlines(jobs: list[tuple[int, int]]) -> None:
    """Against every permutation."""
    dues = [_deadline(float(service), float(date)) for service, date in jobs]
    found = due_order(0.0, dues)
    assert sorted(found.positions) == list(range(len(dues)))
    assert _met(dues, found.positions) == max(_met(dues, order) for order in permutations(range(len(dues))))


@settings(max_examples=80, deadline=None)
@given(JOBS, st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), max_size=4))
def test_dates_that_first_come_first_served_would_keep_are_kept(
    jobs: list[tuple[int, int]], deadlines: list[tuple[int, int]]
) -> None:
    """Whatever deadlines are beside them: those are given up where both can't be."""
    dues, end_s = [], 0.0
    for service, _ in jobs:
        end_s += service
        dues.append(_tail(float(service), end_s, end_s))
    dues += [_deadline(float(service), float(date)) for service, date in deadlines]
    found = due_order(0.0, dues)
    end_s = 0.0
    for position in found.positions:
        end_s += dues[position].service_s
        if not dues[position].is_deadline:
            assert end_s <= dues[position].first_s
    assert found.slack_s >= 0.0


def test_one_that_can_spare_the_time_gives_way_to_a_deadline_not_to_a_tail_date() -> None:
    """A giant with a distant deadline leaves its place under fcfs only where that saves a deadline."""
    giant = _tail(10.0, 12.0, 50.0)
    assert due_order(0.0, [giant, _deadline(3.0, 12.5)]).positions == [1, 0]
    assert due_order(0.0, [giant, _tail(3.0, 12.5, 12.5)]).positions == [0, 1]


def test_no_deadline_is_given_up_in_vain() -> None:
    """A date that is lost anyway costs no deadline; what is lost shows as negative slack."""
    found = due_order(0.0, [_deadline(1.0, 1.0), _tail(10.0, 5.0, 5.0)])
    assert found.positions == [0, 1]
    assert found.given_up == 0
    assert found.slack_s == -6.0


def test_equals_keep_their_order() -> None:
    """And nothing to order is no error."""
    assert due_order(0.0, [_deadline(1.0, 9.0)] * 4).positions == [0, 1, 2, 3]
    assert due_order(0.0, []).positions == []
