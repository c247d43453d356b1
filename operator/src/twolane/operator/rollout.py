"""How many pods of each revision should run now: one step of a rollout, or of the end of everything.

A revision is complete in itself: its workers know only its own broker, and so never meet workers of
another. The steps keep at least one old revision whole until the new one has taken over, and keep both
in the ratio of their pools meanwhile, so that neither has workers of one role that wait for the other.
The plan calls it with fresh counts each time; it remembers nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor
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
        holds: routers are ready without workers, since they hold requests.
        soaking: one pair of the old revision stays though the new one could do without.
    """

    revision: str
    pools: Mapping[str, int]
    routers: int
    brokers: int
    strategy: Literal["Rolling", "Recreate"] = "Rolling"
    max_surge: int = 1
    holds: bool = False
    soaking: bool = False


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


def fall_back(wanted: Wanted, states: Mapping[str, RevisionState]) -> dict[str, Target]:
    """Returns to the wanted revision, whose objects are still there: it grows back, all others end.

    Their routers end first, so that requests go nowhere else from this moment on.
    """
    back = states[wanted.revision]
    serves = back.alive and back.router.ready > 0
    targets = {
        revision: retire(state) if serves else _as_it_is(state)
        for revision, state in states.items()
        if revision != wanted.revision
    }
    return targets | {wanted.revision: Target(wanted.pools, wanted.routers, back.broker.asked)}


def _as_it_is(state: RevisionState) -> Target:
    asked = {pool: count.asked for pool, count in state.pools.items()}
    return Target(asked, state.router.asked, state.broker.asked)


def step(wanted: Wanted, states: Mapping[str, RevisionState]) -> dict[str, Target]:
    """Targets of the wanted revision and of every other that still has something."""
    new = states.get(wanted.revision, RevisionState(wanted.revision))
    old = [state for revision, state in states.items() if revision != wanted.revision]
    final = Target(wanted.pools, wanted.routers, wanted.brokers)
    if not old:
        return {wanted.revision: final}
    asleep = not any(wanted.pools.values())
    if wanted.strategy == "Recreate" or asleep:
        return _replace(wanted, new, old, final)
    if has_taken_over(wanted, new) and not wanted.soaking:
        return {state.revision: retire(state) for state in old} | {wanted.revision: final}
    return _roll(wanted, new, old)


def _replace(
    wanted: Wanted, new: RevisionState, old: list[RevisionState], final: Target
) -> dict[str, Target]:
    """Old workers end before new ones start; routers that hold come first, so that no request is lost."""
    front = replace(final, pools=dict.fromkeys(wanted.pools, 0))
    if wanted.holds and new.router.ready < wanted.routers:
        return {state.revision: _as_it_is(state) for state in old} | {wanted.revision: front}
    targets = {state.revision: retire(state) for state in old}
    if all(target.remove for target in targets.values()) or not any(wanted.pools.values()):
        return targets | {wanted.revision: final}
    return targets | ({wanted.revision: front} if wanted.holds else {})


def has_taken_over(wanted: Wanted, new: RevisionState) -> bool:
    """Whether all of a new revision serves."""
    counts = [(new.pools.get(pool, Count()).ready, number) for pool, number in wanted.pools.items()]
    return all(ready >= number for ready, number in counts) and new.router.ready >= wanted.routers


def _roll(wanted: Wanted, new: RevisionState, old: list[RevisionState]) -> dict[str, Target]:
    # The revision that serves keeps its workers; one that never came up gives its devices back first.
    keeper = max(old, key=lambda state: (state.alive, state.ready))
    # New workers replace old ones only once requests can reach them.
    serving = new.alive and new.router.ready > 0 and new.broker.ready > 0
    ready = {pool: new.pools.get(pool, Count()).ready if serving else 0 for pool in wanted.pools}
    share = _share(wanted, ready)
    targets = {
        wanted.revision: Target(
            _grown(wanted, new, old), _routers(wanted, new, keeper, share), wanted.brokers
        )
    }
    for state in old:
        if wanted.holds and not new.router.ready:
            # Even one without workers holds what comes.
            targets[state.revision] = _kept(wanted, state, share, state.router.asked)
        elif state is not keeper or not state.ready:
            targets[state.revision] = retire(state)
        else:
            targets[state.revision] = _kept(wanted, state, share, max(1, wanted.routers - new.router.ready))
    return targets


def _share(wanted: Wanted, workers: Mapping[str, int]) -> Fraction:
    """The share of a whole revision that so many workers are: that of the pool that is furthest behind."""
    shares = [Fraction(workers[pool], number) for pool, number in wanted.pools.items() if number]
    return min([Fraction(1), *shares]) if shares else Fraction(0)


def _routers(wanted: Wanted, new: RevisionState, keeper: RevisionState, share: Fraction) -> int:
    """Routers of the new revision: as many as its share of the workers is worth."""
    if wanted.holds and not new.alive and keeper.alive:
        # Ready without workers, they would hold requests that others can serve.
        return new.router.asked
    return min(max(1, new.router.asked, round(wanted.routers * share)), wanted.routers)


def _kept(wanted: Wanted, state: RevisionState, share: Fraction, routers: int) -> Target:
    """What an old revision keeps while the new one has a share of its workers ready: the rest, in ratio."""
    pools = {}
    for pool, count in state.pools.items():
        number = wanted.pools.get(pool)
        rest = count.asked if number is None else max(number - floor(number * share), 1)
        pools[pool] = min(count.asked, rest)
    return Target(pools, min(state.router.asked, routers), state.broker.asked)


def _grown(wanted: Wanted, new: RevisionState, old: list[RevisionState]) -> dict[str, int]:
    """Workers of the new revision: as many as there is room for in every pool, in ratio."""
    room = {}
    for pool, number in wanted.pools.items():
        held = sum(state.pools.get(pool, Count()).exist for state in old)
        # At least one: a pool that shrinks at the same time must still begin.
        room[pool] = max(1, number + wanted.max_surge - held)
    share = _share(wanted, room)
    grown = {}
    for pool, number in wanted.pools.items():
        fair = min(room[pool], ceil(number * share))
        grown[pool] = min(number, max(fair, new.pools.get(pool, Count()).asked))
    return grown
