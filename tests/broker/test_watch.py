"""Watch over a real connection: snapshot, changes, departures, models, slow watchers, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from twolane.broker.cluster import MAX_EVENT_HASHES, Cluster
from twolane.broker.metrics import BrokerMetrics
from twolane.broker.watch import Watchers
from twolane.core.errors import Draining
from twolane.rpc.channel import to_twolane_error
from twolane.state.records import Change, Position, Snapshot
from twolane.v1 import broker_pb2 as pb
from twolane.v1.types_pb2 import ROLE_DECODE

Make = Callable[..., pb.WorkerInfo]
DEADLINE_S = 20.0


def name(number: int) -> bytes:
    """A 16-byte page name."""
    return number.to_bytes(16, "big")


class Copy:
    """What a router keeps of the cluster, by the events of one watch."""

    def __init__(self, stub: Any, model: str = "") -> None:
        self.call = stub.Watch(pb.WatchRequest(model=model, watcher_id="test"))
        self.workers: dict[str, pb.WorkerInfo] = {}
        self.prefixes: dict[str, set[bytes]] = {}
        self.snapshots = 0

    async def until(self, reached: Callable[[], bool]) -> None:
        """Takes events in until the copy is as wanted."""
        async with asyncio.timeout(DEADLINE_S):
            while not reached():
                self.take(await self.call.read())

    def take(self, event: pb.ClusterEvent) -> None:
        """Applies one event as the proto comments say."""
        if event.snapshot:
            self.snapshots += 1
            self.workers.clear()
            self.prefixes.clear()
        for worker in event.workers:
            self.workers[worker.worker_id] = worker
            self.prefixes.setdefault(worker.worker_id, set())
        for worker_id in event.gone:
            del self.workers[worker_id]
            del self.prefixes[worker_id]
        for delta in event.prefixes:
            self.prefixes[delta.worker_id].update(delta.added)
            self.prefixes[delta.worker_id].difference_update(delta.removed)


async def register(running: Any, worker: pb.WorkerInfo, *numbers: int) -> int:
    hashes = [name(number) for number in numbers]
    answer = await running.stub.Register(pb.RegisterRequest(worker=worker, prefix_hashes=hashes))
    return int(answer.incarnation)


async def test_a_watcher_begins_with_a_snapshot_and_follows(running: Any, make_worker: Make) -> None:
    """Joins, status, prefix changes, replacement and departure all arrive."""
    early = await register(running, make_worker("early"), 1, 2)
    copy = Copy(running.stub)
    await copy.until(lambda: copy.prefixes == {"early": {name(1), name(2)}})
    beat = pb.HeartbeatRequest(
        worker_id="early",
        incarnation=early,
        role=ROLE_DECODE,
        draining=True,
        prefix_added=[name(3)],
        prefix_removed=[name(1)],
    )
    await running.stub.Heartbeat(beat)
    await copy.until(lambda: copy.prefixes == {"early": {name(2), name(3)}})
    assert (copy.workers["early"].role, copy.workers["early"].draining) == (ROLE_DECODE, True)
    again = await register(running, make_worker("early"), 9)
    await copy.until(lambda: copy.prefixes == {"early": {name(9)}})
    assert copy.workers["early"].incarnation == again
    await register(running, make_worker("late"), 4)
    await copy.until(lambda: "late" in copy.workers)
    await running.stub.Deregister(pb.DeregisterRequest(worker_id="early", incarnation=again))
    await copy.until(lambda: "early" not in copy.workers)
    assert copy.prefixes == {"late": {name(4)}}
    assert copy.snapshots == 1
    copy.call.cancel()


async def test_an_empty_cluster_sends_an_empty_snapshot(running: Any) -> None:
    """A router learns that nobody is there."""
    copy = Copy(running.stub)
    await copy.until(lambda: copy.snapshots == 1)
    assert copy.workers == {}
    copy.call.cancel()


async def test_a_silent_worker_is_announced_as_gone(running: Any, make_worker: Make) -> None:
    """After its time to live, by the sweep."""
    await register(running, make_worker("silent"))
    copy = Copy(running.stub)
    await copy.until(lambda: "silent" in copy.workers)
    running.clock.now_s += 1001
    await running.broker.upkeep.sweep_once()
    await copy.until(lambda: not copy.workers)
    assert running.metric("workers_lost_total") == 1
    copy.call.cancel()


async def test_a_broker_that_was_held_up_hears_workers_before_it_sweeps(
    running: Any, make_worker: Make
) -> None:
    """After a pause longer than a worker's time to live, the first sweep is skipped."""
    incarnation = await register(running, make_worker("w"))
    beat = pb.HeartbeatRequest(worker_id="w", incarnation=incarnation)
    sweep = running.broker.upkeep._sweep_unless_held_up
    running.clock.now_s += 5000
    await sweep()
    await running.stub.Heartbeat(beat)
    running.clock.now_s += 500
    await sweep()
    assert running.metric("workers_lost_total") == 0
    running.clock.now_s += 700
    await sweep()
    assert running.metric("workers_lost_total") == 1


async def test_a_watcher_of_one_model_hears_of_no_other(running: Any, make_worker: Make) -> None:
    """Not in the snapshot and not in changes; a worker that changes its model leaves."""
    await register(running, make_worker("m1"), 1)
    await register(running, make_worker("n1", model="n"), 2)
    copy = Copy(running.stub, "m")
    await copy.until(lambda: set(copy.workers) == {"m1"})
    await register(running, make_worker("n2", model="n"), 3)
    await register(running, make_worker("m2"), 4)
    await copy.until(lambda: set(copy.workers) == {"m1", "m2"})
    await register(running, make_worker("m1", model="n"), 5)
    await copy.until(lambda: set(copy.workers) == {"m2"})
    await register(running, make_worker("n1"), 6)
    await copy.until(lambda: set(copy.workers) == {"m2", "n1"})
    assert copy.prefixes == {"m2": {name(4)}, "n1": {name(6)}}
    copy.call.cancel()


async def test_metrics_show_the_cluster_and_its_watchers(running: Any, make_worker: Make) -> None:
    """Workers by role and state, prefix entries, watchers."""
    await register(running, make_worker("a"), 1, 2)
    await register(running, make_worker("b", role=ROLE_DECODE), 1)
    copy = Copy(running.stub)
    await copy.until(lambda: len(copy.workers) == 2)
    assert running.metric("workers", role="prefill", state="serving") == 1
    assert running.metric("workers", role="decode", state="serving") == 1
    assert running.metric("prefix_entries") == 3
    assert running.metric("watchers") == 1
    copy.call.cancel()
    async with asyncio.timeout(DEADLINE_S):
        while running.metric("watchers"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_stopping_broker_ends_watches_with_draining(running: Any) -> None:
    """The router is told to watch another replica."""
    copy = Copy(running.stub)
    await copy.until(lambda: copy.snapshots == 1)
    stopping = asyncio.create_task(running.broker.stop())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(DEADLINE_S):
            await copy.call.read()
    error = to_twolane_error(caught.value)
    assert isinstance(error, Draining)
    assert error.retry_after_s == 1.0
    await asyncio.wait_for(stopping, DEADLINE_S)


async def test_a_slow_watcher_gets_a_snapshot_in_place_of_what_it_missed(make_worker: Make) -> None:
    """Its queue is bounded; after the snapshot it follows changes again."""
    registry = CollectorRegistry()
    cluster = Cluster()
    watchers = Watchers(cluster, 2, BrokerMetrics(registry))
    slow = watchers.follow("")
    with slow as watcher:
        assert [event.snapshot for event in await watcher.next()] == [True]
        for number in range(5):
            worker = make_worker(f"w{number}")
            watchers.publish(cluster.apply([Change(worker.worker_id, worker, frozenset())]))
        [event] = await watcher.next()
        assert event.snapshot
        assert [worker.worker_id for worker in event.workers] == ["w0", "w1", "w2", "w3", "w4"]
        watchers.publish(cluster.apply([Change("w0", None)]))
        [event] = await watcher.next()
        assert (event.snapshot, list(event.gone)) == (False, ["w0"])
    assert registry.get_sample_value("twolane_broker_watch_snapshots_total", {"reason": "slow"}) == 1


def test_events_name_the_net_difference_of_a_batch(make_worker: Make) -> None:
    """A worker that came and went is not mentioned; one that went and came back is not gone."""
    cluster = Cluster()
    worker = make_worker("w")
    cluster.apply([Change("w", worker, frozenset({name(1), name(2)}))])
    back = make_worker("w", address="elsewhere:1")
    batch = [
        Change("passing", make_worker("passing"), frozenset({name(5)})),
        Change("w", None),
        Change("passing", None),
        Change("w", back, frozenset({name(2), name(3)})),
        Change("w", back, None, (name(4), name(6)), (name(3), name(6))),
    ]
    [event] = cluster.apply(batch)[""]
    assert not event.gone
    assert list(event.workers) == [back]
    [delta] = event.prefixes
    assert (list(delta.added), list(delta.removed)) == ([name(4)], [name(1)])


def test_a_new_incarnation_comes_with_its_whole_prefix_cache(make_worker: Make) -> None:
    """A watcher may forget a replaced worker or keep it: both end with the same names."""
    cluster = Cluster()
    cluster.apply([Change("w", make_worker("w", incarnation=1), frozenset({name(1), name(2)}))])
    [event] = cluster.apply([Change("w", make_worker("w", incarnation=2), frozenset({name(2), name(3)}))])[""]
    [delta] = event.prefixes
    assert (list(delta.added), list(delta.removed)) == ([name(2), name(3)], [name(1)])


def test_large_prefix_caches_are_split_over_events(make_worker: Make) -> None:
    """No message comes near the size limit; only the first one says snapshot."""
    cluster = Cluster()
    many = frozenset(name(number) for number in range(2 * MAX_EVENT_HASHES + 5))
    cluster.apply([Change("w", make_worker("w"), many), Change("v", make_worker("v"), frozenset({name(1)}))])
    events = cluster.snapshot("")
    assert [event.snapshot for event in events] == [True, False, False]
    assert sum(len(event.workers) for event in events) == 2
    assert sum(len(delta.added) for event in events for delta in event.prefixes) == len(many) + 1
    assert all(event.ByteSize() < 4_000_000 for event in events)


def test_workers_missing_after_a_loss_of_data_get_time_to_come_back(make_worker: Make) -> None:
    """Those that register again are never announced as gone, the others are after the grace."""
    cluster = Cluster()
    for worker_id in ("back", "dead"):
        cluster.apply([Change(worker_id, make_worker(worker_id), frozenset({name(1)}))])
    empty = Snapshot(Position("new", 0))
    assert cluster.load(empty, 100.0, 5.0) == {}
    returned = make_worker("back", incarnation=2)
    [event] = cluster.apply([Change("back", returned, frozenset({name(1), name(2)}))])[""]
    assert [list(delta.added) for delta in event.prefixes] == [[name(1), name(2)]]
    assert cluster.drop_overdue(104.9) == {}
    [event] = cluster.drop_overdue(105.0)[""]
    assert list(event.gone) == ["dead"]
    assert set(cluster.workers) == {"back"}
    [event] = cluster.load(empty, 200.0, 0.0)[""]
    assert list(event.gone) == ["back"]
