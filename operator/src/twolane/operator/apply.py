"""Carries out a plan, action by action; the reconciler calls it."""

from __future__ import annotations

import logging

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
from twolane.operator.names import FINALIZER, MODEL_DEPLOYMENT, SEED_ANNOTATION, SEED_MANAGER
from twolane.operator.observe import owned_by
from twolane.operator.observed import Observed
from twolane.operator.plan import plan_refused

log = logging.getLogger(__name__)


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
        for action in plan.actions:
            if refused and isinstance(action, WriteStatus) and action.kind == MODEL_DEPLOYMENT:
                continue
            try:
                await self._take(observed, action)
            except ClusterError as error:
                if not error.permanent or isinstance(action, WriteStatus):
                    raise
                log.warning("refused", extra={"action": repr(action)[:200], "reason": str(error)})
                refused.append(error)
        if refused:
            for action in plan_refused(observed, str(refused[0])):
                await self._take(observed, action)
            raise refused[0]

    async def _take(self, observed: Observed, action: Action) -> None:
        self._metrics.actions.labels(type(action).__name__.lower()).inc()
        namespace = observed.model_deployment["metadata"]["namespace"]
        match action:
            case Apply():
                await self._apply(observed, action)
            case Seed(body=body):
                await self._create(observed, body)
            case PassOn(name=name, replicas=replicas):
                annotations = {SEED_ANNOTATION: str(replicas)}
                body = {"metadata": {"annotations": annotations}, "spec": {"replicas": replicas}}
                await self._cluster.merge("WorkerPool", namespace, name, body, SEED_MANAGER)
            case Scale(name=name, replicas=replicas, kind=kind):
                await self._cluster.merge(kind, namespace, name, {"spec": {"replicas": replicas}})
            case Delete(kind=kind, name=name):
                await self._cluster.delete(kind, namespace, name)
            case SetFinalizer(present=present):
                await self._set_finalizer(observed, present)
            case WriteStatus(kind=kind, name=name, status=status):
                await self._cluster.write_status(kind, namespace, name, status)
            case Emit(type=type_, reason=reason):
                self._metrics.events.labels(type_, reason).inc()
                await self._recorder.record(observed.model_deployment, action)

    async def _apply(self, observed: Observed, action: Apply) -> None:
        body = action.body
        # A pool that was seeded a moment ago is new to the observation only.
        if action.why == "created" and body["kind"] != "WorkerPool":
            await self._refuse_stranger(observed, body)
        await self._cluster.apply(body)

    async def _create(self, observed: Observed, body: dict[str, object]) -> None:
        await self._refuse_stranger(observed, body)
        try:
            await self._cluster.create(body, SEED_MANAGER)
        except ClusterError as error:
            if error.status != 409:
                raise

    async def _refuse_stranger(self, observed: Observed, body: dict[str, object]) -> None:
        """Server-side apply would take over whatever has the name."""
        metadata = body["metadata"]
        assert isinstance(metadata, dict)
        kind, name = str(body["kind"]), str(metadata["name"])
        existing = await self._cluster.get(kind, str(metadata["namespace"]), name)
        if existing is not None and not owned_by(existing, observed.model_deployment["metadata"]["uid"]):
            raise NameTakenError(kind, name)

    async def _set_finalizer(self, observed: Observed, present: bool) -> None:
        metadata = observed.model_deployment["metadata"]
        others = [name for name in metadata.get("finalizers", []) if name != FINALIZER]
        names = [*others, FINALIZER] if present else others
        # The version makes sure that nobody else's finalizer is lost.
        change = {"metadata": {"finalizers": names, "resourceVersion": metadata["resourceVersion"]}}
        await self._cluster.merge(MODEL_DEPLOYMENT, metadata["namespace"], metadata["name"], change)
