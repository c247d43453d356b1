"""A ModelDeployment and all that was made for it, as the store has it, or as the API server says now."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

from twolane.operator.cluster import Cluster
from twolane.operator.names import COMPONENT_LABEL, MODEL_DEPLOYMENT, MODEL_LABEL
from twolane.operator.observed import Key, Observed, is_ready, label
from twolane.operator.resources.shape import Json
from twolane.operator.scrape import Scraper
from twolane.operator.store import CHILD_KINDS, Store

COUNTED_KINDS = ("Deployment", "StatefulSet", "Pod")
"""What says whether something still runs."""


async def observe(store: Store, scraper: Scraper, namespace: str, name: str) -> Observed | None:
    """What is known; None when there is no such ModelDeployment."""
    model_deployment = store.get(MODEL_DEPLOYMENT, namespace, name)
    if model_deployment is None:
        return None
    uid = model_deployment["metadata"]["uid"]
    children: dict[Key, Json] = {
        (kind, child["metadata"]["name"]): child
        for kind in CHILD_KINDS
        for child in store.of_model(kind, namespace, name)
        if owned_by(child, uid)
    }
    pods = tuple(store.of_model("Pod", namespace, name))
    observed = Observed(model_deployment, children, pods, datetime.now(UTC))
    return replace(observed, readings=await scraper.read(pods_to_ask(observed)))


async def read_anew(cluster: Cluster, namespace: str, name: str) -> None:
    """Brings the store to what the API server says now, for what can't be undone: a watch may lag behind.

    Raises:
        ClusterError: the API server refuses or does not answer.
    """
    selector = f"{MODEL_LABEL}={name}"
    model_deployment = await cluster.get(MODEL_DEPLOYMENT, namespace, name)
    listings = await asyncio.gather(*(cluster.list(kind, namespace, selector) for kind in COUNTED_KINDS))
    known = cluster.store.get(MODEL_DEPLOYMENT, namespace, name)
    if model_deployment is not None:
        cluster.store.answered(model_deployment)
    elif known is not None:
        cluster.store.deleted(MODEL_DEPLOYMENT, namespace, name, known["metadata"]["uid"])
    for kind, listing in zip(COUNTED_KINDS, listings, strict=True):
        cluster.store.replace_of_model(kind, (namespace, name), listing.items, listing.version)


def pods_to_ask(observed: Observed) -> list[Json]:
    """Pods whose metrics a decision needs: during a rollout the routers, which know what failed."""
    if observed.deleting or len(observed.revisions()) < 2:
        return []
    return [pod for pod in observed.pods if label(pod, COMPONENT_LABEL) == "router" and is_ready(pod)]


def owned_by(child: Json, uid: str) -> bool:
    """Whether an object was made for the ModelDeployment of this uid, not for an earlier one of its name."""
    owners = child["metadata"].get("ownerReferences", [])
    return any(owner["uid"] == uid and owner.get("controller") for owner in owners)
