"""The broker's state in Redis: any number of broker replicas share it, and it outlives them.

Every operation is one Lua script (redis_scripts.py). A Redis that is away is retried until the
operation's deadline; after a Redis that lost its data, workers register again and numbers still grow.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from twolane.core.prefix import HASH_BYTES
from twolane.state import redis_scripts
from twolane.state.records import (
    Change,
    Changes,
    Heartbeat,
    LeaseRequest,
    Position,
    Registration,
    Snapshot,
    Swept,
    joining_worker,
    lease_id_of,
    lease_of,
    replaced,
    sides_of,
    split_worker,
    status_of,
)
from twolane.state.redis_link import RedisLink
from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.transfer_pb2 import Lease

FEED_LIMIT = 10_000
NAMESPACE = "{twolane}"


class RedisState:
    """BrokerState in Redis."""

    def __init__(
        self,
        url: str,
        *,
        namespace: str = NAMESPACE,
        timeout_s: float = 3.0,
        feed_limit: int = FEED_LIMIT,
    ) -> None:
        """`timeout_s` bounds each operation, retries included; the namespace should hold a hash tag."""
        self._link = RedisLink(url, namespace, timeout_s, feed_limit)

    async def register(self, worker: WorkerInfo, prefixes: Collection[bytes], ttl_s: float) -> Registration:
        """See BrokerState."""
        fixed, status = split_worker(joining_worker(worker))
        fingerprint = worker.fingerprint.SerializeToString(deterministic=True)
        answer = await self._link.run(
            redis_scripts.REGISTER,
            worker.worker_id,
            _ms(ttl_s),
            worker.fingerprint.model,
            fingerprint,
            _bytes(fixed),
            _bytes(status),
            worker.incarnation,
            *prefixes,
        )
        incarnation = int(answer[0])
        return Registration(incarnation, None if incarnation else _worker(b"0", answer[1]))

    async def heartbeat(self, beat: Heartbeat, ttl_s: float) -> bool:
        """See BrokerState."""
        known = await self._link.run(
            redis_scripts.HEARTBEAT,
            beat.worker_id,
            _ms(ttl_s),
            beat.incarnation,
            _bytes(status_of(beat.status)),
            len(beat.added),
            *beat.added,
            *beat.removed,
        )
        return bool(known)

    async def deregister(self, worker_id: str, incarnation: int) -> bool:
        """See BrokerState."""
        return bool(await self._link.run(redis_scripts.DEREGISTER, worker_id, incarnation))

    async def workers(self) -> list[WorkerInfo]:
        """See BrokerState."""
        found = await self._link.run(redis_scripts.FIND)
        return sorted((_worker(item[1], item[2]) for item in found), key=lambda info: info.worker_id)

    async def find_workers(self, worker_ids: Sequence[str]) -> dict[str, WorkerInfo]:
        """See BrokerState."""
        if not worker_ids:
            return {}
        found = await self._link.run(redis_scripts.FIND, *worker_ids)
        return {item[0].decode(): _worker(item[1], item[2]) for item in found}

    async def prefixes(self, worker_id: str) -> frozenset[bytes]:
        """See BrokerState."""
        if worker_id not in await self.find_workers([worker_id]):
            return frozenset()
        return await self._names_of(worker_id)

    async def prefix_entries(self) -> int:
        """See BrokerState."""
        return int(await self._link.run(redis_scripts.COUNT_PREFIXES))

    async def grant_lease(self, request: LeaseRequest, ttl_s: float) -> Lease:
        """See BrokerState."""
        lease = lease_of(request, ttl_s)
        outcome, number = await self._link.run(
            redis_scripts.GRANT,
            _ms(ttl_s),
            request.owner_id,
            request.owner_incarnation,
            request.writer_id,
            request.writer_incarnation,
            _bytes(lease),
        )
        if outcome == b"owner":
            raise replaced("owner", request.owner_id, request.owner_incarnation, int(number))
        if outcome == b"writer":
            raise replaced("writer", request.writer_id, request.writer_incarnation, int(number))
        return _numbered(lease, lease_id_of(int(number)), int(number))

    async def renew_leases(
        self, owner_id: str, owner_incarnation: int, lease_ids: Sequence[str], ttl_s: float
    ) -> list[str]:
        """See BrokerState."""
        gone = await self._link.run(redis_scripts.RENEW, _ms(ttl_s), owner_id, owner_incarnation, *lease_ids)
        return [lease_id.decode() for lease_id in gone]

    async def adopt_lease(self, lease: Lease, ttl_s: float) -> bool:
        """See BrokerState."""
        outcome, number = await self._link.run(
            redis_scripts.ADOPT,
            _ms(ttl_s),
            lease.owner_id,
            lease.owner_incarnation,
            lease.writer_id,
            lease.writer_incarnation,
            lease.lease_id,
            lease.fence,
            _bytes(lease),
        )
        for part, worker_id, incarnation in sides_of(lease):
            if outcome == part.encode():
                raise replaced(part, worker_id, incarnation, int(number))
        return bool(outcome == b"adopted")

    async def release_leases(self, owner_id: str, owner_incarnation: int, lease_ids: Sequence[str]) -> int:
        """See BrokerState."""
        return int(await self._link.run(redis_scripts.RELEASE, owner_id, owner_incarnation, *lease_ids))

    async def leases(self) -> list[Lease]:
        """See BrokerState."""
        found = await self._link.run(redis_scripts.LEASES)
        out = [_numbered(Lease.FromString(data), name.decode(), int(fence)) for name, fence, data in found]
        return sorted(out, key=lambda lease: lease.fence)

    async def sweep(self) -> Swept:
        """See BrokerState."""
        expired, gone, left = await self._link.run(redis_scripts.SWEEP)
        return Swept(tuple(i.decode() for i in expired), tuple(i.decode() for i in gone), int(left))

    async def lead(self, holder: str, ttl_s: float) -> bool:
        """See BrokerState."""
        return bool(await self._link.run(redis_scripts.LEAD, holder, max(1, round(ttl_s * 1000))))

    async def snapshot(self) -> Snapshot:
        """See BrokerState."""
        # The position first: what changes while the caches are read is in the feed once more.
        position = await self._position()
        found = await self._link.run(redis_scripts.FIND_UNSWEPT)
        workers = {item[0].decode(): _worker(item[1], item[2]) for item in found}
        caches = {worker_id: await self._names_of(worker_id) for worker_id in workers}
        return Snapshot(position, workers, caches)

    async def changes(self, after: Position, wait_s: float) -> Changes | None:
        """See BrokerState."""
        entries = await self._link.read_feed("changes", after.cursor, wait_s)
        if not entries:
            return await self._nothing_lost(after)
        items, position = [], after
        for cursor, entry in entries:
            sequence, generation = int(entry[b"sequence"]), entry[b"generation"].decode()
            fresh = after.sequence == 0 and not after.generation
            if sequence != position.sequence + 1 or not (fresh or generation == after.generation):
                return None
            position = Position(generation, sequence, cursor.decode())
            items.append(await self._change(entry))
        return Changes(tuple(items), position)

    async def close(self) -> None:
        """See BrokerState."""
        await self._link.close()

    async def _names_of(self, worker_id: str) -> frozenset[bytes]:
        return frozenset(await self._link.members(f"prefix:{worker_id}"))

    async def _position(self) -> Position:
        generation, sequence, cursor = await self._link.run(redis_scripts.POSITION)
        return Position(generation.decode(), int(sequence), cursor.decode())

    async def _nothing_lost(self, after: Position) -> Changes | None:
        now = await self._position()
        if (now.generation, now.sequence) == (after.generation, after.sequence):
            return Changes((), after)
        # Entries that came after the wait are read by the next call; entries that never come are lost.
        if now.generation == after.generation and _stamp(now.cursor) > _stamp(after.cursor):
            return Changes((), after)
        return None

    async def _change(self, entry: dict[bytes, bytes]) -> Change:
        if b"gone" in entry:
            return Change(entry[b"gone"].decode(), None)
        worker = _worker(entry[b"incarnation"], entry[b"info"])
        if b"joined" in entry:
            # Read late, so it may hold later changes already; those come again and do no harm.
            return Change(worker.worker_id, worker, await self._names_of(worker.worker_id))
        return Change(worker.worker_id, worker, None, _names(entry[b"added"]), _names(entry[b"removed"]))


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def _worker(incarnation: bytes, data: bytes) -> WorkerInfo:
    # Two serialized messages in a row parse as their merge.
    worker = WorkerInfo.FromString(data)
    worker.incarnation = int(incarnation)
    return worker


def _numbered(lease: Lease, lease_id: str, fence: int) -> Lease:
    lease.fence, lease.lease_id = fence, lease_id
    return lease


def _names(packed: bytes) -> tuple[bytes, ...]:
    return tuple(packed[i : i + HASH_BYTES] for i in range(0, len(packed), HASH_BYTES))


def _stamp(cursor: str) -> tuple[int, int]:
    milliseconds, _, number = (cursor or "0-0").partition("-")
    return int(milliseconds), int(number)
