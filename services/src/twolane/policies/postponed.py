"""Which long prompts may end later than the tail of first come, first served: one in a hundred, the largest.

The target for long prompts is a p99, so few of them may wait longer when that lets many others keep their
deadlines. `laps_moment` asks at every decision; the state travels in the policy's memory.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from heapq import nlargest

from twolane.policies.prefill import WaitingPrefill
from twolane.policies.recent import WINDOW, Recent

# Only prompts among so many times the share, by size, are worth being postponed.
GIANTS = 5.0
# Of prompts that are gone as many may be remembered: they may be out of sight only for a decision.
MOST_GONE = 64


@dataclass(frozen=True, slots=True)
class Postponed:
    """A budget of late long prompts, and those that it was spent on.

    Of the first n long prompts at most share · n are postponed, of any n in a row at most `credit_most` more.

    Attributes:
        seen_s: newest arrival that counted.
        credit: prompts that may still be postponed.
        gone_ids: those that were.
        started_ids: prompts of which a part is computed. They hold pages, so they are not put aside.
        services: seconds of work of the newest long prompts.
    """

    seen_s: float = -math.inf
    credit: float = 0.0
    gone_ids: frozenset[str] = frozenset()
    started_ids: frozenset[str] = frozenset()
    services: Recent = field(default_factory=Recent)

    def after(self, longs: Sequence[WaitingPrefill], services_s: Sequence[float], share: float) -> Postponed:
        """With the prompts, in order of arrival, that came since; each is worth its share of credit."""
        fresh_s: list[float] = []
        for position in range(len(longs) - 1, -1, -1):
            if longs[position].arrival_s <= self.seen_s:
                break
            fresh_s.append(services_s[position])
        if not fresh_s:
            return self
        return Postponed(
            longs[-1].arrival_s,
            min(self.credit + share * len(fresh_s), credit_most(share)),
            _known(self.gone_ids, longs),
            _known(self.started_ids, longs),
            self.services.after(fresh_s[::-1]),
        )

    def candidates(
        self, longs: Sequence[WaitingPrefill], services_s: Sequence[float], share: float
    ) -> list[int]:
        """Positions of the largest prompts that the budget suffices for."""
        if self.credit < 1.0:
            return []
        least_s = self.services.quantile(max(0.0, 1.0 - GIANTS * share))
        large = [
            (seconds, -position)
            for position, seconds in enumerate(services_s)
            if seconds >= least_s and not self._is_settled(longs[position].request_id)
        ]
        return [-position for _, position in nlargest(int(self.credit), large)]

    def _is_settled(self, request_id: str) -> bool:
        return request_id in self.gone_ids or request_id in self.started_ids

    def postpone(self, request_ids: Collection[str]) -> Postponed:
        """Spends one each: they are late now, and stay postponed."""
        if not request_ids:
            return self
        gone_ids = self.gone_ids.union(request_ids)
        return replace(self, credit=self.credit - len(request_ids), gone_ids=gone_ids)

    def started(self, request_ids: Collection[str]) -> Postponed:
        """A part of these is computed."""
        if self.started_ids.issuperset(request_ids):
            return self
        return replace(self, started_ids=self.started_ids.union(request_ids))


def credit_most(share: float) -> float:
    """Credit that can be saved up: what a window of prompts brings."""
    return share * WINDOW


def _known(ids: frozenset[str], longs: Sequence[WaitingPrefill]) -> frozenset[str]:
    if len(ids) <= len(longs) + MOST_GONE:
        return ids
    return ids.intersection(one.request_id for one in longs)
