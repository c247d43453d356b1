"""The contract of the broker's state; memory.py and redis.py keep it, one test suite checks both.

Every operation is atomic. Times are seconds to live, measured by the store. Adapters raise
Unavailable when the store can't be reached within their deadline.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from twolane.state.records import (
    Changes,
    Heartbeat,
    LeaseRequest,
    Position,
    Registration,
    Snapshot,
    Swept,
)
from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.transfer_pb2 import Lease


class BrokerState(Protocol):
    """Workers, their prefix caches, leases, and a feed of what changed.

    A worker lives until its time to live has passed; it is removed, and reported as gone, by the next
    sweep.
    """

    async def register(self, worker: WorkerInfo, prefixes: Collection[bytes], ttl_s: float) -> Registration:
        """Lets a worker in under a new incarnation, greater than any given before to anyone.

        An older incarnation of the same id is replaced: its prefix cache and every lease it owns or
        writes under are dropped. A worker whose fingerprint differs from that of another living worker
        of its model is refused.

        A worker that names its incarnation comes back and keeps it, with its leases, unless another
        incarnation has registered under its id since; 0 stands for a process that has just started.
        """
        ...

    async def heartbeat(self, beat: Heartbeat, ttl_s: float) -> bool:
        """Prolongs a worker's life and applies its changes; False: no such incarnation.

        One that came too late still counts as long as no sweep has removed the worker: a store that was
        held up must not lose everybody.
        """
        ...

    async def deregister(self, worker_id: str, incarnation: int) -> bool:
        """Lets a worker out and drops its leases; False (and nothing done) for another incarnation."""
        ...

    async def workers(self) -> list[WorkerInfo]:
        """Living workers, by id."""
        ...

    async def find_workers(self, worker_ids: Sequence[str]) -> dict[str, WorkerInfo]:
        """Those of the given workers that live."""
        ...

    async def prefixes(self, worker_id: str) -> frozenset[bytes]:
        """Names in one worker's prefix cache; empty for a worker that does not live."""
        ...

    async def prefix_entries(self) -> int:
        """Names in all living workers' prefix caches, counted once per worker."""
        ...

    async def grant_lease(self, request: LeaseRequest, ttl_s: float) -> Lease:
        """Grants a lease under a fence greater than any granted before.

        Raises:
            LeaseInvalid: owner or writer does not live under the given incarnation.
        """
        ...

    async def renew_leases(
        self, owner_id: str, owner_incarnation: int, lease_ids: Sequence[str], ttl_s: float
    ) -> list[str]:
        """Prolongs the owner's leases; returns those that are expired, unknown or not its own."""
        ...

    async def adopt_lease(self, lease: Lease, ttl_s: float) -> bool:
        """Takes a lease into the books that its owner vouches for: granted before the books were lost, or
        by the owner itself while no broker was there. Later fences are greater than its own.

        Returns:
            False, and nothing is done, when owner or writer is not registered: ask again.

        Raises:
            LeaseInvalid: owner or writer lives under another incarnation: it was replaced.
        """
        ...

    async def release_leases(self, owner_id: str, owner_incarnation: int, lease_ids: Sequence[str]) -> int:
        """Drops the owner's leases, ignores others; returns how many were dropped."""
        ...

    async def leases(self) -> list[Lease]:
        """Leases that are out, by fence."""
        ...

    async def sweep(self) -> Swept:
        """Removes expired leases and silent workers; each is reported by exactly one sweep."""
        ...

    async def snapshot(self) -> Snapshot:
        """Everything a follower needs to begin with: all workers that no sweep has removed yet."""
        ...

    async def changes(self, after: Position, wait_s: float) -> Changes | None:
        """Changes after a position, waiting up to `wait_s` for the first.

        Returns:
            The changes (none when the wait ended), or None when some are lost: take a new snapshot.
        """
        ...

    async def lead(self, holder: str, ttl_s: float) -> bool:
        """Whether `holder` leads for the next `ttl_s`: nobody else did, or it did already.

        One broker at a time must size the pools; it asks again before its time is over.
        """
        ...

    async def close(self) -> None:
        """Frees connections."""
        ...
