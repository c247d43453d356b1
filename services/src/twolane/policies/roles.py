"""How many workers serve short prefill, long prefill and decode: one controller for all groups.

The operator and the simulator ask it every few seconds. It predicts the worker-seconds per second that
each group needs and moves as many workers as the imbalance calls for, at most once per cool-down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any


class Group(Enum):
    """What a worker is for, with the lane of a prefill worker; BOTH serves both lanes."""

    SHORT = "short_prefill"
    LONG = "long_prefill"
    BOTH = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class GroupLoad:
    """One group as measured since the last decision.

    Attributes:
        workers: workers in it, those on their way to it included.
        demand: worker-seconds of work that arrived per second.
        backlog_s: worker-seconds of work that waits beyond what is normal.
    """

    workers: int
    demand: float
    backlog_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RolesView:
    """What the controller may look at."""

    groups: Mapping[Group, GroupLoad]
    memory: Any = None


@dataclass(frozen=True, slots=True)
class Move:
    """Send `workers` workers of one group to another, draining them first."""

    source: Group
    target: Group
    workers: int


@dataclass(frozen=True, slots=True)
class RolesDecision:
    """Moves to make now, and the controller's state."""

    moves: tuple[Move, ...] = ()
    memory: Any = None


@dataclass(frozen=True, slots=True)
class RolesSettings:
    """Settings of the controller.

    Attributes:
        smoothing_s: time constant over which demand is averaged.
        drain_s: seconds in which a backlog should be gone.
        hold_s: seconds for which better sizes must have been in sight before workers move.
        cool_down_s: seconds after a move in which nothing moves.
        hysteresis: the fullest group must exceed the fullest after the move by this share.
        quiet_load: with every group below this load nothing moves.
    """

    smoothing_s: float = 30.0
    drain_s: float = 10.0
    hold_s: float = 10.0
    cool_down_s: float = 15.0
    hysteresis: float = 0.25
    quiet_load: float = 0.5


@dataclass(frozen=True, slots=True)
class RolesMemory:
    """Smoothed demand per group, when it was taken, when workers moved last, since when others are better."""

    demand: Mapping[Group, float] = field(default_factory=dict)
    seen_s: float | None = None
    moved_s: float = -math.inf
    better_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class RoleController:
    """Sizes the groups so that the fullest one is as empty as can be; each keeps a worker at least."""

    settings: RolesSettings = field(default_factory=RolesSettings)

    def decide(self, now_s: float, view: RolesView) -> RolesDecision:
        """Moves workers when the best sizes were better by the hysteresis for a while, else nothing."""
        settings = self.settings
        memory: RolesMemory = view.memory or RolesMemory()
        memory = self._smoothed(now_s, view, memory)
        need = {
            group: memory.demand[group] + load.backlog_s / settings.drain_s
            for group, load in view.groups.items()
        }
        sizes = {group: load.workers for group, load in view.groups.items()}
        best = best_sizes(need, sum(sizes.values()))
        fullest, fullest_then = _fullest(need, sizes), _fullest(need, best)
        if fullest < settings.quiet_load or fullest <= (1.0 + settings.hysteresis) * fullest_then:
            return RolesDecision(memory=replace(memory, better_since_s=None))
        since_s = now_s if memory.better_since_s is None else memory.better_since_s
        if now_s - since_s < settings.hold_s or now_s - memory.moved_s < settings.cool_down_s:
            return RolesDecision(memory=replace(memory, better_since_s=since_s))
        moved = replace(memory, moved_s=now_s, better_since_s=None)
        return RolesDecision(moves_between(sizes, best), moved)

    def _smoothed(self, now_s: float, view: RolesView, memory: RolesMemory) -> RolesMemory:
        """Demand averaged with weight 1 − exp(−Δt / smoothing) for the newest; the first counts in full."""
        if memory.seen_s is None:
            share = 1.0
        else:
            share = 1.0 - math.exp(-max(0.0, now_s - memory.seen_s) / self.settings.smoothing_s)
        demand = {
            group: load.demand + (1.0 - share) * (memory.demand.get(group, load.demand) - load.demand)
            for group, load in view.groups.items()
        }
        return replace(memory, demand=demand, seen_s=now_s)


def best_sizes(need: Mapping[Group, float], workers: int) -> dict[Group, int]:
    """Sizes that make the fullest group as empty as can be, each at least 1.

    Gives one worker to each group and every further one to the group that is then the fullest, which
    is optimal for this goal.
    """
    sizes = dict.fromkeys(need, 1)
    for _ in range(workers - len(sizes)):
        fullest = max(sizes, key=lambda group: (need[group] / sizes[group], group.value))
        sizes[fullest] += 1
    return sizes


def moves_between(sizes: Mapping[Group, int], wanted: Mapping[Group, int]) -> tuple[Move, ...]:
    """The fewest worker moves from the present sizes to the wanted ones."""
    spare = {group: sizes[group] - wanted[group] for group in sizes if sizes[group] > wanted[group]}
    moves = []
    for target in sizes:
        missing = wanted[target] - sizes[target]
        for source in list(spare):
            count = min(missing, spare[source])
            if count > 0:
                moves.append(Move(source, target, count))
                spare[source] -= count
                missing -= count
    return tuple(moves)


def _fullest(need: Mapping[Group, float], sizes: Mapping[Group, int]) -> float:
    """Need per worker of the fullest group; one without workers is the fullest of all."""
    return max(need[group] / sizes[group] if sizes[group] else math.inf for group in need)
