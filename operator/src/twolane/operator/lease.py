"""Who leads among the operator's replicas: a pure rule over a Lease, and the loop that follows it.

A Lease that somebody else holds may be taken once it has not changed for its whole duration by our own
clock; clocks of different machines are never compared.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from twolane.operator.cluster import Cluster, ClusterError
from twolane.operator.resources.shape import Json

log = logging.getLogger(__name__)

DURATION_S = 15.0
"""How long a leader that fell silent is waited for."""
RENEW_S = 2.0
DEADLINE_S = 10.0
"""A leader that could not renew for so long stops: before anybody else may start."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A state of the Lease and when, by our clock, it was first seen.

    Attributes:
        version: resource version.
        since_s: time.
    """

    version: str
    since_s: float


def decide(
    lease: Json | None, me: str, seen: Seen | None, now_s: float
) -> Literal["create", "take", "renew", "wait"]:
    """What a replica may do about the Lease as it is now."""
    if lease is None:
        return "create"
    holder = lease.get("spec", {}).get("holderIdentity") or ""
    if holder == me:
        return "renew"
    if not holder:
        return "take"
    unchanged_s = (
        now_s - seen.since_s if seen and seen.version == lease["metadata"]["resourceVersion"] else 0.0
    )
    duration_s = float(lease["spec"].get("leaseDurationSeconds") or DURATION_S)
    return "take" if unchanged_s > duration_s else "wait"


class Elector:
    """Holds a Lease for one replica."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, me: str) -> None:
        self._cluster = cluster
        self._place = (namespace, name)
        self._me = me
        self._seen: Seen | None = None

    async def lead(self) -> None:
        """Returns when this replica leads; waits as long as another does."""
        while not await self._attempt(DEADLINE_S):  # noqa: ASYNC110
            await asyncio.sleep(RENEW_S)
        log.info("leading", extra={"identity": self._me})

    async def keep(self) -> None:
        """Renews; returns when the lease is lost."""
        until = _now() + DEADLINE_S
        while (left := until - _now()) > 0:
            await asyncio.sleep(min(RENEW_S, left))
            # Others count from the write, which may be as early as the request.
            began = _now()
            if await self._attempt(until - began):
                until = began + DEADLINE_S
        log.error("lease lost", extra={"identity": self._me})

    async def release(self) -> None:
        """Gives the lease back, so that another replica need not wait; a failure is only logged."""
        try:
            lease = await self._cluster.get("Lease", *self._place)
            if lease and lease["spec"].get("holderIdentity") == self._me:
                await self._cluster.replace({**lease, "spec": {**lease["spec"], "holderIdentity": ""}})
        except ClusterError as error:
            log.warning("lease not given back", extra={"reason": str(error)})

    async def _attempt(self, limit_s: float) -> bool:
        """One round that ends within the limit; whether this replica leads after it."""
        try:
            async with asyncio.timeout(limit_s):
                return await self._follow()
        except (ClusterError, TimeoutError) as error:
            log.warning("lease not renewed", extra={"reason": str(error) or "no answer in time"})
            return False

    async def _follow(self) -> bool:
        lease = await self._cluster.get("Lease", *self._place)
        if lease is not None and (
            self._seen is None or self._seen.version != lease["metadata"]["resourceVersion"]
        ):
            self._seen = Seen(lease["metadata"]["resourceVersion"], _now())
        verdict = decide(lease, self._me, self._seen, _now())
        if verdict == "wait":
            return False
        if lease is None:
            await self._cluster.create(self._body({}, taken=True))
        else:
            await self._cluster.replace({**lease, **self._body(lease, taken=verdict == "take")})
        return True

    def _body(self, lease: Json, taken: bool) -> Json:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = lease.get("spec", {})
        spec = {
            **old,
            "holderIdentity": self._me,
            "leaseDurationSeconds": int(DURATION_S),
            "renewTime": now,
            "acquireTime": now if taken else old.get("acquireTime", now),
            "leaseTransitions": old.get("leaseTransitions", 0) + (1 if taken and lease else 0),
        }
        metadata = lease.get("metadata", {"namespace": self._place[0], "name": self._place[1]})
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


def _now() -> float:
    return asyncio.get_running_loop().time()
