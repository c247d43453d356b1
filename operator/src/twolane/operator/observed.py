"""What the API server said at one moment about a ModelDeployment and everything made for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from twolane.operator.conditions import Condition
from twolane.operator.names import COMPONENT_LABEL, GROUP_LABEL, POOL_LABEL, REVISION_LABEL, WORKER_POOL
from twolane.operator.resources.shape import Json
from twolane.operator.scrape import Reading

Key = tuple[str, str]
"""Kind and name."""


@dataclass(frozen=True, slots=True)
class Count:
    """Pods of one Deployment, or workers of one pool: those of several pods are one each.

    Attributes:
        asked: how many are asked for.
        exist: how many exist, the ones that are ending included: they still hold their devices.
        ready: how many serve; a worker of several pods does when all of them are ready.
    """

    asked: int = 0
    exist: int = 0
    ready: int = 0

    @property
    def gone(self) -> bool:
        """Nothing is asked for and nothing is left."""
        return self.asked == 0 and self.exist == 0

    def __add__(self, other: Count) -> Count:
        return Count(self.asked + other.asked, self.exist + other.exist, self.ready + other.ready)


@dataclass(frozen=True, slots=True)
class RevisionState:
    """What runs of one revision; pools by their short names."""

    revision: str
    pools: Mapping[str, Count] = field(default_factory=dict)
    router: Count = Count()
    broker: Count = Count()

    @property
    def alive(self) -> bool:
        """Every pool has a ready worker: requests can be served."""
        return bool(self.pools) and all(count.ready for count in self.pools.values())

    @property
    def ready(self) -> int:
        """Workers that serve, over all pools."""
        return sum(count.ready for count in self.pools.values())


@dataclass(frozen=True, slots=True)
class Certificates:
    """How the certificates of a ModelDeployment's processes stand.

    Attributes:
        condition: for the status.
        status: facts for the status; empty when there are none.
        look_again_s: when something is due.
    """

    condition: Condition
    status: Json
    look_again_s: float | None


@dataclass(frozen=True, slots=True)
class Planned:
    """What the planner said last about a ModelDeployment.

    Attributes:
        condition: for the status.
        look_again_s: when it plans next.
    """

    condition: Condition
    look_again_s: float | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """One observation.

    Attributes:
        model_deployment: the object itself.
        children: everything made for it but pods, by kind and name.
        pods: its pods.
        now: when it was seen.
        readings: metrics of pods that were asked for them, by the name of the pod.
        certificates: how they stand; None where nobody keeps any.
        planned: what the planner said; None where nobody asks it.
    """

    model_deployment: Json
    children: Mapping[Key, Json]
    pods: tuple[Json, ...]
    now: datetime
    readings: Mapping[str, Reading] = field(default_factory=dict)
    certificates: Certificates | None = None
    planned: Planned | None = None

    @property
    def deleting(self) -> bool:
        """Whether its end was asked for."""
        return bool(self.model_deployment["metadata"].get("deletionTimestamp"))

    def condition(self, kind: str) -> str:
        """Status of a condition as it was written last; "" before that."""
        conditions = self.model_deployment.get("status", {}).get("conditions", [])
        return next((str(item["status"]) for item in conditions if item["type"] == kind), "")

    def pools(self) -> dict[str, Json]:
        """WorkerPools by the short names of their pools."""
        found = [child for (kind, _), child in self.children.items() if kind == WORKER_POOL]
        return {label(child, POOL_LABEL): child for child in found}

    def revisions(self) -> dict[str, RevisionState]:
        """What runs, by revision, in the order of names."""
        counts: dict[str, dict[str, Count]] = defaultdict(dict)
        for (kind, _), child in self.children.items():
            slot = label(child, POOL_LABEL) or label(child, COMPONENT_LABEL)
            slots = counts[label(child, REVISION_LABEL)] if kind in ("Deployment", "StatefulSet") else {}
            if kind == "Deployment":
                slots[slot] = self._count(child, slot)
            elif kind == "StatefulSet":
                slots[slot] = slots.get(slot, Count()) + self._worker(child)
        return {revision: _state(revision, slots) for revision, slots in sorted(counts.items())}

    def pods_of(self, revision: str, slot: str) -> list[Json]:
        """Pods of one revision and pool or component that have not ended."""
        return [
            pod
            for pod in self.pods
            if label(pod, REVISION_LABEL) == revision
            and slot in (label(pod, POOL_LABEL), label(pod, COMPONENT_LABEL))
            and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
        ]

    def _count(self, deployment: Json, slot: str) -> Count:
        pods = self.pods_of(label(deployment, REVISION_LABEL), slot)
        ready = sum(is_ready(pod) for pod in pods)
        return Count(int(deployment["spec"].get("replicas", 1)), len(pods), ready)

    def _worker(self, group: Json) -> Count:
        """One worker of several pods: all of them or none."""
        name, ranks = group["metadata"]["name"], int(group["spec"].get("replicas", 1))
        pods = [pod for pod in self.pods if label(pod, GROUP_LABEL) == name]
        ready = ranks > 0 and sum(is_ready(pod) for pod in pods) == ranks
        return Count(int(ranks > 0), int(bool(pods)), int(ready))


def _state(revision: str, slots: dict[str, Count]) -> RevisionState:
    pools = {slot: count for slot, count in slots.items() if slot not in ("router", "broker")}
    return RevisionState(revision, pools, slots.get("router", Count()), slots.get("broker", Count()))


def label(child: Json, name: str) -> str:
    """A label's value, or ""."""
    return str(child["metadata"].get("labels", {}).get(name, ""))


def is_ready(pod: Json) -> bool:
    """Whether a pod serves and is not about to end."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = pod.get("status", {}).get("conditions", [])
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
