"""The order of long prompts that misses the fewest deadlines and keeps the lane's tail.

Moore and Hodgson's rule: by date, and when that gets late, give up the largest prompt so far. One given up
is not forgotten but due at a last date, and then it is given up no more.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Due:
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


@dataclass(slots=True)
class _Kept:
    """Prompts that may be given up, the largest first, and the seconds they take together."""

    heap: list[tuple[float, int]] = field(default_factory=list)
    service_s: float = 0.0

    def add(self, service_s: float, position: int) -> None:
        heapq.heappush(self.heap, (-service_s, position))
        self.service_s += service_s

    def pop(self) -> int:
        service_s, position = heapq.heappop(self.heap)
        self.service_s += service_s
        return position


def due_order(start_s: float, dues: Sequence[Due]) -> Ordered:
    """Orders prompts that run one after another from `start_s`."""
    pending = [(due.first_s, position) for position, due in enumerate(dues)]
    heapq.heapify(pending)
    dates: dict[int, float] = {}
    deadlines, tails = _Kept(), _Kept()
    given_up: set[int] = set()
    end_s = start_s
    while pending:
        date_s, position = heapq.heappop(pending)
        due = dues[position]
        dates[position] = date_s
        end_s += due.service_s
        strict = due.is_deadline and position not in given_up
        if position not in given_up and due.last_s > due.first_s:
            (deadlines if due.is_deadline else tails).add(due.service_s, position)
        if not strict and end_s - deadlines.service_s > date_s:
            # Late even with all of them given up: that would be in vain.
            continue
        while end_s > date_s:
            kept = _largest(deadlines, tails) if strict else deadlines
            if not kept.heap or dues[kept.heap[0][1]].last_s <= date_s:
                break
            worst = kept.pop()
            given_up.add(worst)
            end_s -= dues[worst].service_s
            heapq.heappush(pending, (dues[worst].last_s, worst))
    return _ordered(start_s, dues, dates, len(given_up))


def _largest(one: _Kept, other: _Kept) -> _Kept:
    if not one.heap:
        return other
    return other if other.heap and other.heap[0] < one.heap[0] else one


def _ordered(start_s: float, dues: Sequence[Due], dates: dict[int, float], given_up: int) -> Ordered:
    positions = sorted(dates, key=lambda position: (dates[position], position))
    slack_s, end_s = math.inf, start_s
    for position in positions:
        end_s += dues[position].service_s
        slack_s = min(slack_s, dates[position] - end_s)
    return Ordered(positions, slack_s, given_up)
