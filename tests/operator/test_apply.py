"""How a plan becomes requests: what may go side by side, and whose objects are left alone."""

from __future__ import annotations

from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from tests.operator.objects import NOW, model_deployment
from twolane.operator.actions import Action, Apply, Delete, Emit, Plan, Scale, Seed, SetFinalizer, WriteStatus
from twolane.operator.apply import Applier, NameTakenError, stages
from twolane.operator.cluster import Cluster, ClusterError
from twolane.operator.events import Recorder
from twolane.operator.metrics import OperatorMetrics
from twolane.operator.observed import Observed
from twolane.operator.resources.shape import Json
from twolane.operator.store import Store

OWNER: Json = {"ownerReferences": [{"uid": "u-1", "controller": True}]}


class _Api:
    """An API server with one object at most; notes what is asked."""

    def __init__(self, there: Json | None = None, store: Store | None = None) -> None:
        self.there = there
        self.store = store or Store()
        declared = model_deployment()
        self.store.put({**declared, "metadata": {**declared["metadata"], "resourceVersion": "1"}})
        self.asked: list[str] = []

    async def get(self, kind: str, namespace: str, name: str) -> Json | None:
        """The object."""
        self.asked.append("get")
        return self.there

    async def apply_new(self, body: Json) -> Json:
        """Only for a name that is free."""
        self.asked.append("new")
        if self.there is not None:
            raise ClusterError("exists", 409)
        return body

    async def create(self, body: Json, manager: str = "") -> Json:
        """The same; names of Events are always free."""
        return body if body["kind"] == "Event" else await self.apply_new(body)

    async def write_status(self, kind: str, namespace: str, name: str, uid: str, status: Json) -> Json:
        """What is wrong ends there."""
        self.asked.append(f"status {status['conditions'][0]['reason']}")
        return status

    async def apply(self, body: Json) -> Json:
        """For an object whose uid is known."""
        self.asked.append(f"apply {body['metadata'].get('uid')}")
        return body

    async def merge(self, kind: str, namespace: str, name: str, body: Json, manager: str) -> Json:
        """The same."""
        self.asked.append(f"merge {body['metadata']['uid']}")
        return body

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """For an object whose uid is known."""
        self.asked.append(f"delete {uid}")


def _body(kind: str = "Service", name: str = "demo", **metadata: Any) -> Json:
    labels = {"serving.twolane.dev/model-deployment": "demo"}
    return {"kind": kind, "metadata": {"name": name, "namespace": "team", "labels": labels, **metadata}}


async def _carry_out(api: _Api, *actions: Any) -> None:
    metrics, cluster = OperatorMetrics(CollectorRegistry()), cast(Cluster, api)
    applier = Applier(cluster, Recorder(cluster, "test"), metrics)
    await applier.carry_out(Observed(model_deployment(), {}, (), NOW), Plan(actions))


async def test_what_is_new_costs_one_request() -> None:
    """No read before it: the request itself fails if the name is taken."""
    api = _Api()
    await _carry_out(api, Apply(_body(), "created"), Seed(_body("WorkerPool", "demo-mixed")))
    assert api.asked == ["new", "new"]


@pytest.mark.parametrize("action", [Apply(_body(), "created"), Seed(_body())])
async def test_an_object_of_somebody_else_is_never_taken_over(action: Apply | Seed) -> None:
    """One that we own is, though the store did not know it: another replica may have made it."""
    stranger = _Api(_body(uid="x", ownerReferences=[{"uid": "other", "controller": True}]))
    with pytest.raises(NameTakenError, match="demo exists and does not belong"):
        await _carry_out(stranger, action)
    assert stranger.asked == ["new", "get", "status ApplyRefused"]
    ours = _Api(_body(uid="x", **OWNER))
    await _carry_out(ours, action)
    assert ours.asked == ["new", "get", *(["apply x"] if isinstance(action, Apply) else [])]


async def test_a_known_object_is_written_as_that_object_alone() -> None:
    """It may have been deleted and another made since it was seen."""
    store = Store()
    store.put(_body(uid="u-9", resourceVersion="3", **OWNER))
    store.put(_body("Deployment", uid="u-8", resourceVersion="3", **OWNER))
    api = _Api(store=store)
    await _carry_out(api, Apply(_body(), "changed"), Scale("demo", 3), Delete("Service", "demo"))
    assert api.asked == ["apply u-9", "merge u-8", "delete u-9"]


def test_what_depends_on_what_is_not_taken_side_by_side() -> None:
    """The finalizer before children, pools and policies before pods, the status last."""
    finalizer, seed = SetFinalizer(True), Seed(_body("WorkerPool"))
    service, workers = Apply(_body(), "created"), Apply(_body("Deployment"), "created")
    event, status = Emit("Normal", "Reason", "words"), WriteStatus("ModelDeployment", "demo", {})
    scale, end = Scale("demo", 0), Delete("Deployment", "old")
    actions: list[Action] = [
        finalizer,
        seed,
        service,
        service,
        event,
        workers,
        workers,
        scale,
        end,
        status,
        status,
        event,
    ]
    assert stages(actions) == [
        [finalizer],
        [seed],
        [service, service, event],
        [workers, workers],
        [scale],
        [end],
        [status, status, event],
    ]
    drained = Emit("Normal", "Drained", "words")
    assert stages([drained, SetFinalizer(False)]) == [[drained], [SetFinalizer(False)]]
