"""The feed of changes: what a follower sees, and that it learns when it has missed something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twolane.state.records import Change, Heartbeat, Position, Snapshot
from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.worker_pb2 import Load

LONG_S = 600.0
Make = Callable[..., WorkerInfo]


def name(number: int) -> bytes:
    """A 16-byte page name."""
    return number.to_bytes(16, "big")


class Follower:
    """Keeps a copy of the state by snapshot and changes, as a broker does."""

    def __init__(self, state: Any) -> None:
        self.state = state
        self.seen: list[Change] = []

    async def begin(self) -> None:
        """Takes a snapshot."""
        taken: Snapshot = await self.state.snapshot()
        self.position: Position = taken.position
        self.workers = dict(taken.workers)
        self.prefixes = {worker: set(names) for worker, names in taken.prefixes.items()}

    async def catch_up(self, sentinel: str) -> None:
        """Applies changes until the worker `sentinel` is among them."""
        async with asyncio.timeout(20):
            while not any(change.worker_id == sentinel for change in self.seen):
                changes = await self.state.changes(self.position, 1.0)
                assert changes is not None, "changes were lost"
                self.position = changes.position
                for change in changes.items:
                    self.apply(change)

    def apply(self, change: Change) -> None:
        """Brings the copy up to date."""
        self.seen.append(change)
        if change.worker is None:
            self.workers.pop(change.worker_id, None)
            self.prefixes.pop(change.worker_id, None)
            return
        self.workers[change.worker_id] = change.worker
        names = self.prefixes.setdefault(change.worker_id, set())
        if change.prefixes is not None:
            names.clear()
            names.update(change.prefixes)
        names.update(change.added)
        names.difference_update(change.removed)


async def test_a_follower_ends_with_what_the_store_holds(store: Any, make_worker: Make) -> None:
    """Joins, heartbeats, replacements and departures all arrive, in order."""
    state = store.state
    early = await state.register(make_worker("early"), [name(1)], LONG_S)
    follower = Follower(state)
    await follower.begin()
    assert follower.prefixes == {"early": {name(1)}}
    first = await state.register(make_worker("w"), [name(1), name(2)], LONG_S)
    status = WorkerInfo(load=Load(running=2))
    beat = Heartbeat("w", first.incarnation, status, added=(name(3),), removed=(name(1),))
    await state.heartbeat(beat, LONG_S)
    await state.deregister("early", early.incarnation)
    await state.register(make_worker("v"), [name(9)], LONG_S)
    await state.register(make_worker("v"), [name(8)], LONG_S)
    await state.register(make_worker("end"), [], LONG_S)
    await follower.catch_up("end")
    assert follower.workers == {worker.worker_id: worker for worker in await state.workers()}
    assert follower.prefixes == {"w": {name(2), name(3)}, "v": {name(8)}, "end": set()}


async def test_a_silent_worker_is_announced_as_gone(store: Any, make_worker: Make) -> None:
    """The sweep that removes it tells followers."""
    follower = Follower(store.state)
    await follower.begin()
    await store.state.register(make_worker("silent"), [], store.short_ttl_s)

    async def swept() -> bool:
        return bool((await store.state.sweep()).gone_workers)

    await store.until(swept)
    await store.state.register(make_worker("end"), [], LONG_S)
    await follower.catch_up("end")
    assert [change.worker is None for change in follower.seen if change.worker_id == "silent"] == [
        False,
        True,
    ]


async def test_a_heartbeat_that_changes_nothing_is_not_announced(store: Any, make_worker: Make) -> None:
    """An idle cluster is silent."""
    given = await store.state.register(make_worker("w"), [], LONG_S)
    follower = Follower(store.state)
    await follower.begin()
    same = Heartbeat("w", given.incarnation, make_worker("w"))
    assert await store.state.heartbeat(same, LONG_S)
    await store.state.register(make_worker("end"), [], LONG_S)
    await follower.catch_up("end")
    assert [change.worker_id for change in follower.seen] == ["end"]


async def test_waiting_for_changes_ends_with_the_first_one(store: Any, make_worker: Make) -> None:
    """A follower that waits long gets a change as it happens."""
    position = (await store.state.snapshot()).position
    waiting = asyncio.create_task(store.state.changes(position, 60.0))
    await asyncio.sleep(0)
    await store.state.register(make_worker("w"), [], LONG_S)
    changes = await asyncio.wait_for(waiting, 20)
    assert changes is not None
    assert [change.worker_id for change in changes.items] == ["w"]


async def test_a_wait_without_changes_returns_empty_at_the_same_place(store: Any, make_worker: Make) -> None:
    """Nothing is lost and nothing is new."""
    await store.state.register(make_worker("w"), [], LONG_S)
    position = (await store.state.snapshot()).position
    changes = await store.state.changes(position, 0.01)
    assert changes is not None
    assert (changes.items, changes.position) == ((), position)


async def test_a_follower_that_fell_too_far_behind_is_told_so(store: Any, make_worker: Make) -> None:
    """The feed keeps a bounded number of entries; a gap asks for a new snapshot."""
    given = await store.state.register(make_worker("w"), [], LONG_S)
    position = (await store.state.snapshot()).position
    for number in range(1000):
        await store.state.heartbeat(Heartbeat("w", given.incarnation, WorkerInfo(), (name(number),)), LONG_S)
    assert await store.state.changes(position, 0.01) is None


async def test_a_position_of_another_life_of_the_store_is_lost(store: Any, make_worker: Make) -> None:
    """A store that lost its data can't continue an old feed."""
    await store.state.register(make_worker("w"), [], LONG_S)
    position = (await store.state.snapshot()).position
    assert await store.state.changes(replace(position, generation="other"), 0.01) is None
    assert await store.state.changes(replace(position, sequence=position.sequence + 5), 0.01) is None
