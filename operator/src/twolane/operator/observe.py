"""Reads a ModelDeployment and everything made for it from the API server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

from twolane.operator.cluster import Cluster
from twolane.operator.names import COMPONENT_LABEL, MODEL_DEPLOYMENT, MODEL_LABEL
from twolane.operator.observed import Key, Observed, is_ready, label
from twolane.operator.resources.shape import Json
from twolane.operator.scrape import Scraper

CHILD_KINDS = ("WorkerPool", "Deployment", "StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy")
EXPOSURE_KINDS = {
    "ingress": "Ingress",
    "httpRoute": "HTTPRoute",
    "autoscaling": "HorizontalPodAutoscaler",
}
"""Kinds that few models need, by the field of spec.router that asks for them."""


async def observe(cluster: Cluster, scraper: Scraper, namespace: str, name: str) -> Observed | None:
    """A fresh observation; None when the ModelDeployment is gone.

    Raises:
        ClusterError: the API server refuses or does not answer.
    """
    model_deployment = await cluster.get(MODEL_DEPLOYMENT, namespace, name)
    if model_deployment is None:
        return None
    selector = f"{MODEL_LABEL}={name}"
    child_kinds = (*CHILD_KINDS, *exposed_kinds(model_deployment))
    kinds = (*child_kinds, "Pod")
    lists = await asyncio.gather(*(cluster.list(kind, namespace, selector) for kind in kinds))
    found = dict(zip(kinds, lists, strict=True))
    uid = model_deployment["metadata"]["uid"]
    children: dict[Key, Json] = {
        (kind, child["metadata"]["name"]): child
        for kind in child_kinds
        for child in found[kind]
        if owned_by(child, uid)
    }
    observed = Observed(model_deployment, children, tuple(found["Pod"]), datetime.now(UTC))
    return replace(observed, readings=await scraper.read(pods_to_ask(observed)))


def pods_to_ask(observed: Observed) -> list[Json]:
    """Pods whose metrics a decision needs: during a rollout the routers, which know what failed."""
    if observed.deleting or len(observed.revisions()) < 2:
        return []
    return [pod for pod in observed.pods if label(pod, COMPONENT_LABEL) == "router" and is_ready(pod)]


def exposed_kinds(model_deployment: Json) -> list[str]:
    """Kinds of EXPOSURE_KINDS to look at: asked for now, or made before and perhaps still there."""
    router = model_deployment["spec"].get("router", {})
    made = model_deployment.get("status", {}).get("routers", {}).get("exposedBy", [])
    return [kind for field, kind in EXPOSURE_KINDS.items() if field in router or kind in made]


def owned_by(child: Json, uid: str) -> bool:
    """Whether an object was made for the ModelDeployment of this uid, not for an earlier one of its name."""
    owners = child["metadata"].get("ownerReferences", [])
    return any(owner["uid"] == uid and owner.get("controller") for owner in owners)
