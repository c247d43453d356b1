"""Kubernetes Events about ModelDeployments: what `kubectl describe md` lists."""

from __future__ import annotations

import logging
import secrets
from datetime import UTC, datetime

from twolane.operator.actions import Emit
from twolane.operator.cluster import Cluster, ClusterError
from twolane.operator.conditions import timestamp
from twolane.operator.names import API_VERSION, MANAGER, MODEL_DEPLOYMENT
from twolane.operator.resources.shape import Json

log = logging.getLogger(__name__)

_REMEMBERED = 512
_LONGEST = 1000


class Recorder:
    """Writes Events; what repeats is counted on the Event there is."""

    def __init__(self, cluster: Cluster, instance: str) -> None:
        self._cluster = cluster
        self._instance = instance
        self._written: dict[tuple[str, str, str], tuple[str, int]] = {}

    async def record(self, about: Json, event: Emit) -> None:
        """Writes one Event. A failure is logged and no more: Events are no part of the work itself."""
        key = (about["metadata"]["uid"], event.reason, event.message)
        now = timestamp(datetime.now(UTC))
        try:
            if not await self._count(key, about["metadata"]["namespace"], now):
                body = self._body(about, event, now)
                await self._cluster.create(body)
                self._remember(key, body["metadata"]["name"], 1)
        except ClusterError as error:
            log.warning("event not written", extra={"reason": event.reason, "error": str(error)})

    async def _count(self, key: tuple[str, str, str], namespace: str, now: str) -> bool:
        if key not in self._written:
            return False
        name, count = self._written[key]
        try:
            await self._cluster.merge("Event", namespace, name, {"count": count + 1, "lastTimestamp": now})
        except ClusterError as error:
            if error.status != 404:
                raise
            # The API server forgets Events after an hour.
            del self._written[key]
            return False
        self._remember(key, name, count + 1)
        return True

    def _remember(self, key: tuple[str, str, str], name: str, count: int) -> None:
        self._written[key] = (name, count)
        while len(self._written) > _REMEMBERED:
            self._written.pop(next(iter(self._written)))

    def _body(self, about: Json, event: Emit, now: str) -> Json:
        metadata = about["metadata"]
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name']}.{secrets.token_hex(8)}",
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": MODEL_DEPLOYMENT,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:_LONGEST],
            "source": {"component": MANAGER},
            "reportingComponent": MANAGER,
            "reportingInstance": self._instance,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
