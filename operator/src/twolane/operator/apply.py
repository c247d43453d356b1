"""Carries out a plan, action by action; the reconciler calls it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from twolane.operator.actions import (
    Action,
    Apply,
    Delete,
    Emit,
    PassOn,
    Plan,
    Scale,
    Seed,
    SetFinalizer,
    WriteStatus,
)
from twolane.operator.cluster import Cluster, ClusterError
from twolane.operator.events import Recorder
from twolane.operator.metrics import OperatorMetrics
from twolane.operator.names import FINALIZER, MANAGER, MODEL_DEPLOYMENT, SEED_ANNOTATION, SEED_MANAGER
from twolane.operator.observe import owned_by
from twolane.operator.observed import Observed
from twolane.operator.plan import plan_refused
from twolane.operator.resources.shape import Json

log = logging.getLogger(__name__)

SIDE_BY_SIDE = 4
"""Writes of one look at a time."""
_WORKLOADS = ("Deployment", "StatefulSet")


class NameTakenError(ClusterError):
    """An object that is not ours has a name that we need."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(
            f"{kind} {name} exists and does not belong to this ModelDeployment; "
            "rename or delete it, or give the ModelDeployment another name",
            status=409,
        )

    @property
    def permanent(self) -> bool:
        """Somebody has to choose another name."""
        return True


class Applier:
    """Turns actions into requests."""

    def __init__(self, cluster: Cluster, recorder: Recorder, metrics: OperatorMetrics) -> None:
        self._cluster = cluster
        self._recorder = recorder
        self._metrics = metrics

    async def carry_out(self, observed: Observed, plan: Plan) -> None:
        """Takes every action of a plan.

        What the API server refuses for good does not stop the rest; it ends in the status and is raised
        in the end, so that it is tried again later.

        Raises:
            ClusterError: an action failed.
        """
        refused: list[ClusterError] = []
        for stage in stages(plan.actions):
            if refused and isinstance(stage[0], WriteStatus):
                # The refusal takes their place.
                continue
            refused += await self._take_all(observed, stage)
        if refused:
            for action in plan_refused(observed, str(refused[0])):
                await self._take(observed, action)
            raise refused[0]

    async def _take_all(self, observed: Observed, stage: list[Action]) -> list[ClusterError]:
        """Takes actions side by side; returns what was refused for good."""
        slots = asyncio.Semaphore(SIDE_BY_SIDE)

        async def take(action: Action) -> ClusterError | None:
            async with slots:
                try:
                    await self._take(observed, action)
                except ClusterError as error:
                    return error
            return None

        refused = []
        for action, error in zip(stage, await asyncio.gather(*map(take, stage)), strict=True):
            if error is None:
                continue
            if not error.permanent or isinstance(action, WriteStatus):
                raise error
            log.warning("refused", extra={"action": repr(action)[:200], "reason": str(error)})
            refused.append(error)
        return refused

    async def _take(self, observed: Observed, action: Action) -> None:
        self._metrics.actions.labels(type(action).__name__.lower()).inc()
        namespace = observed.model_deployment["metadata"]["namespace"]
        match action:
            case Apply():
                await self._apply(observed, action)
            case Seed(body=body):
                await self._create(observed, body)
            case PassOn(name=name, replicas=replicas):
                metadata = {"annotations": {SEED_ANNOTATION: str(replicas)}}
                await self._scale(("WorkerPool", namespace, name), replicas, metadata, SEED_MANAGER)
            case Scale(name=name, replicas=replicas, kind=kind):
                await self._scale((kind, namespace, name), replicas, {})
            case Delete(kind=kind, name=name):
                if (uid := self._uid(kind, namespace, name)) is not None:
                    await self._cluster.delete(kind, namespace, name, uid)
            case SetFinalizer(present=present):
                await self._set_finalizer(observed, present)
            case WriteStatus(kind=kind, name=name, status=status):
                uid = self._known(kind, namespace, name)
                await self._cluster.write_status(kind, namespace, name, uid, status)
            case Emit(type=type_, reason=reason):
                self._metrics.events.labels(type_, reason).inc()
                await self._recorder.record(observed.model_deployment, action)

    def _uid(self, kind: str, namespace: str, name: str) -> str | None:
        """The uid of the object that was seen under a name; None when it is gone."""
        seen = self._cluster.store.get(kind, namespace, name)
        return None if seen is None else str(seen["metadata"]["uid"])

    def _known(self, kind: str, namespace: str, name: str) -> str:
        if (uid := self._uid(kind, namespace, name)) is None:
            raise ClusterError(f"{kind} {name} went away meanwhile", 404)
        return uid

    async def _scale(
        self, place: tuple[str, str, str], replicas: int, metadata: Json, manager: str = MANAGER
    ) -> None:
        body = {"metadata": {**metadata, "uid": self._known(*place)}, "spec": {"replicas": replicas}}
        await self._cluster.merge(*place, body, manager)

    async def _apply(self, observed: Observed, action: Apply) -> None:
        """Applies an object of ours, or makes one; never takes over what has the name."""
        body, uid = action.body, observed.model_deployment["metadata"]["uid"]
        metadata = body["metadata"]
        known = self._cluster.store.get(body["kind"], metadata["namespace"], metadata["name"])
        if known is None or not owned_by(known, uid):
            try:
                await self._cluster.apply_new(body)
                return
            except ClusterError as error:
                if error.status != 409:
                    raise
            known = await self._own(observed, body)
        # It may have been deleted, and another made, since it was seen.
        same = {**metadata, "uid": known["metadata"]["uid"]} if known is not None else metadata
        await self._cluster.apply({**body, "metadata": same})

    async def _create(self, observed: Observed, body: Json) -> None:
        try:
            await self._cluster.create(body, SEED_MANAGER)
        except ClusterError as error:
            if error.status != 409:
                raise
            await self._own(observed, body)

    async def _own(self, observed: Observed, body: Json) -> Json | None:
        """The object that has a name we need; None when it is gone again.

        Raises:
            NameTakenError: it is not ours.
        """
        kind, metadata = body["kind"], body["metadata"]
        found = await self._cluster.get(kind, metadata["namespace"], metadata["name"])
        if found is not None and not owned_by(found, observed.model_deployment["metadata"]["uid"]):
            raise NameTakenError(kind, metadata["name"])
        return found

    async def _set_finalizer(self, observed: Observed, present: bool) -> None:
        metadata = observed.model_deployment["metadata"]
        others = [name for name in metadata.get("finalizers", []) if name != FINALIZER]
        names = [*others, FINALIZER] if present else others
        # The version makes sure that nobody else's finalizer is lost.
        change = {"metadata": {"finalizers": names, "resourceVersion": metadata["resourceVersion"]}}
        await self._cluster.merge(MODEL_DEPLOYMENT, metadata["namespace"], metadata["name"], change)


def stages(actions: Iterable[Action]) -> list[list[Action]]:
    """Actions in their order, those together that may be taken side by side.

    Pools are there before what counts by them, policies and addresses before pods, statuses last.
    """
    found: list[list[Action]] = []
    last = ""
    for action in actions:
        step = _step(action)
        if not found or step not in (last, "event"):
            found.append([])
            last = step
        found[-1].append(action)
    return found


def _step(action: Action) -> str:
    match action:
        case Apply(body=body):
            return "workload" if body["kind"] in _WORKLOADS else "apply"
        case Seed() | PassOn():
            return "count"
        case Emit():
            return "event"
        case _:
            return type(action).__name__
