"""Rollouts under every order of events: something whole always serves, and revisions end in order."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.operator.objects import World, model_deployment
from twolane.operator.observed import Count, RevisionState
from twolane.operator.rollout import Target, Wanted, retire, step

POOLS = ("prefill-short", "prefill-long", "decode")
sizes = st.fixed_dictionaries({pool: st.integers(1, 5) for pool in POOLS})


def _running(revision: str, pools: dict[str, int], routers: int) -> RevisionState:
    counts = {pool: Count(number, number, number) for pool, number in pools.items()}
    return RevisionState(revision, counts, Count(routers, routers, routers), Count(1, 1, 1))


def _asked(state: RevisionState, target: Target) -> RevisionState:
    """The state right after the Deployments were told; no pod has followed yet."""
    pools = {
        pool: replace(state.pools.get(pool, Count()), asked=number) for pool, number in target.pools.items()
    }
    router, broker = replace(state.router, asked=target.routers), replace(state.broker, asked=target.brokers)
    return RevisionState(state.revision, pools, router, broker)


def _move(count: Count, by: int) -> Count:
    """One pod follows: 0 starts or ends one, 1 makes one ready, 2 lets an ending one go at once."""
    if count.exist > count.asked:
        exist = count.exist - 1
        return Count(count.asked, exist, min(count.ready, exist))
    if count.exist < count.asked and by != 1:
        return replace(count, exist=count.exist + 1)
    return replace(count, ready=min(count.exist, count.ready + 1))


def _follow(state: RevisionState, draws: list[int]) -> RevisionState:
    """Some pods follow; the routers are ready only when workers of their revision are."""
    pools = {
        pool: _move(count, draws[index % len(draws)])
        for index, (pool, count) in enumerate(state.pools.items())
    }
    broker = _move(state.broker, draws[0])
    router = _move(state.router, draws[-1])
    moved = RevisionState(state.revision, pools, router, broker)
    return moved if moved.alive else replace(moved, router=replace(router, ready=0))


def _serves(state: RevisionState) -> bool:
    return state.alive and state.router.ready > 0 and state.broker.exist > 0


@given(
    old=sizes,
    new=sizes,
    routers=st.integers(1, 3),
    surge=st.integers(1, 3),
    draws=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=12),
)
def test_a_rolling_change_never_serves_with_less(
    old: dict[str, int], new: dict[str, int], routers: int, surge: int, draws: list[list[int]]
) -> None:
    """At every moment a whole revision serves, with no fewer usable workers than before and after."""
    wanted = Wanted("b", new, routers, 1, "Rolling", surge)
    states = {"a": _running("a", old, routers)}
    # Whatever else is drawn, pods do start and do become ready.
    draws = [*draws, [0], [1]]
    for turn in range(600):
        for revision, target in step(wanted, states).items():
            if target.remove:
                del states[revision]
            else:
                states[revision] = _asked(states.get(revision, RevisionState(revision)), target)
        states = {name: _follow(state, draws[turn % len(draws)]) for name, state in states.items()}
        assert any(_serves(state) for state in states.values()), states
        for pool in POOLS:
            # What counts is a worker that a router of its own revision can pair.
            usable = sum(state.pools[pool].ready for state in states.values() if _serves(state))
            assert usable >= min(old[pool], new[pool]), (pool, states)
        if states == {"b": _running("b", new, routers)}:
            return
    raise AssertionError(f"the change did not end: {states}")


@given(old=sizes, size=sizes, surge=st.integers(1, 3), ready=st.integers(0, 5))
def test_a_pool_never_asks_for_more_than_its_count_and_the_surge(
    old: dict[str, int], size: dict[str, int], surge: int, ready: int
) -> None:
    """Devices beyond the count are bounded, but for the one with which a shrinking pool begins."""
    new = {pool: Count(min(ready, n), min(ready, n), min(ready, n)) for pool, n in size.items()}
    states = {"a": _running("a", old, 1), "b": RevisionState("b", new, Count(1, 1, 1), Count(1, 1, 1))}
    targets = step(Wanted("b", size, 1, 1, "Rolling", surge), states)
    for pool, number in size.items():
        grows = targets["b"].pools[pool] > new[pool].asked
        held = states["a"].pools[pool].exist
        assert not grows or targets["b"].pools[pool] + held <= max(number + surge, held + 1)


def test_both_revisions_keep_the_ratio_of_their_pools() -> None:
    """Six prefill and two decode workers: neither revision ever has workers of one role that idle."""
    size = {"prefill": 6, "decode": 2}
    wanted = Wanted("b", size, 2, 1, "Rolling", 1)
    states = {"a": _running("a", size, 2)}
    seen: list[list[tuple[int, ...]]] = []
    for _ in range(200):
        for revision, target in step(wanted, states).items():
            if target.remove:
                del states[revision]
            else:
                states[revision] = _asked(states.get(revision, RevisionState(revision)), target)
        counts = [tuple(c.asked for c in state.pools.values()) for state in states.values()]
        if not seen or seen[-1] != counts:
            seen.append(counts)
        states = {name: _follow(state, [0]) for name, state in states.items()}
        states = {name: _follow(state, [1]) for name, state in states.items()}
        if set(states) == {"b"} and states["b"].ready == 8:
            break
    for counts in seen:
        for prefill, decode in counts:
            # A pool may be one worker ahead of what the other is worth.
            assert prefill <= 3 * decode
            assert decode <= -(-prefill // 3) + 1
    assert set(states) == {"b"}


def test_routers_that_hold_come_only_with_their_workers() -> None:
    """Ready without workers, they would keep requests waiting that the old revision can serve."""
    wanted = Wanted("b", {"decode": 2}, 2, 1, "Rolling", 1, holds=True)
    states = {"a": _running("a", {"decode": 2}, 2)}
    targets = step(wanted, states)
    assert (targets["b"].routers, targets["b"].pools) == (0, {"decode": 1})
    assert targets["a"].routers == 2
    states["b"] = RevisionState("b", {"decode": Count(1, 1, 1)}, Count(0, 0, 0), Count(1, 1, 1))
    assert step(wanted, states)["b"].routers == 1


def test_a_sleeping_model_changes_without_a_gap() -> None:
    """The old routers stay until the new ones can hold what comes, and then go first."""
    wanted = Wanted("b", {"decode": 0}, 2, 1, "Rolling", 1, holds=True)
    states = {"a": _running("a", {"decode": 0}, 2)}
    targets = step(wanted, states)
    assert (targets["a"].routers, targets["b"].routers) == (2, 2)
    states["b"] = RevisionState("b", {"decode": Count()}, Count(2, 2, 2), Count(1, 1, 1))
    assert step(wanted, states)["a"].routers == 0


def test_a_model_that_wakes_while_it_changes_has_routers_all_the_time() -> None:
    """No worker of either revision serves: the new routers start at once, the old ones wait for them."""
    wanted = Wanted("b", {"decode": 1}, 1, 1, "Rolling", 1, holds=True)
    asleep = RevisionState("a", {"decode": Count(0, 0, 0)}, Count(1, 1, 1), Count(1, 1, 1))
    targets = step(wanted, {"a": asleep})
    assert (targets["a"].routers, targets["b"].routers) == (1, 1)
    new = RevisionState("b", {"decode": Count(1, 1, 0)}, Count(1, 1, 1), Count(1, 1, 1))
    assert step(wanted, {"a": asleep, "b": new})["a"].routers == 0


def test_recreate_ends_the_old_revision_before_the_new_one_starts() -> None:
    """A cluster without a spare device can still change."""
    wanted = Wanted("b", {"decode": 2}, 1, 1, "Recreate")
    states = {"a": _running("a", {"decode": 2}, 1)}
    assert step(wanted, states) == {"a": Target({"decode": 2}, 0, 1)}
    states = {"a": RevisionState("a", {"decode": Count(2, 2, 2)}, Count(0, 0, 0), Count(1, 1, 1))}
    assert step(wanted, states) == {"a": Target({"decode": 0}, 0, 1)}
    states = {"a": RevisionState("a", {"decode": Count(0, 0, 0)}, Count(0, 0, 0), Count(1, 1, 1))}
    assert step(wanted, states) == {
        "a": Target({"decode": 0}, 0, 0, remove=True),
        "b": Target({"decode": 2}, 1, 1),
    }


def test_recreate_with_a_hold_has_routers_all_the_time() -> None:
    """New routers come first and hold requests; then the old revision ends; then new workers start."""
    wanted = Wanted("b", {"decode": 2}, 1, 1, "Recreate", holds=True)
    states = {"a": _running("a", {"decode": 2}, 1)}
    for turn in range(60):
        targets = step(wanted, states)
        for revision, target in targets.items():
            if target.remove:
                del states[revision]
            else:
                states[revision] = _asked(states.get(revision, RevisionState(revision)), target)
        old, new = states.get("a"), states.get("b", RevisionState("b"))
        # Never two sets of devices, never a moment without a router.
        assert not (old and old.pools["decode"].exist and new.pools.get("decode", Count()).asked)
        assert any(state.router.ready for state in states.values()), turn
        for name, state in states.items():
            pools = {pool: _move(count, turn % 2) for pool, count in state.pools.items()}
            router, broker = _move(state.router, turn % 2), _move(state.broker, turn % 2)
            states[name] = RevisionState(name, pools, router, broker)
        if states == {"b": _running("b", {"decode": 2}, 1)}:
            return
    raise AssertionError(f"the change did not end: {states}")


def test_routers_that_still_end_their_requests_keep_their_workers() -> None:
    """A worker is asked to end only when no router can need it."""
    state = RevisionState("a", {"decode": Count(2, 2, 2)}, Count(0, 1, 0), Count(1, 1, 1))
    assert retire(state) == Target({"decode": 2}, 0, 1)


def test_a_revision_that_never_came_up_gives_its_devices_back() -> None:
    """A mended spec must not wait for devices that the broken one holds."""
    broken = RevisionState("a", {"decode": Count(2, 2, 0)}, Count(0, 0, 0), Count(1, 1, 1))
    targets = step(Wanted("b", {"decode": 2}, 1, 1), {"a": broken})
    assert targets["a"].pools == {"decode": 0}
    assert targets["b"].pools["decode"] >= 1


def test_a_change_of_routers_alone_is_complete_once_new_ones_run() -> None:
    """They are replaced in place: a Deployment that has not seen its new template tells of the old one."""
    world = World(model_deployment())
    world.settle()
    child = world.deployment("demo-router")
    world.md["spec"]["router"] = {"maxWaiting": 7}
    world.md["metadata"]["generation"] = 2
    world.turn()
    words = f"new pods replace those of {child['metadata']['name']}"
    assert world.condition("RolloutComplete")["message"] == words
    child = world.deployment("demo-router")
    child["metadata"]["generation"], child["status"]["observedGeneration"] = 2, 1
    world.turn()
    assert world.condition("RolloutComplete")["reason"] == "Starting"
    child["status"]["observedGeneration"] = 2
    world.turn()
    assert world.condition("RolloutComplete")["status"] == "True"
