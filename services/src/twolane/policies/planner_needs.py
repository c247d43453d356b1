"""How many workers each pool must have, and how to share workers out among pools. Pure.

A pool has a floor, under which it could not do the present work, and above it a share of requests that
will be late for any number of workers, read from the errors of its forecast. planner.py asks how many
workers keep the sum of those shares within what the goal allows, and which pool a worker helps most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twolane.policies.planner_forecast import Tail
from twolane.policies.planner_view import PoolKind

MOST_WORKERS = 10_000


@dataclass(frozen=True, slots=True)
class Need:
    """What one pool must have.

    Attributes:
        floor: workers that keep the targets under the present and the expected work, its backlog included.
        work: workers' worth of the present work.
        tail: how often the coming work will be more than expected.
        usable: share of a worker that work may fill.
        backlog: workers for the backlog.
    """

    floor: int
    work: float
    tail: Tail
    usable: float
    backlog: float = 0.0

    def late(self, workers: float) -> float:
        """Share of the pool's requests that so many workers will be too few for."""
        if workers < self.floor - 1e-9:
            return 0.5 + 0.5 * (1.0 - workers / self.floor)
        return self.tail.late(workers * self.usable)


def workers_within(needs: Mapping[PoolKind, Need], late: float, spare: float = 0.0) -> dict[PoolKind, int]:
    """The fewest workers found with which at most a share `late` of requests finds too few in any pool.

    Args:
        needs: of the pools.
        late: the share.
        spare: share of the workers that must not be needed for it.
    """
    # Below its floor no pool is within it.
    sizes = {kind: need.floor for kind, need in needs.items()}
    while sum(sizes.values()) < MOST_WORKERS:
        shares = _shares(needs, sizes, spare)
        if sum(shares.values()) <= late:
            break
        sizes[max(shares, key=lambda kind: (shares[kind], kind.value))] += 1
    return sizes


def best_split(needs: Mapping[PoolKind, Need], workers: int) -> dict[PoolKind, int]:
    """So many workers, at least one each, shared out so that the fewest requests are late."""
    floors = {kind: need.floor for kind, need in needs.items()}
    sizes = floors if sum(floors.values()) <= workers else dict.fromkeys(needs, 1)
    fullness = {kind: need.work / need.usable for kind, need in needs.items()}
    for _ in range(workers - sum(sizes.values())):
        shares = _shares(needs, sizes, 0.0)
        # Where nobody is late any more, the fullest gets the next one.
        pick = max(sizes, key=lambda kind: (shares[kind], fullness[kind] / sizes[kind], kind.value))
        sizes[pick] += 1
    return sizes


def late_with(needs: Mapping[PoolKind, Need], sizes: Mapping[PoolKind, int]) -> float:
    """Share of requests that find too few workers in any pool."""
    return sum(_shares(needs, sizes, 0.0).values())


def _shares(
    needs: Mapping[PoolKind, Need], sizes: Mapping[PoolKind, int], spare: float
) -> dict[PoolKind, float]:
    return {kind: need.late(sizes[kind] * (1.0 - spare)) for kind, need in needs.items()}
