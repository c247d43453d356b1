"""Keeps the store up to date: for each kind one list, then a watch from there, and again when it must.

The leader runs it beside the reconciler. An expired watch begins anew with a list; so does every watch once
in a while, as a net under what nobody foresaw.
"""

from __future__ import annotations

import asyncio
import logging
import random

from twolane.operator.cluster import Cluster, ClusterError
from twolane.operator.names import MANAGER, MODEL_DEPLOYMENT, MODEL_LABEL
from twolane.operator.store import KINDS, Replacement

log = logging.getLogger(__name__)

RELIST_S = 1800.0
"""How long a watch goes on at most without a list."""
WATCH_S = 290
"""How long one request of a watch lasts at most."""
ABSENT_S = 30.0
"""How soon a kind that the cluster does not know is asked for again."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
OURS = f"app.kubernetes.io/managed-by={MANAGER},{MODEL_LABEL}"
"""Labels of everything that the operator makes."""


class Watches:
    """The watches of all kinds, in some namespaces or in all."""

    def __init__(
        self,
        cluster: Cluster,
        namespaces: list[str],
        kinds: tuple[str, ...] = KINDS,
        pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._streams = [
            _Watch(cluster, kind, place, pause_s) for kind in kinds for place in namespaces or [""]
        ]
        self._cluster = cluster

    async def run(self) -> None:
        """Lists and watches until cancelled; the store begins empty."""
        self._cluster.store.clear()
        async with asyncio.TaskGroup() as group:
            for stream in self._streams:
                group.create_task(stream.run())

    async def complete(self) -> None:
        """Returns once every kind has been listed: before that nothing may be decided."""
        for stream in self._streams:
            await stream.listed.wait()


class _Watch:
    """One kind in one place.

    Attributes:
        listed: set once a list was read.
    """

    def __init__(self, cluster: Cluster, kind: str, namespace: str, pause_s: float) -> None:
        self._cluster = cluster
        self._kind = kind
        self._namespace = namespace
        self._selector = "" if kind == MODEL_DEPLOYMENT else OURS
        self._first_pause_s = pause_s
        self._failures = 0
        self.listed = asyncio.Event()

    async def run(self) -> None:
        """Never returns."""
        while True:
            try:
                version = await self._list()
                await self._follow(version, _now() + RELIST_S * random.uniform(0.8, 1.2))
            except ClusterError as error:
                await self._pause(error)

    async def _list(self) -> str:
        """Reads everything and returns as of which version; waits while the cluster has no such kind."""
        while True:
            try:
                version = await self._replace()
            except ClusterError as error:
                if error.status != 404:
                    raise
                # There is none of it.
                self._cluster.store.replace(self._kind, self._namespace, "0").finish()
                version = ""
            self.listed.set()
            if version:
                return version
            await asyncio.sleep(ABSENT_S)

    async def _replace(self) -> str:
        taken: Replacement | None = None
        async for page in self._cluster.pages(self._kind, self._namespace, self._selector):
            if taken is None:
                taken = self._cluster.store.replace(self._kind, self._namespace, page.version)
            taken.take(page.items)
        assert taken is not None
        taken.finish()
        return taken.version

    async def _follow(self, version: str, until: float) -> None:
        """Watches from a version on; returns when another list is due."""
        while (left_s := until - _now()) > 0:
            began = _now()
            try:
                version = await self._watch(version, max(1, min(WATCH_S, int(left_s))))
            except _Interrupted as broken:
                version = broken.version
                if not broken.may_go_on:
                    raise broken.error from broken
                await self._pause(broken.error)
                continue
            if _now() - began < self._first_pause_s:
                # It should have lasted minutes.
                await asyncio.sleep(self._first_pause_s)

    async def _watch(self, version: str, limit_s: int) -> str:
        """One request; returns the version it got to."""
        store = self._cluster.store
        try:
            async for event in self._cluster.watch(
                self._kind, self._namespace, self._selector, version, limit_s
            ):
                body = event["object"]
                if event["type"] == "DELETED":
                    store.remove(body)
                elif event["type"] != "BOOKMARK":
                    store.put(body)
                version = body["metadata"]["resourceVersion"]
                store.reach(self._kind, self._namespace, version)
                self._failures = 0
        except ClusterError as error:
            raise _Interrupted(error, version) from error
        return version

    async def _pause(self, error: ClusterError) -> None:
        """Waits as long as the API server asks for, and twice as long with each failure in a row."""
        self._failures += 1
        longest_s = min(self._first_pause_s * 2 ** min(self._failures - 1, 16), LONGEST_PAUSE_S)
        pause_s = max(longest_s * random.uniform(0.5, 1.0), error.retry_after_s)
        if error.status == 410:
            log.info("watch expired; listed anew", extra={"kind": self._kind})
        elif error.status:
            words = {"kind": self._kind, "status": error.status, "reason": str(error), "pause_s": pause_s}
            log.warning("watch refused", extra=words)
        await asyncio.sleep(pause_s)


class _Interrupted(Exception):
    """A watch ended by an error, after it had told of everything up to a version."""

    def __init__(self, error: ClusterError, version: str) -> None:
        super().__init__(str(error))
        self.error = error
        self.version = version

    @property
    def may_go_on(self) -> bool:
        """Whether the next watch may begin where this one ended: it broke off, or the server has no time."""
        return self.error.status in (0, 429)


def _now() -> float:
    return asyncio.get_running_loop().time()
