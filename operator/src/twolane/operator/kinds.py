"""Where the API server keeps the objects of each kind that the operator reads or writes."""

from __future__ import annotations

from twolane.operator.names import API_VERSION

PATHS = {
    "ModelDeployment": (f"apis/{API_VERSION}", "modeldeployments"),
    "WorkerPool": (f"apis/{API_VERSION}", "workerpools"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "StatefulSet": ("apis/apps/v1", "statefulsets"),
    "Service": ("api/v1", "services"),
    "Pod": ("api/v1", "pods"),
    "Secret": ("api/v1", "secrets"),
    "Certificate": ("apis/cert-manager.io/v1", "certificates"),
    "Event": ("api/v1", "events"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "Ingress": ("apis/networking.k8s.io/v1", "ingresses"),
    "HTTPRoute": ("apis/gateway.networking.k8s.io/v1", "httproutes"),
    "HorizontalPodAutoscaler": ("apis/autoscaling/v2", "horizontalpodautoscalers"),
    "CustomResourceDefinition": ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
}
"""Group and plural by kind."""


def path_of(kind: str, namespace: str, name: str = "") -> str:
    """The path of an object, or of all of a kind: in a namespace, or in all when it is empty."""
    prefix, plural = PATHS[kind]
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"/{prefix}{place}/{plural}" + (f"/{name}" if name else "")
