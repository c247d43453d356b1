"""The plain forms of what `laps` computes in steps: from scratch, one prompt after another."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from twolane.policies.due_order import Due, Ordered


def due_order_slowly(start_s: float, dues: Sequence[Due]) -> Ordered:
    """Moore and Hodgson's rule with last dates, all choices by looking at every prompt."""
    pending = [(due.first_s, position) for position, due in enumerate(dues)]
    heapq.heapify(pending)
    dates: dict[int, float] = {}
    kept: set[int] = set()
    given_up: set[int] = set()
    end_s, kept_s = start_s, 0.0
    while pending:
        date_s, position = heapq.heappop(pending)
        due = dues[position]
        dates[position] = date_s
        end_s += due.service_s
        strict = due.is_deadline and position not in given_up
        if position not in given_up and due.last_s > due.first_s:
            kept.add(position)
            kept_s += due.service_s if due.is_deadline else 0.0
        if not strict and end_s - kept_s > date_s:
            continue
        while end_s > date_s:
            allowed = [one for one in kept if strict or dues[one].is_deadline]
            worst = min(allowed, key=lambda one: (-dues[one].service_s, one), default=-1)
            if worst < 0 or dues[worst].last_s <= date_s:
                break
            kept.remove(worst)
            given_up.add(worst)
            end_s -= dues[worst].service_s
            kept_s -= dues[worst].service_s if dues[worst].is_deadline else 0.0
            heapq.heappush(pending, (dues[worst].last_s, worst))
    positions = sorted(dates, key=lambda one: (dates[one], one))
    slack_s, end_s = math.inf, start_s
    for position in positions:
        end_s += dues[position].service_s
        slack_s = min(slack_s, dates[position] - end_s)
    return Ordered(positions, slack_s, len(given_up))
