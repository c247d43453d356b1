"""What protects running pods: disruption budgets and network policies."""

from __future__ import annotations

from twolane.operator.names import (
    BROKER_PORT,
    COMPONENT_LABEL,
    OPERATOR_APP,
    POOL_LABEL,
    PROBE_PORT,
    ROUTER_GRPC_PORT,
    ROUTER_HTTP_PORT,
    WORKER_PORT,
    Component,
    Owner,
)
from twolane.operator.resources.model_deployment import ModelDeploymentSpec
from twolane.operator.resources.shape import Json


def pool_budget(owner: Owner, pool: str) -> Json:
    """At most one worker of a pool may be evicted at a time, over all revisions."""
    return _budget(owner, owner.pool(pool), {POOL_LABEL: pool})


def component_budget(owner: Owner, component: Component) -> Json:
    """The same for routers and brokers."""
    return _budget(owner, f"{owner.name}-{component}", {COMPONENT_LABEL: component})


def _budget(owner: Owner, name: str, labels: dict[str, str]) -> Json:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": owner.metadata(name, **labels),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": owner.labels() | labels},
            # A pod that can't become ready must not keep a node from being emptied.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def worker_policy(owner: Owner) -> Json:
    """Workers hear routers and workers of their model; anybody may read probes and metrics.

    Among each other workers use any port: pages have a port of their own, but NIXL, NCCL and gloo choose
    theirs when they start.
    """
    ingress = [
        {"from": [_pods(owner, "router")], "ports": [_port(WORKER_PORT)]},
        {"from": [_pods(owner, "worker")]},
        {"ports": [_port(PROBE_PORT)]},
    ]
    return _policy(owner, "worker", ingress)


def broker_policy(owner: Owner) -> Json:
    """The broker trusts its callers: it hears routers and workers of its model alone."""
    ingress = [
        {"from": [_pods(owner, "router", "worker")], "ports": [_port(BROKER_PORT)]},
        {"ports": [_port(PROBE_PORT)]},
    ]
    return _policy(owner, "broker", ingress)


def router_policy(owner: Owner, spec: ModelDeploymentSpec) -> Json:
    """Routers hear everybody, or the clients that are named and the operator, which reads their metrics."""
    ports = [_port(ROUTER_HTTP_PORT), _port(ROUTER_GRPC_PORT)]
    clients = [peer.model_dump(by_alias=True, exclude_none=True) for peer in spec.network_policy.clients]
    if not clients:
        return _policy(owner, "router", [{"ports": ports}])
    operator = {"matchLabels": {"app.kubernetes.io/name": OPERATOR_APP}}
    metrics = {"from": [{"namespaceSelector": {}, "podSelector": operator}], "ports": ports[:1]}
    return _policy(owner, "router", [{"from": clients, "ports": ports}, metrics])


def _pods(owner: Owner, *components: Component) -> Json:
    expressions = [{"key": COMPONENT_LABEL, "operator": "In", "values": list(components)}]
    return {"podSelector": {"matchLabels": owner.labels(), "matchExpressions": expressions}}


def _port(number: int) -> Json:
    return {"protocol": "TCP", "port": number}


def _policy(owner: Owner, component: Component, ingress: list[Json]) -> Json:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": owner.metadata(f"{owner.name}-{component}", **{COMPONENT_LABEL: component}),
        "spec": {
            "podSelector": {"matchLabels": owner.labels() | {COMPONENT_LABEL: component}},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }
