"""The broker's own copy of the cluster, and the events that bring a watcher's copy up to date.

upkeep.py feeds it from the state; watch.py hands its events out. Events name the net difference of
a batch, so a worker is never both joined and gone in one of them. A worker with a new incarnation
comes with its whole prefix cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from twolane.state.records import Change, Snapshot, copy_of
from twolane.v1.broker_pb2 import ClusterEvent, PrefixDelta, WorkerInfo

ALL_MODELS = ""
# About 2 MB: far below the message limit, whatever the cluster's size.
MAX_EVENT_HASHES = 100_000

Events = Mapping[str, list[ClusterEvent]]
"""Events by audience: a model's name, or ALL_MODELS."""


class Cluster:
    """Workers and prefix caches as last heard.

    Attributes:
        workers: by id.
        prefixes: names in each one's prefix cache.
    """

    def __init__(self) -> None:
        self.workers: dict[str, WorkerInfo] = {}
        self.prefixes: dict[str, set[bytes]] = {}
        self._overdue: dict[str, float] = {}

    def load(self, snapshot: Snapshot, now: float, keep_missing_s: float) -> Events:
        """Takes a snapshot over; workers missing from it go at once, or after `keep_missing_s`.

        A store that lost its data knows nobody until the workers register again: those that do within
        the time never go.
        """
        edit = _Edit(self)
        for worker_id, worker in snapshot.workers.items():
            edit.put(worker_id, worker, set(snapshot.prefixes.get(worker_id, ())))
        for worker_id in list(self.workers):
            if worker_id in snapshot.workers:
                continue
            if keep_missing_s > 0:
                self._overdue.setdefault(worker_id, now + keep_missing_s)
            else:
                edit.drop(worker_id)
        return edit.events()

    def apply(self, changes: Iterable[Change]) -> Events:
        """Takes changes over, in order."""
        edit = _Edit(self)
        for change in changes:
            if change.worker is None:
                edit.drop(change.worker_id)
            elif change.prefixes is not None:
                edit.put(change.worker_id, change.worker, set(change.prefixes))
            else:
                edit.change(change)
        return edit.events()

    def drop_overdue(self, now: float) -> Events:
        """Lets go of workers that did not come back in time after a loss of the store's data."""
        edit = _Edit(self)
        for worker_id in [worker_id for worker_id, until in self._overdue.items() if until <= now]:
            edit.drop(worker_id)
        return edit.events()

    def snapshot(self, model: str) -> list[ClusterEvent]:
        """The events a watcher of the model begins with; the first one says snapshot."""
        event = ClusterEvent(snapshot=True)
        for worker_id, worker in self.workers.items():
            if model in (ALL_MODELS, worker.fingerprint.model):
                event.workers.append(worker)
                names = self.prefixes[worker_id]
                if names:
                    event.prefixes.append(PrefixDelta(worker_id=worker_id, added=sorted(names)))
        return list(split_event(event))

    def came_back(self, worker_id: str) -> None:
        """The worker is known to live: it is no longer overdue."""
        self._overdue.pop(worker_id, None)


class _Edit:
    """Changes a cluster and remembers what was before, to name the difference at the end."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._before: dict[str, WorkerInfo | None] = {}
        # Per worker, whether a name that was touched had been there.
        self._had: defaultdict[str, dict[bytes, bool]] = defaultdict(dict)

    def put(self, worker_id: str, worker: WorkerInfo, names: set[bytes]) -> None:
        """Sets a worker and its whole prefix cache."""
        old = self._touch(worker_id)
        for name in old ^ names:
            self._had[worker_id].setdefault(name, name in old)
        self._cluster.workers[worker_id] = worker
        self._cluster.prefixes[worker_id] = names

    def change(self, change: Change) -> None:
        """Sets a worker and applies the difference of its prefix cache."""
        assert change.worker is not None
        names = self._touch(change.worker_id)
        for name in (*change.added, *change.removed):
            self._had[change.worker_id].setdefault(name, name in names)
        names.update(change.added)
        names.difference_update(change.removed)
        self._cluster.workers[change.worker_id] = change.worker
        self._cluster.prefixes[change.worker_id] = names

    def drop(self, worker_id: str) -> None:
        """Removes a worker; harmless for an unknown one."""
        old = self._touch(worker_id)
        for name in old:
            self._had[worker_id].setdefault(name, True)
        self._cluster.workers.pop(worker_id, None)
        self._cluster.prefixes.pop(worker_id, None)

    def events(self) -> Events:
        """The net difference, for each audience that has one."""
        events: defaultdict[str, ClusterEvent] = defaultdict(ClusterEvent)
        for worker_id, before in self._before.items():
            self._tell(events, worker_id, before)
        return {audience: list(split_event(event)) for audience, event in events.items()}

    def _touch(self, worker_id: str) -> set[bytes]:
        self._before.setdefault(worker_id, self._cluster.workers.get(worker_id))
        self._cluster.came_back(worker_id)
        return self._cluster.prefixes.get(worker_id, set())

    def _tell(
        self, events: defaultdict[str, ClusterEvent], worker_id: str, before: WorkerInfo | None
    ) -> None:
        after = self._cluster.workers.get(worker_id)
        old_model = None if before is None else before.fingerprint.model
        if after is None:
            for audience in () if old_model is None else (ALL_MODELS, old_model):
                events[audience].gone.append(worker_id)
            return
        model = after.fingerprint.model
        if old_model not in (None, model):
            events[str(old_model)].gone.append(worker_id)
        self._tell_audience(events, ALL_MODELS, worker_id, before)
        self._tell_audience(events, model, worker_id, before if old_model == model else None)

    def _tell_audience(
        self,
        events: defaultdict[str, ClusterEvent],
        audience: str,
        worker_id: str,
        before: WorkerInfo | None,
    ) -> None:
        after, names = self._cluster.workers[worker_id], self._cluster.prefixes[worker_id]
        if after != before:
            events[audience].workers.append(after)
        had = {} if before is None else self._had[worker_id]
        removed = [name for name, was in had.items() if was and name not in names]
        if before is None or before.incarnation != after.incarnation:
            # A new incarnation is a new worker to whoever forgets the old one: it is told everything.
            added = sorted(names)
        else:
            added = [name for name, was in had.items() if not was and name in names]
        delta = PrefixDelta(worker_id=worker_id, added=added, removed=removed)
        if delta.added or delta.removed:
            events[audience].prefixes.append(delta)


def split_event(event: ClusterEvent) -> Iterator[ClusterEvent]:
    """The event in messages of at most MAX_EVENT_HASHES hashes; workers come with the first."""
    part = ClusterEvent(snapshot=event.snapshot, workers=event.workers, gone=event.gone)
    room = MAX_EVENT_HASHES
    for delta in event.prefixes:
        for piece in _pieces(delta):
            size = len(piece.added) + len(piece.removed)
            if size > room:
                yield part
                part, room = ClusterEvent(), MAX_EVENT_HASHES
            part.prefixes.append(piece)
            room -= size
    yield part


def _pieces(delta: PrefixDelta) -> Iterator[PrefixDelta]:
    if len(delta.added) + len(delta.removed) <= MAX_EVENT_HASHES:
        yield copy_of(delta)
        return
    for start in range(0, len(delta.removed), MAX_EVENT_HASHES):
        yield PrefixDelta(worker_id=delta.worker_id, removed=delta.removed[start : start + MAX_EVENT_HASHES])
    for start in range(0, len(delta.added), MAX_EVENT_HASHES):
        yield PrefixDelta(worker_id=delta.worker_id, added=delta.added[start : start + MAX_EVENT_HASHES])
