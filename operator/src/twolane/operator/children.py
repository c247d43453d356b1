"""Every object of a ModelDeployment at its wanted revision, sealed and ready to be applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from twolane.operator.build.exposure import exposure
from twolane.operator.build.front import (
    broker_address,
    broker_service,
    broker_template,
    router_service,
    router_template,
)
from twolane.operator.build.gangs import group
from twolane.operator.build.guards import (
    broker_policy,
    component_budget,
    pool_budget,
    router_policy,
    worker_policy,
)
from twolane.operator.build.workers import PoolPlan, worker_pool, worker_template
from twolane.operator.drift import sealed
from twolane.operator.names import COMPONENT_LABEL, POOL_LABEL, REVISION_LABEL, Owner
from twolane.operator.resources.model_deployment import ModelDeploymentSpec
from twolane.operator.resources.shape import Json
from twolane.operator.rollout import Target


def standing(owner: Owner, spec: ModelDeploymentSpec, pools: Iterable[PoolPlan]) -> list[Json]:
    """What does not depend on a revision: pools, the address and ways to it, budgets, network policies."""
    children = [router_service(owner, spec), *exposure(owner, spec)]
    for pool in pools:
        children += [worker_pool(owner, pool), pool_budget(owner, pool.name)]
    children += [component_budget(owner, "router"), component_budget(owner, "broker")]
    if spec.network_policy.enabled:
        children += [worker_policy(owner), broker_policy(owner), router_policy(owner, spec)]
    return [sealed(child) for child in children]


def of_revision(
    owner: Owner, spec: ModelDeploymentSpec, image: str, revision: str, target: Target
) -> list[Json]:
    """Broker and routers of a revision with their counts; the broker first, since all others ask for it."""
    broker = broker_address(owner, revision)
    labels = {COMPONENT_LABEL: "broker", REVISION_LABEL: revision}
    template = broker_template(owner, spec, image, revision)
    brokers = _deployment(owner, spec, owner.broker(revision), labels, template)
    labels = {COMPONENT_LABEL: "router", REVISION_LABEL: revision}
    template = router_template(owner, spec, image, broker)
    routers = _deployment(owner, spec, owner.router(revision), labels, template)
    # A router without a ready sibling must not end before its successor serves.
    routers["spec"]["strategy"] = _strategy(surge=1, unavailable=0)
    return [
        sealed(_counted(brokers, target.brokers)),
        sealed(broker_service(owner, revision)),
        sealed(_counted(routers, target.routers)),
    ]


def workers_of_revision(
    owner: Owner, spec: ModelDeploymentSpec, image: str, revision: str, counts: Mapping[PoolPlan, int | None]
) -> list[Json]:
    """The workers of a revision; a count of None is left to the scaler that writes it.

    A pool of workers of several pods has at least the objects of its first one, which may be empty.
    """
    children = []
    for pool, count in counts.items():
        template = worker_template(owner, spec, pool, image, broker_address(owner, revision))
        labels = {COMPONENT_LABEL: "worker", POOL_LABEL: pool.name, REVISION_LABEL: revision}
        if (ranks := pool.pods_per_worker) > 1:
            for number in range(max(1, count or 0)):
                name = owner.group(pool.name, revision, number)
                made = group(owner, name, labels, template, ranks if number < (count or 0) else 0)
                children += [sealed(child) for child in made]
            continue
        child = _deployment(owner, spec, owner.workers(pool.name, revision), labels, template)
        # A device is free for the new worker only when the old one is gone.
        child["spec"]["strategy"] = _strategy(surge=0, unavailable=1)
        children.append(sealed(child if count is None else _counted(child, count)))
    return children


def _strategy(surge: int, unavailable: int) -> Json:
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}


def _counted(child: Json, replicas: int) -> Json:
    return {**child, "spec": {**child["spec"], "replicas": replicas}}


def _deployment(
    owner: Owner, spec: ModelDeploymentSpec, name: str, labels: dict[str, str], template: Json
) -> Json:
    metadata = {**template["metadata"], "labels": template["metadata"]["labels"] | labels}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": owner.metadata(name, **labels),
        "spec": {
            "selector": {"matchLabels": owner.labels() | labels},
            "progressDeadlineSeconds": spec.rollout.progress_deadline_seconds,
            "revisionHistoryLimit": 2,
            "template": {**template, "metadata": metadata},
        },
    }
