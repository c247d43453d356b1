"""Names, labels and ports of everything the operator makes; the only place where such a literal stands."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

GROUP = "serving.twolane.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
MODEL_DEPLOYMENT = "ModelDeployment"
WORKER_POOL = "WorkerPool"

MANAGER = "twolane-operator"
"""Field manager of everything the operator applies."""
OPERATOR_APP = MANAGER
"""Value of app.kubernetes.io/name at the operator's own pods; the chart sets it."""
SEED_MANAGER = "twolane-seed"
"""Field manager of replica counts passed on from a ModelDeployment: a scaler may take them over."""
PLANNER_MANAGER = "twolane-planner"
"""Field manager of replica counts that the planner decides."""
FINALIZER = f"{GROUP}/drain"

MODEL_LABEL = f"{GROUP}/model-deployment"
COMPONENT_LABEL = f"{GROUP}/component"
POOL_LABEL = f"{GROUP}/pool"
REVISION_LABEL = f"{GROUP}/revision"
GROUP_LABEL = f"{GROUP}/worker"
"""The pods of one worker have it in common; only where a worker has several."""
INDEX_LABEL = "apps.kubernetes.io/pod-index"
"""Kubernetes' own: the rank."""
APPLIED_ANNOTATION = f"{GROUP}/applied"
VERSION_ANNOTATION = f"{GROUP}/version"
RANKS_ANNOTATION = f"{GROUP}/pods-per-worker"
REASON_ANNOTATION = f"{GROUP}/reason"
SEED_ANNOTATION = f"{GROUP}/replicas-passed-on"

ROUTER_HTTP_PORT, ROUTER_GRPC_PORT = 8000, 9000
WORKER_PORT, BROKER_PORT, DATA_PORT, PROBE_PORT = 9100, 9200, 9300, 9400

RANK_PORT = 9500
"""Where the ranks of one worker meet."""

Component = Literal["router", "broker", "worker"]

# Beside a revision of 8 characters and a number of 4, with a hyphen each.
_LONGEST_BASE = 38


@dataclass(frozen=True, slots=True)
class Owner:
    """The ModelDeployment that something is made for."""

    name: str
    namespace: str
    uid: str

    def reference(self) -> dict[str, Any]:
        """The owner reference of its children."""
        return {
            "apiVersion": API_VERSION,
            "kind": MODEL_DEPLOYMENT,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def labels(self) -> dict[str, str]:
        """Labels of all its children."""
        return {
            "app.kubernetes.io/name": "twolane",
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/managed-by": MANAGER,
            MODEL_LABEL: self.name,
        }

    def metadata(self, name: str, **labels: str) -> dict[str, Any]:
        """Metadata of a child; keyword names are not label names, so pass them by `**{LABEL: value}`."""
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels() | labels,
            "ownerReferences": [self.reference()],
        }

    def pool(self, pool: str) -> str:
        """Name of a WorkerPool."""
        return f"{self.name}-{pool}"

    def workers(self, pool: str, revision: str) -> str:
        """Name of the Deployment of a pool's workers of one revision."""
        return f"{self.name}-{pool}-{revision}"

    def group(self, pool: str, revision: str, number: int) -> str:
        """Name of the StatefulSet and the Service of one worker of several pods.

        Labels that Kubernetes makes of it leave it 52 characters.
        """
        base = f"{self.name}-{pool}"
        if len(base) > _LONGEST_BASE:
            base = f"{base[: _LONGEST_BASE - 7]}-{hashlib.sha256(base.encode()).hexdigest()[:6]}"
        return f"{base}-{revision}-{number}"

    def router(self, revision: str) -> str:
        """Name of the Deployment of one revision's routers."""
        return f"{self.name}-router-{revision}"

    def broker(self, revision: str) -> str:
        """Name of the Deployment and the Service of one revision's broker."""
        return f"{self.name}-broker-{revision}"


def owner_of(model_deployment: dict[str, Any]) -> Owner:
    """The owner that a ModelDeployment from the API server is."""
    metadata = model_deployment["metadata"]
    return Owner(metadata["name"], metadata["namespace"], metadata["uid"])
