"""Workers of several pods: a StatefulSet for each worker, and the headless Service its ranks meet by.

A rank is a pod; rank 0 registers and serves, the others follow it. `children` calls this for pools
whose ranks have pods of their own.
"""

from __future__ import annotations

from twolane.operator.names import (
    GROUP_LABEL,
    RANK_PORT,
    RANKS_ANNOTATION,
    Owner,
)
from twolane.operator.resources.shape import Json


def group(owner: Owner, name: str, labels: dict[str, str], template: Json, ranks: int) -> list[Json]:
    """The objects of one worker: the Service first, since ranks find each other by it.

    Args:
        owner: the ModelDeployment.
        name: of both objects.
        labels: of the pool and its revision.
        template: a rank's pod.
        ranks: pods; 0 ends the worker.
    """
    labels = labels | {GROUP_LABEL: name}
    return [_service(owner, name, labels), _stateful_set(owner, name, labels, template, ranks)]


def _service(owner: Owner, name: str, labels: dict[str, str]) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(name, **labels),
        "spec": {
            "clusterIP": "None",
            # Ranks meet before any of them is ready.
            "publishNotReadyAddresses": True,
            "selector": owner.labels() | {GROUP_LABEL: name},
            "ports": [{"name": "ranks", "port": RANK_PORT, "targetPort": "ranks", "protocol": "TCP"}],
        },
    }


def _stateful_set(owner: Owner, name: str, labels: dict[str, str], template: Json, ranks: int) -> Json:
    metadata = {**template["metadata"], "labels": template["metadata"]["labels"] | labels}
    pod = {**template["spec"], "affinity": _together(owner, name) | template["spec"].get("affinity", {})}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": owner.metadata(name, **labels) | {"annotations": {RANKS_ANNOTATION: str(ranks)}},
        "spec": {
            "serviceName": name,
            "replicas": ranks,
            # Ranks wait for each other, so they have to start together.
            "podManagementPolicy": "Parallel",
            # What runs changes with the revision alone, which has StatefulSets of its own.
            "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": owner.labels() | labels},
            "revisionHistoryLimit": 1,
            "template": {"metadata": metadata, "spec": pod},
        },
    }


def _together(owner: Owner, name: str) -> Json:
    """Ranks of a worker speak in every layer: one node if they fit, else one zone."""
    selector = {"matchLabels": owner.labels() | {GROUP_LABEL: name}}
    terms = [
        {"weight": weight, "podAffinityTerm": {"labelSelector": selector, "topologyKey": key}}
        for weight, key in ((100, "kubernetes.io/hostname"), (50, "topology.kubernetes.io/zone"))
    ]
    return {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": terms}}
