"""How many pods of each revision should run now: one step of a rollout, or of the end of everything.

A revision is complete in itself: its workers know only its own broker, and so never meet workers of
another. The steps keep at least one old revision whole until the new one has taken over. The plan
calls it with fresh counts each time; it remembers nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from twolane.operator.observed import Count, RevisionState


@dataclass(frozen=True, slots=True)
class Wanted:
    """The end a rollout goes to.

    Attributes:
        revision: revision to run.
        pools: workers by pool.
        routers: routers.
        brokers: brokers of each revision.
        strategy: Rolling or Recreate.
        max_surge: workers of a pool beyond its count meanwhile.
    """

    revision: str
    pools: Mapping[str, int]
    routers: int
    brokers: int
    strategy: Literal["Rolling", "Recreate"] = "Rolling"
    max_surge: int = 1


@dataclass(frozen=True, slots=True)
class Target:
    """Pods one revision should have; `remove` when everything of it can be deleted."""

    pools: Mapping[str, int]
    routers: int
    brokers: int
    remove: bool = False


def retire(state: RevisionState) -> Target:
    """The next step of ending a revision: routers end their requests first, then workers, then the broker."""
    if not state.router.gone:
        asked = {pool: count.asked for pool, count in state.pools.items()}
        return Target(asked, 0, state.broker.asked)
    none = dict.fromkeys(state.pools, 0)
    if not all(count.gone for count in state.pools.values()):
        return Target(none, 0, state.broker.asked)
    return Target(none, 0, 0, remove=True)


def step(wanted: Wanted, states: Mapping[str, RevisionState]) -> dict[str, Target]:
    """Targets of the wanted revision and of every other that still has something."""
    new = states.get(wanted.revision, RevisionState(wanted.revision))
    old = [state for revision, state in states.items() if revision != wanted.revision]
    final = Target(wanted.pools, wanted.routers, wanted.brokers)
    if not old:
        return {wanted.revision: final}
    if wanted.strategy == "Recreate" or not any(wanted.pools.values()):
        targets = {state.revision: retire(state) for state in old}
        done = all(target.remove for target in targets.values())
        return targets | ({wanted.revision: final} if done or not any(wanted.pools.values()) else {})
    if _has_taken_over(wanted, new):
        return {state.revision: retire(state) for state in old} | {wanted.revision: final}
    return _roll(wanted, new, old)


def _has_taken_over(wanted: Wanted, new: RevisionState) -> bool:
    counts = [(new.pools.get(pool, Count()).ready, number) for pool, number in wanted.pools.items()]
    return all(ready >= number for ready, number in counts) and new.router.ready >= wanted.routers


def _roll(wanted: Wanted, new: RevisionState, old: list[RevisionState]) -> dict[str, Target]:
    # New workers replace old ones only once requests can reach them.
    serving = new.alive and new.router.ready > 0 and new.broker.ready > 0
    ready = {pool: new.pools.get(pool, Count()).ready if serving else 0 for pool in wanted.pools}
    grown = {pool: _grow(wanted, pool, new, old) for pool in wanted.pools}
    share = min((ready[pool] / number for pool, number in wanted.pools.items() if number), default=0.0)
    routers = max(1, new.router.asked, round(wanted.routers * share))
    targets = {wanted.revision: Target(grown, min(routers, wanted.routers), wanted.brokers)}
    room = {pool: max(number - ready[pool], 1) for pool, number in wanted.pools.items()}
    # The revision that serves keeps its workers; one that never came up gives its devices back first.
    keeper = max(old, key=lambda state: (state.alive, state.ready))
    for state in old:
        if state is not keeper or not state.ready:
            targets[state.revision] = retire(state)
            continue
        kept = {pool: min(count.asked, room.get(pool, count.asked)) for pool, count in state.pools.items()}
        left = max(1, wanted.routers - new.router.ready)
        targets[state.revision] = Target(kept, min(state.router.asked, left), state.broker.asked)
    return targets


def _grow(wanted: Wanted, pool: str, new: RevisionState, old: list[RevisionState]) -> int:
    number = wanted.pools[pool]
    held = sum(state.pools.get(pool, Count()).exist for state in old)
    # At least one: a pool that shrinks at the same time must still begin.
    room = max(1, number + wanted.max_surge - held)
    return min(number, max(room, new.pools.get(pool, Count()).asked))
