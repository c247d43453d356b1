"""What the operator keeps of an object: the fields that it reads, and no others.

The store keeps ten thousand pods; a change of anything that is left out here wakes nobody.
"""

from __future__ import annotations

from twolane.operator.names import GROUP, INDEX_LABEL
from twolane.operator.resources.shape import Json

# Of these the operator reads no status: what a controller counts there changes with every pod.
_WITHOUT_STATUS = {
    "StatefulSet",
    "Service",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "Ingress",
    "HTTPRoute",
    "HorizontalPodAutoscaler",
}
_POD_METADATA = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp")
_POD_STATUS = ("phase", "podIP")
_CONDITION = ("type", "status", "reason", "message")
_CONTAINER = ("name", "ready", "started", "state", "lastState")


def slim(kind: str, body: Json) -> Json:
    """The object without the fields that nobody reads, and without its resource version."""
    if kind == "Pod":
        return _pod(body)
    metadata = {name: value for name, value in body["metadata"].items() if name != "resourceVersion"}
    if "managedFields" in metadata:
        metadata["managedFields"] = [_owner_of_count(entry) for entry in _counts(metadata["managedFields"])]
    kept = {**body, "metadata": metadata}
    if kind in _WITHOUT_STATUS:
        kept.pop("status", None)
    elif kind == "Deployment" and "status" in body:
        kept["status"] = _chosen(body["status"], ("observedGeneration",)) | _conditions(body, _CONDITION)
    return kept


def _pod(body: Json) -> Json:
    metadata, status = body["metadata"], body.get("status", {})
    labels = metadata.get("labels", {})
    ours = {name: value for name, value in labels.items() if name.startswith(GROUP) or name == INDEX_LABEL}
    kept = _chosen(status, _POD_STATUS) | _conditions(body, (*_CONDITION, "lastTransitionTime"))
    for field in ("containerStatuses", "initContainerStatuses"):
        if field in status:
            kept[field] = [_chosen(container, _CONTAINER) for container in status[field]]
    containers = body.get("spec", {}).get("containers", [])
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**_chosen(metadata, _POD_METADATA), "labels": ours},
        "spec": {"containers": [_chosen(container, ("name", "ports")) for container in containers]},
        "status": kept,
    }


def _conditions(body: Json, fields: tuple[str, ...]) -> Json:
    conditions = body.get("status", {}).get("conditions")
    return {} if conditions is None else {"conditions": [_chosen(item, fields) for item in conditions]}


def _chosen(body: Json, fields: tuple[str, ...]) -> Json:
    return {name: body[name] for name in fields if name in body}


def _counts(entries: list[Json]) -> list[Json]:
    """Entries of those who own a replica count: who else owns what is nobody's question."""
    return [entry for entry in entries if "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})]


def _owner_of_count(entry: Json) -> Json:
    kept = _chosen(entry, ("manager", "operation", "subresource", "time"))
    return {**kept, "fieldsV1": {"f:spec": {"f:replicas": {}}}}
