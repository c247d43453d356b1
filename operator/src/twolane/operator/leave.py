"""`twolane operator leave`: what the chart runs before a release ends, so that no ModelDeployment is stuck.

An operator's finalizer promises a drain that nobody would keep after it. Ends that were asked for are waited
for; then the operator is stopped, and its finalizer taken off what stays. Pods serve on: nothing is deleted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from pydantic import Field

from twolane.core.config import ProcessConfig
from twolane.core.errors import Unavailable
from twolane.operator.cluster import Cluster, ClusterError
from twolane.operator.connection import connect
from twolane.operator.metrics import OperatorMetrics
from twolane.operator.names import FINALIZER, MODEL_DEPLOYMENT
from twolane.operator.resources.shape import Json
from twolane.telemetry.logs import configure_logging

log = logging.getLogger(__name__)

POLL_S = 2.0


class LeaveConfig(ProcessConfig):
    """Flags of `twolane operator leave`."""

    process: ClassVar[str] = "leave"
    verb: ClassVar[str] = "operator leave"

    namespace: str = Field(min_length=1)
    """Where the operator runs."""
    deployment: str = Field(min_length=1)
    """Its Deployment, which gets no replicas."""
    selector: str = Field(min_length=1)
    """Labels of its pods."""
    namespaces: str = ""
    """Namespaces it worked for, separated by commas; empty: the whole cluster."""
    drain_s: float = Field(default=60.0, ge=0)
    """How long to wait for ModelDeployments whose end was asked for before, in seconds."""
    stop_s: float = Field(default=90.0, gt=0)
    """How long the operator's pods may take to end, in seconds."""

    @property
    def places(self) -> list[str]:
        """The namespaces; one empty name for all."""
        return [name.strip() for name in self.namespaces.split(",") if name.strip()] or [""]


async def leave(cluster: Cluster, config: LeaveConfig) -> list[str]:
    """Lets the ModelDeployments of an operator go; returns those whose finalizer was taken off.

    Raises:
        Unavailable: the operator did not end in time; it would put its finalizer back.
        ClusterError: the API server refuses.
    """
    if not await _within(config.drain_s, lambda: _none_ends(cluster, config)):
        log.warning("some are still ending; they end now without a drain")
    await _stop(cluster, config)
    if not await _within(config.stop_s, lambda: _stopped(cluster, config)):
        raise Unavailable(
            f"the operator's pods did not end within {config.stop_s:.0f} s; look at them with kubectl get "
            f"pods --namespace {config.namespace} --selector {config.selector}, and uninstall again"
        )
    released = []
    for item in await _held(cluster, config):
        released.append(f"{item['metadata']['namespace']}/{item['metadata']['name']}")
        await _release(cluster, item)
        log.info(
            "no operator drains it any more: its pods serve on, and kubectl delete ends them at once",
            extra={"object": released[-1]},
        )
    return released


async def _held(cluster: Cluster, config: LeaveConfig) -> list[Json]:
    """ModelDeployments with the finalizer; none where the definitions are gone."""
    try:
        listings = [await cluster.list(MODEL_DEPLOYMENT, place) for place in config.places]
    except ClusterError as error:
        if error.status == 404:
            return []
        raise
    items = [item for listing in listings for item in listing.items]
    return [item for item in items if FINALIZER in item["metadata"].get("finalizers", [])]


async def _none_ends(cluster: Cluster, config: LeaveConfig) -> bool:
    return not any(item["metadata"].get("deletionTimestamp") for item in await _held(cluster, config))


async def _stop(cluster: Cluster, config: LeaveConfig) -> None:
    try:
        await cluster.merge("Deployment", config.namespace, config.deployment, {"spec": {"replicas": 0}})
    except ClusterError as error:
        # It may have been deleted by hand.
        if error.status != 404:
            raise


async def _stopped(cluster: Cluster, config: LeaveConfig) -> bool:
    return not (await cluster.list("Pod", config.namespace, config.selector)).items


async def _release(cluster: Cluster, item: Json) -> None:
    """Takes the finalizer off, and no other; again if somebody wrote in between."""
    namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
    while True:
        metadata = item["metadata"]
        names = [kept for kept in metadata["finalizers"] if kept != FINALIZER]
        # The version makes sure that nobody else's finalizer is lost.
        change = {"metadata": {"finalizers": names, "resourceVersion": metadata["resourceVersion"]}}
        try:
            await cluster.merge(MODEL_DEPLOYMENT, namespace, name, change)
            return
        except ClusterError as error:
            if error.status == 404:
                return
            if error.status != 409:
                raise
        fresh = (await cluster.list(MODEL_DEPLOYMENT, namespace)).items
        found = next((other for other in fresh if other["metadata"]["uid"] == metadata["uid"]), None)
        if found is None or FINALIZER not in found["metadata"].get("finalizers", []):
            return
        item = found


async def _within(limit_s: float, question: Callable[[], Awaitable[bool]]) -> bool:
    """Asks until the answer is yes or the time is over."""
    loop = asyncio.get_running_loop()
    until = loop.time() + limit_s
    while not await question():
        if loop.time() >= until:
            return False
        await asyncio.sleep(POLL_S)
    return True


async def _run(config: LeaveConfig) -> None:
    cluster = await connect(OperatorMetrics())
    try:
        released = await leave(cluster, config)
    except ClusterError as error:
        raise Unavailable(f"the API server: {error}") from error
    finally:
        await cluster.close()
    log.info("the operator has left", extra={"released": len(released)})


def main(argv: Sequence[str]) -> int:
    """Runs to its end; returns the exit status."""
    configure_logging("operator", "INFO")
    asyncio.run(_run(LeaveConfig.from_args(argv)))
    return 0
