"""Watchers of the cluster: each gets a snapshot, then every change, or a new snapshot if it is slow.

The service's Watch follows one Watcher per call; upkeep.py publishes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from twolane.broker.cluster import Cluster, Events
from twolane.broker.metrics import BrokerMetrics
from twolane.core.errors import Draining
from twolane.v1.broker_pb2 import ClusterEvent


class Watcher:
    """One follower's bounded queue of events."""

    def __init__(self, model: str, cluster: Cluster, limit: int, metrics: BrokerMetrics) -> None:
        self.model = model
        self._cluster = cluster
        self._limit = limit
        self._metrics = metrics
        self._queue: deque[ClusterEvent] = deque()
        self._behind: str | None = "first"
        self._closed = False
        self._wake = asyncio.Event()

    def push(self, events: list[ClusterEvent]) -> None:
        """Queues events; a full queue is given up for a snapshot."""
        if self._behind is None and len(self._queue) + len(events) > self._limit:
            self._behind = "slow"
        if self._behind is None:
            self._queue.extend(events)
        else:
            self._queue.clear()
        self._wake.set()

    def close(self) -> None:
        """Ends the watch after what it is sending."""
        self._closed = True
        self._wake.set()

    async def next(self) -> list[ClusterEvent]:
        """The next events to send, at least one; a snapshot first and whenever events were given up.

        Raises:
            Draining: the broker stops; watch another replica.
        """
        while self._behind is None and not self._queue and not self._closed:
            self._wake.clear()
            await self._wake.wait()
        if self._closed:
            raise Draining("the broker stops; watch again", retry_after_s=1.0)
        if self._behind is not None:
            self._metrics.snapshots.labels(self._behind).inc()
            self._behind = None
            return self._cluster.snapshot(self.model)
        events = list(self._queue)
        self._queue.clear()
        return events


class Watchers:
    """All watchers of this process."""

    def __init__(self, cluster: Cluster, limit: int, metrics: BrokerMetrics) -> None:
        self._cluster = cluster
        self._limit = limit
        self._metrics = metrics
        self._watchers: set[Watcher] = set()
        self._closed = False

    @contextmanager
    def follow(self, model: str) -> Iterator[Watcher]:
        """A watcher of one model ("": all) for as long as the block runs."""
        watcher = Watcher(model, self._cluster, self._limit, self._metrics)
        if self._closed:
            watcher.close()
        self._watchers.add(watcher)
        self._metrics.watchers.set(len(self._watchers))
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            self._metrics.watchers.set(len(self._watchers))

    def publish(self, events: Events) -> None:
        """Hands events to those whom they concern."""
        for watcher in self._watchers:
            mine = events.get(watcher.model)
            if mine:
                watcher.push(mine)

    def close(self) -> None:
        """Ends every watch, now and from now on."""
        self._closed = True
        for watcher in self._watchers:
            watcher.close()
