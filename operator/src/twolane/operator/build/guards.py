"""What protects running pods: disruption budgets and network policies."""

from __future__ import annotations

from twolane.operator.names import (
    BROKER_PORT,
    COMPONENT_LABEL,
    POOL_LABEL,
    PROBE_PORT,
    WORKER_PORT,
    Component,
    Owner,
)
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
    """Workers hear routers and workers of their model; anybody may read probes and metrics."""
    return _policy(owner, "worker", WORKER_PORT)


def broker_policy(owner: Owner) -> Json:
    """The broker trusts its callers: it hears routers and workers of its model alone."""
    return _policy(owner, "broker", BROKER_PORT)


def _policy(owner: Owner, component: Component, port: int) -> Json:
    def pods(*components: str) -> Json:
        expressions = [{"key": COMPONENT_LABEL, "operator": "In", "values": list(components)}]
        return {"podSelector": {"matchLabels": owner.labels(), "matchExpressions": expressions}}

    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": owner.metadata(f"{owner.name}-{component}", **{COMPONENT_LABEL: component}),
        "spec": {
            "podSelector": {"matchLabels": owner.labels() | {COMPONENT_LABEL: component}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [pods("router", "worker")], "ports": [{"protocol": "TCP", "port": port}]},
                {"ports": [{"protocol": "TCP", "port": PROBE_PORT}]},
            ],
        },
    }
