"""The broker's state inside one process: the default on one machine, and the tests' reference.

It dies with the process; workers then register again. Nothing here awaits between reading and
writing, so every operation is atomic on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from twolane.core.clock import Clock
from twolane.state.records import (
    Change,
    Changes,
    Heartbeat,
    LeaseRequest,
    Position,
    Registration,
    Snapshot,
    Swept,
    copy_of,
    joining_worker,
    lease_id_of,
    lease_of,
    replaced,
    sides_of,
    status_of,
)
from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.transfer_pb2 import Lease

FEED_LIMIT = 10_000


@dataclass(slots=True)
class _Worker:
    info: WorkerInfo
    expires_s: float
    prefixes: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class _Lease:
    lease: Lease
    expires_s: float


class MemoryState:
    """BrokerState in memory."""

    def __init__(self, clock: Clock, *, first_number: int = 0, feed_limit: int = FEED_LIMIT) -> None:
        """A live broker passes its start in microseconds since 1970 as `first_number`, so that
        incarnations and fences grow over its restarts too."""
        self._clock = clock
        self._last_number = first_number
        self._generation = str(first_number)
        self._workers: dict[str, _Worker] = {}
        self._leases: dict[str, _Lease] = {}
        self._feed: deque[Change] = deque(maxlen=feed_limit)
        self._sequence = 0
        self._changed = asyncio.Event()
        self._leader = ("", 0.0)

    async def register(self, worker: WorkerInfo, prefixes: Collection[bytes], ttl_s: float) -> Registration:
        """See BrokerState."""
        for other in self._living():
            same_model = other.info.fingerprint.model == worker.fingerprint.model
            if other.info.worker_id == worker.worker_id or not same_model:
                continue
            if other.info.fingerprint != worker.fingerprint:
                return Registration(0, copy_of(other.info))
        info, held = joining_worker(worker), worker.incarnation
        known = self._workers.get(worker.worker_id)
        if held and (known is None or known.info.incarnation == held):
            info.incarnation = held
            self._last_number = max(self._last_number, held)
        else:
            self._drop_leases_of(worker.worker_id)
            info.incarnation = self._next_number()
        self._workers[info.worker_id] = _Worker(info, self._clock() + ttl_s, set(prefixes))
        self._announce(Change(info.worker_id, copy_of(info), frozenset(prefixes)))
        return Registration(info.incarnation)

    async def heartbeat(self, beat: Heartbeat, ttl_s: float) -> bool:
        """See BrokerState."""
        worker = self._workers.get(beat.worker_id)
        if worker is None or worker.info.incarnation != beat.incarnation:
            return False
        worker.expires_s = self._clock() + ttl_s
        worker.prefixes.update(beat.added)
        worker.prefixes.difference_update(beat.removed)
        before, status = copy_of(worker.info), status_of(beat.status)
        worker.info.ClearField("load")
        worker.info.role, worker.info.lane, worker.info.draining = status.role, status.lane, status.draining
        worker.info.load.CopyFrom(status.load)
        if worker.info != before or beat.added or beat.removed:
            change = Change(beat.worker_id, copy_of(worker.info), None, beat.added, beat.removed)
            self._announce(change)
        return True

    async def deregister(self, worker_id: str, incarnation: int) -> bool:
        """See BrokerState."""
        worker = self._find(worker_id)
        if worker is None or worker.info.incarnation != incarnation:
            return False
        self._drop_leases_of(worker_id)
        self._drop_worker(worker_id)
        return True

    async def workers(self) -> list[WorkerInfo]:
        """See BrokerState."""
        return sorted((copy_of(worker.info) for worker in self._living()), key=lambda info: info.worker_id)

    async def find_workers(self, worker_ids: Sequence[str]) -> dict[str, WorkerInfo]:
        """See BrokerState."""
        found = ((worker_id, self._find(worker_id)) for worker_id in worker_ids)
        return {worker_id: copy_of(worker.info) for worker_id, worker in found if worker is not None}

    async def prefixes(self, worker_id: str) -> frozenset[bytes]:
        """See BrokerState."""
        worker = self._find(worker_id)
        return frozenset() if worker is None else frozenset(worker.prefixes)

    async def prefix_entries(self) -> int:
        """See BrokerState."""
        return sum(len(worker.prefixes) for worker in self._living())

    async def grant_lease(self, request: LeaseRequest, ttl_s: float) -> Lease:
        """See BrokerState."""
        self._check_incarnation("owner", request.owner_id, request.owner_incarnation)
        self._check_incarnation("writer", request.writer_id, request.writer_incarnation)
        fence = self._next_number()
        lease = lease_of(request, ttl_s)
        lease.fence, lease.lease_id = fence, lease_id_of(fence)
        self._leases[lease.lease_id] = _Lease(lease, self._clock() + ttl_s)
        return copy_of(lease)

    async def renew_leases(
        self, owner_id: str, owner_incarnation: int, lease_ids: Sequence[str], ttl_s: float
    ) -> list[str]:
        """See BrokerState."""
        now, gone = self._clock(), []
        for lease_id in lease_ids:
            entry = self._owned(lease_id, owner_id, owner_incarnation)
            if entry is None or entry.expires_s <= now:
                gone.append(lease_id)
            else:
                entry.expires_s = now + ttl_s
        return gone

    async def adopt_lease(self, lease: Lease, ttl_s: float) -> bool:
        """See BrokerState."""
        for part, worker_id, incarnation in sides_of(lease):
            worker = self._find(worker_id)
            if worker is None:
                return False
            if worker.info.incarnation != incarnation:
                raise replaced(part, worker_id, incarnation, worker.info.incarnation)
        self._last_number = max(self._last_number, lease.fence)
        self._leases[lease.lease_id] = _Lease(copy_of(lease), self._clock() + ttl_s)
        return True

    async def release_leases(self, owner_id: str, owner_incarnation: int, lease_ids: Sequence[str]) -> int:
        """See BrokerState."""
        owned = {i for i in lease_ids if self._owned(i, owner_id, owner_incarnation) is not None}
        for lease_id in owned:
            del self._leases[lease_id]
        return len(owned)

    async def leases(self) -> list[Lease]:
        """See BrokerState."""
        now = self._clock()
        out = [copy_of(entry.lease) for entry in self._leases.values() if entry.expires_s > now]
        return sorted(out, key=lambda lease: lease.fence)

    async def sweep(self) -> Swept:
        """See BrokerState."""
        now = self._clock()
        expired = [lease_id for lease_id, entry in self._leases.items() if entry.expires_s <= now]
        for lease_id in expired:
            del self._leases[lease_id]
        gone = [worker_id for worker_id, worker in self._workers.items() if worker.expires_s <= now]
        for worker_id in gone:
            self._drop_worker(worker_id)
        return Swept(tuple(expired), tuple(gone), len(self._leases))

    async def lead(self, holder: str, ttl_s: float) -> bool:
        """See BrokerState."""
        now = self._clock()
        leader, until_s = self._leader
        if leader != holder and until_s > now:
            return False
        self._leader = (holder, now + ttl_s)
        return True

    async def snapshot(self) -> Snapshot:
        """See BrokerState."""
        known = self._workers
        return Snapshot(
            Position(self._generation, self._sequence),
            {worker_id: copy_of(worker.info) for worker_id, worker in known.items()},
            {worker_id: frozenset(worker.prefixes) for worker_id, worker in known.items()},
        )

    async def changes(self, after: Position, wait_s: float) -> Changes | None:
        """See BrokerState."""
        if after.generation == self._generation and after.sequence == self._sequence:
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except TimeoutError:
                return Changes((), after)
        missing = self._sequence - after.sequence
        if after.generation != self._generation or missing < 0 or missing > len(self._feed):
            return None
        items = tuple(self._feed)[len(self._feed) - missing :]
        return Changes(items, Position(self._generation, self._sequence))

    async def close(self) -> None:
        """See BrokerState."""

    def _living(self) -> list[_Worker]:
        now = self._clock()
        return [worker for worker in self._workers.values() if worker.expires_s > now]

    def _find(self, worker_id: str) -> _Worker | None:
        worker = self._workers.get(worker_id)
        return worker if worker is not None and worker.expires_s > self._clock() else None

    def _owned(self, lease_id: str, owner_id: str, owner_incarnation: int) -> _Lease | None:
        entry = self._leases.get(lease_id)
        if entry is None or entry.lease.owner_id != owner_id:
            return None
        return entry if entry.lease.owner_incarnation == owner_incarnation else None

    def _check_incarnation(self, part: str, worker_id: str, incarnation: int) -> None:
        worker = self._find(worker_id)
        actual = 0 if worker is None else worker.info.incarnation
        if not actual or actual != incarnation:
            raise replaced(part, worker_id, incarnation, actual)

    def _drop_worker(self, worker_id: str) -> None:
        del self._workers[worker_id]
        self._announce(Change(worker_id, None))

    def _drop_leases_of(self, worker_id: str) -> None:
        kept = self._leases.items()
        self._leases = {i: e for i, e in kept if worker_id not in (e.lease.owner_id, e.lease.writer_id)}

    def _next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def _announce(self, change: Change) -> None:
        self._feed.append(change)
        self._sequence += 1
        self._changed.set()
        self._changed = asyncio.Event()
