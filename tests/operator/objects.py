"""Objects as an API server would send them, for the pure tests of the operator."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

from twolane.operator.actions import Apply, Delete, PassOn, Plan, Scale, Seed, SetFinalizer, WriteStatus
from twolane.operator.names import (
    COMPONENT_LABEL,
    GROUP_LABEL,
    INDEX_LABEL,
    MODEL_DEPLOYMENT,
    POOL_LABEL,
    REVISION_LABEL,
)
from twolane.operator.observed import Key, Observed
from twolane.operator.plan import plan
from twolane.operator.resources.shape import Json
from twolane.operator.scrape import Reading

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
IMAGE = "registry.example/twolane:1"


def model_deployment(**spec: Any) -> Json:
    """A ModelDeployment with the schema's defaults left to the typed resources."""
    metadata = {"name": "demo", "namespace": "team", "uid": "u-1", "generation": 1}
    spec = {"model": {"hostPath": {"path": "/models/demo"}}, **spec}
    return {"kind": MODEL_DEPLOYMENT, "metadata": metadata, "spec": spec}


class World:
    """A cluster of dictionaries: applies plans, and makes pods as Deployments ask for them."""

    def __init__(self, md: Json) -> None:
        self.md = md
        self.children: dict[Key, Json] = {}
        self.pods: list[Json] = []
        self.events: list[str] = []
        self.now = NOW
        self.readings: dict[str, Reading] = {}

    def observe(self) -> Observed:
        """What the operator would see now."""
        children, pods = copy.deepcopy(self.children), tuple(copy.deepcopy(self.pods))
        return Observed(copy.deepcopy(self.md), children, pods, self.now, dict(self.readings))

    def turn(self) -> Plan:
        """One reconciliation."""
        made = plan(self.observe(), IMAGE)
        for action in made.actions:
            self._carry_out(action)
        return made

    def settle(self, ready: bool = True, turns: int = 60) -> None:
        """Reconciles, and lets pods follow, until a plan is empty.

        Raises:
            AssertionError: the plans never end.
        """
        for _ in range(turns):
            made = self.turn()
            self.follow(ready)
            if not made.actions and made.look_again_s is None:
                return
            self.now += timedelta(seconds=made.look_again_s or 0)
        raise AssertionError(f"still busy after {turns} turns: {made.actions}")

    def follow(self, ready: bool = True, revision: str = "") -> None:
        """What controllers and kubelets do: as many pods as asked for, ready or not."""
        for (kind, name), child in self.children.items():
            labels = child["metadata"]["labels"]
            if kind == "StatefulSet" and revision in ("", labels[REVISION_LABEL]):
                self._follow_ranks(name, child, ready)
            if kind != "Deployment" or (revision and labels[REVISION_LABEL] != revision):
                continue
            wanted = child["spec"]["replicas"]
            mine = [pod for pod in self.pods if pod["metadata"]["labels"] == labels]
            others = [pod for pod in self.pods if pod not in mine]
            fresh = [pod(name, index, labels, ready) for index in range(len(mine), wanted)]
            self.pods = [*others, *mine[:wanted], *fresh]
            if ready:
                progress = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
                child["status"] = {"conditions": [progress]}
            for made in self.pods:
                if ready and made["metadata"]["labels"] == labels:
                    made["status"] = pod("", 0, labels, True)["status"]
        kinds = ("Deployment", "StatefulSet")
        names = {labels_key(child) for (kind, _), child in self.children.items() if kind in kinds}
        self.pods = [pod for pod in self.pods if labels_key(pod) in names]

    def _follow_ranks(self, name: str, child: Json, ready: bool) -> None:
        """A pod for every number that has none; the others keep what they are."""
        labels, wanted = child["metadata"]["labels"], child["spec"]["replicas"]
        mine = {
            p["metadata"]["name"]: p for p in self.pods if p["metadata"]["labels"].get(GROUP_LABEL) == name
        }
        others = [pod for pod in self.pods if pod["metadata"]["name"] not in mine]
        fresh = [pod(name, number, labels | {INDEX_LABEL: str(number)}, ready) for number in range(wanted)]
        kept = [mine.get(made["metadata"]["name"], made) for made in fresh]
        if ready:
            for rank in kept:
                rank["status"] = pod("", 0, labels, True)["status"]
        self.pods = [*others, *kept]

    def deployment(self, name: str) -> Json:
        """A Deployment by the part of its name before the revision."""
        found = [c for (k, n), c in self.children.items() if k == "Deployment" and n.startswith(name)]
        assert len(found) == 1, (name, sorted(self.children))
        return found[0]

    def condition(self, kind: str) -> Json:
        """One condition of the written status."""
        conditions: list[Json] = self.md["status"]["conditions"]
        return next(item for item in conditions if item["type"] == kind)

    def _carry_out(self, action: Any) -> None:
        match action:
            case Apply(body=body):
                self._apply(body)
            case Seed(body=body):
                self.children.setdefault((body["kind"], body["metadata"]["name"]), _stored(body))
            case PassOn(name=name, replicas=replicas):
                pool = self.children["WorkerPool", name]
                pool["spec"]["replicas"] = replicas
                annotations = pool["metadata"].setdefault("annotations", {})
                annotations["serving.twolane.dev/replicas-passed-on"] = str(replicas)
            case Scale(name=name, replicas=replicas, kind=kind):
                self.children[kind, name]["spec"]["replicas"] = replicas
            case Delete(kind="Pod", name=name):
                self.pods = [pod for pod in self.pods if pod["metadata"]["name"] != name]
            case Delete(kind=kind, name=name):
                self.children.pop((kind, name), None)
            case SetFinalizer(present=present):
                self.md["metadata"]["finalizers"] = ["serving.twolane.dev/drain"] if present else []
            case WriteStatus(kind=kind, name=name, status=status):
                target = self.md if kind == MODEL_DEPLOYMENT else self.children[kind, name]
                target["status"] = copy.deepcopy(status)
            case _:
                self.events.append(action.reason)

    def _apply(self, body: Json) -> None:
        key = (body["kind"], body["metadata"]["name"])
        old = self.children.get(key)
        new = _stored(body)
        if old is not None:
            # Server-side apply leaves what others own.
            new["metadata"]["annotations"] = old["metadata"].get("annotations", {}) | new["metadata"].get(
                "annotations", {}
            )
            new["metadata"]["managedFields"] = old["metadata"].get("managedFields", [])
            new["spec"] = {**old["spec"], **new["spec"]}
            new["status"] = old.get("status", {})
        self.children[key] = new


def _stored(body: Json) -> Json:
    new = copy.deepcopy(body)
    new["metadata"]["generation"] = 1
    return new


def labels_key(child: Json) -> tuple[str, ...]:
    """What ties a pod to its Deployment."""
    labels = child["metadata"]["labels"]
    names = (COMPONENT_LABEL, POOL_LABEL, REVISION_LABEL, GROUP_LABEL)
    return tuple(labels.get(name, "") for name in names)


def pod(deployment: str, index: int, labels: dict[str, str], ready: bool) -> Json:
    """A pod whose process runs."""
    state = "True" if ready else "False"
    container = {"name": "twolane", "state": {"running": {}}, "started": ready}
    return {
        "metadata": {"name": f"{deployment}-{index}", "labels": dict(labels)},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": state}],
            "containerStatuses": [container],
        },
    }
