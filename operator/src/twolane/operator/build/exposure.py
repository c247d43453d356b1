"""How clients outside reach a model, and who adds routers: Ingress, HTTPRoute, HorizontalPodAutoscaler.

All three are asked for in `spec.router`; `children` puts what is built here beside the Service.
"""

from __future__ import annotations

from twolane.operator.names import (
    API_VERSION,
    COMPONENT_LABEL,
    MODEL_DEPLOYMENT,
    ROUTER_HTTP_PORT,
    Owner,
)
from twolane.operator.resources.exposure import HttpRoute, RouterAutoscaling, RouterIngress
from twolane.operator.resources.model_deployment import ModelDeploymentSpec
from twolane.operator.resources.shape import Json

GATEWAY_MARGIN_S = 5
"""How much longer than the router a gateway waits."""
_LABELS = {COMPONENT_LABEL: "router"}


def exposure(owner: Owner, spec: ModelDeploymentSpec) -> list[Json]:
    """What `spec.router` asks for beside the Service."""
    router, found = spec.router, []
    if router.ingress is not None:
        found.append(ingress(owner, router.ingress))
    if router.http_route is not None:
        found.append(http_route(owner, spec, router.http_route))
    if router.autoscaling is not None:
        found.append(router_autoscaler(owner, router.autoscaling))
    return found


def router_selector(owner: Owner) -> dict[str, str]:
    """Labels of the routers of every revision, for a Scale subresource."""
    return {**owner.labels(), **_LABELS}


def ingress(owner: Owner, wanted: RouterIngress) -> Json:
    """One rule a host, all to the router's Service; answers stream, so annotations must not buffer them."""
    port = {"name": "http"}
    backend = {"service": {"name": owner.name, "port": port}}
    path = {"path": wanted.path, "pathType": "Prefix", "backend": backend}
    spec: Json = {"rules": [{"host": host, "http": {"paths": [path]}} for host in wanted.hosts]}
    if wanted.class_name:
        spec["ingressClassName"] = wanted.class_name
    if wanted.tls_secret_name:
        spec["tls"] = [{"hosts": list(wanted.hosts), "secretName": wanted.tls_secret_name}]
    metadata = owner.metadata(owner.name, **_LABELS)
    if wanted.annotations:
        metadata["annotations"] = dict(wanted.annotations)
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec}


def http_route(owner: Owner, spec: ModelDeploymentSpec, wanted: HttpRoute) -> Json:
    """A route of the Gateway API; the router ends what takes too long before the gateway does."""
    backend = {"group": "", "kind": "Service", "name": owner.name, "port": ROUTER_HTTP_PORT, "weight": 1}
    rule: Json = {
        "matches": [{"path": {"type": "PathPrefix", "value": wanted.path}}],
        "backendRefs": [backend],
    }
    if spec.router.request_timeout_seconds is not None:
        rule["timeouts"] = {"request": f"{spec.router.request_timeout_seconds + GATEWAY_MARGIN_S}s"}
    body: Json = {
        "parentRefs": [
            {"group": "gateway.networking.k8s.io", "kind": "Gateway"}
            | parent.model_dump(by_alias=True, exclude_none=True)
            for parent in wanted.parent_refs
        ],
        "rules": [rule],
    }
    if wanted.hostnames:
        body["hostnames"] = list(wanted.hostnames)
    metadata = owner.metadata(owner.name, **_LABELS)
    if wanted.annotations:
        metadata["annotations"] = dict(wanted.annotations)
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": metadata,
        "spec": body,
    }


def router_autoscaler(owner: Owner, wanted: RouterAutoscaling) -> Json:
    """Scales the ModelDeployment itself, whose Scale subresource counts routers.

    Router Deployments come and go with revisions; a scaler of theirs would lose its target at every rollout.
    """
    target = {"type": "Utilization", "averageUtilization": wanted.target_cpu_percent}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": owner.metadata(f"{owner.name}-router", **_LABELS),
        "spec": {
            "scaleTargetRef": {"apiVersion": API_VERSION, "kind": MODEL_DEPLOYMENT, "name": owner.name},
            "minReplicas": wanted.min_replicas,
            "maxReplicas": wanted.max_replicas,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        },
    }
