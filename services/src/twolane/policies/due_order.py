"""The order of long prompts that misses the fewest deadlines and keeps the lane's tail.

Moore and Hodgson's rule: by date, and when that gets late, give up the largest prompt so far. One given up
is not forgotten but due at a last date, and then it is given up no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple


class Due(NamedTuple):
    """A prompt to order.

    Attributes:
        service_s: seconds that it still takes.
        first_s: the date to keep.
        last_s: the date that it gets when it is given up; the same where it can't be.
        is_deadline: whether the first date is a client's; else it only keeps the tail short, and only
            prompts with such a date are given up for it.
    """

    service_s: float
    first_s: float
    last_s: float
    is_deadline: bool


@dataclass(frozen=True, slots=True)
class Ordered:
    """The order.

    Attributes:
        positions: of the prompts, in the order to run them.
        slack_s: seconds by which all can be delayed before a date is broken; negative when one will be.
        given_up: how many were.
    """

    positions: list[int]
    slack_s: float
    given_up: int


def due_order(start_s: float, dues: Sequence[Due]) -> Ordered:
    """Orders prompts that run one after another from `start_s`."""
    first = sorted([(due.first_s, position) for position, due in enumerate(dues)])
    if (easy := _if_all_fit(start_s, dues, first)) is not None:
        return easy
    first.reverse()
    again: list[tuple[float, int]] = []
    dates: dict[int, float] = {}
    # Prompts that may be given up, the largest first, and the seconds of those with deadlines.
    deadlines: list[tuple[float, int]] = []
    tails: list[tuple[float, int]] = []
    kept_s, end_s, given_up = 0.0, start_s, 0
    while first or again:
        is_fresh = bool(first) and not (again and again[0] < first[-1])
        date_s, position = first.pop() if is_fresh else heappop(again)
        service_s, first_s, last_s, is_deadline = dues[position]
        dates[position] = date_s
        end_s += service_s
        strict = is_deadline and is_fresh
        if is_fresh and last_s > first_s:
            heappush(deadlines if is_deadline else tails, (-service_s, position))
            kept_s += service_s if is_deadline else 0.0
        if not strict and end_s - kept_s > date_s:
            # Late even with all of them given up: that would be in vain.
            continue
        while end_s > date_s:
            heap = _largest(deadlines, tails) if strict else deadlines
            if not heap or dues[heap[0][1]].last_s <= date_s:
                break
            less_s, worst = heappop(heap)
            end_s += less_s
            kept_s += less_s if heap is deadlines else 0.0
            given_up += 1
            heappush(again, (dues[worst].last_s, worst))
    return _ordered(start_s, dues, dates, given_up)


def _if_all_fit(start_s: float, dues: Sequence[Due], pending: list[tuple[float, int]]) -> Ordered | None:
    """The order by first dates when none of them is broken, so that nothing need be given up."""
    slack_s, end_s = math.inf, start_s
    for date_s, position in pending:
        end_s += dues[position].service_s
        if end_s > date_s:
            return None
        slack_s = min(slack_s, date_s - end_s)
    return Ordered([position for _, position in pending], slack_s, 0)


def _largest(one: list[tuple[float, int]], other: list[tuple[float, int]]) -> list[tuple[float, int]]:
    if not one:
        return other
    return other if other and other[0] < one[0] else one


def _ordered(start_s: float, dues: Sequence[Due], dates: dict[int, float], given_up: int) -> Ordered:
    ordered = sorted([(date_s, position) for position, date_s in dates.items()])
    slack_s, end_s = math.inf, start_s
    for date_s, position in ordered:
        end_s += dues[position].service_s
        slack_s = min(slack_s, date_s - end_s)
    return Ordered([position for _, position in ordered], slack_s, given_up)
