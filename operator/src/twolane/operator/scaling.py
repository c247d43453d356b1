"""Who decides how many workers a pool has, and what was decided.

The count is WorkerPool.spec.replicas, which kubectl scale, a HorizontalPodAutoscaler or KEDA writes by
the Scale subresource. The operator writes it when the pool is made, when the ModelDeployment's own
`replicas` changes, and where `spec.scaling` asks for it by its planner (planner_keeper.py); never
otherwise. What runs is that count held within the pool's bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from twolane.operator.actions import Action, PassOn, Seed
from twolane.operator.build.workers import PoolPlan, worker_pool
from twolane.operator.conditions import timestamp
from twolane.operator.names import (
    MANAGER,
    PLANNER_MANAGER,
    POOL_LABEL,
    REASON_ANNOTATION,
    SEED_ANNOTATION,
    SEED_MANAGER,
    Owner,
)
from twolane.operator.observed import Observed, label
from twolane.operator.resources.shape import Json
from twolane.operator.resources.worker_pool import WorkerPoolSpec, read_pool

KEPT_DECISIONS = 5


def counts(pools: Iterable[PoolPlan], observed: Mapping[str, Json]) -> dict[str, int]:
    """Workers each declared pool should have now."""
    return {pool.name: _held(pool, observed.get(pool.name)) for pool in pools}


def _held(pool: PoolPlan, child: Json | None) -> int:
    # The bounds are the declared ones: the child may still have those of before.
    bounds = pool.declared.scaling
    asked = pool.first_replicas if child is None else read_pool(child).replicas
    if asked == 0 and pool.may_sleep:
        return 0
    return WorkerPoolSpec(
        model_deployment="-",
        role=pool.role,
        replicas=asked,
        min_replicas=bounds.min_replicas,
        max_replicas=bounds.max_replicas,
    ).held_replicas


def pass_on(owner: Owner, pool: PoolPlan, child: Json | None) -> list[Action]:
    """Makes a pool with its first count, or passes a changed declared count on."""
    declared = pool.declared.replicas
    if child is None:
        body = worker_pool(owner, pool)
        body["spec"]["replicas"] = pool.first_replicas
        if declared is not None:
            body["metadata"]["annotations"] = {SEED_ANNOTATION: str(declared)}
        return [Seed(body)]
    passed_on = child["metadata"].get("annotations", {}).get(SEED_ANNOTATION)
    if declared is None or passed_on == str(declared):
        return []
    return [PassOn(child["metadata"]["name"], declared)]


def decisions(
    pools: Iterable[PoolPlan], wanted: Mapping[str, int], observed: Observed, before: Json
) -> list[Json]:
    """The last decisions, newest first: each change of a pool's count with its reason."""
    known = {item["name"]: item.get("desired") for item in before.get("pools", [])}
    children = observed.pools()
    fresh = []
    for pool in pools:
        old, new = known.get(pool.name), wanted[pool.name]
        if old != new:
            reason = _reason(pool, new, children.get(pool.name))
            fresh.append(_decision(observed.now, pool.name, old, new, reason))
    kept: list[Json] = before.get("scalingDecisions", [])
    return [*fresh, *kept][:KEPT_DECISIONS]


def _decision(now: datetime, pool: str, old: int | None, new: int, reason: str) -> Json:
    start = {} if old is None else {"from": old}
    return {"time": timestamp(now), "pool": pool, **start, "to": new, "reason": reason}


def _reason(pool: PoolPlan, new: int, child: Json | None) -> str:
    if child is None:
        return "first count of a new pool"
    asked = read_pool(child).replicas
    if asked is None:
        return f"nobody asks for a count, so it is the least, {new}"
    words = f"{asked} asked for by {scaled_by(child)}"
    if scaled_by(child) == PLANNER_MANAGER:
        words = str(child["metadata"].get("annotations", {}).get(REASON_ANNOTATION) or words)
    return words if asked == new else f"{words}, {held_words(asked, new)}"


def held_words(asked: int, new: int) -> str:
    """Why a count is not the one asked for."""
    return f"held at scaling.{'minReplicas' if new > asked else 'maxReplicas'}, {new}"


def scaled_by(child: Json) -> str:
    """Whoever wrote the replica count last, as people know it."""
    entries = [entry for entry in child["metadata"].get("managedFields", []) if _owns_replicas(entry)]
    if not entries:
        return "an unknown writer"
    manager = str(max(entries, key=lambda entry: entry.get("time", ""))["manager"])
    return "the ModelDeployment" if manager == SEED_MANAGER else manager


def other_scaler(child: Json) -> str | None:
    """The scaler besides the planner that owns a pool's count, if there is one.

    A person with kubectl is none: what is set by hand is where the planner goes on from.
    """
    manager = scaled_by(child)
    ours = manager in (PLANNER_MANAGER, MANAGER, "the ModelDeployment", "an unknown writer")
    return None if ours or manager.startswith("kubectl") else manager


def other_scalers(pools: Mapping[str, Json]) -> dict[str, str]:
    """Who scales each pool that another scaler owns, by the pool's name."""
    found = {name: other_scaler(child) for name, child in pools.items()}
    return {name: scaler for name, scaler in found.items() if scaler is not None}


def scaler_words(others: Mapping[str, str]) -> str:
    """Who scales which pool, for people, who know the controller by the object that tells it."""
    known = {"kube-controller-manager": "a HorizontalPodAutoscaler (kube-controller-manager)"}
    return ", ".join(f"{pool} is scaled by {known.get(scaler, scaler)}" for pool, scaler in others.items())


def foreign_scaler(deployment: Json) -> str | None:
    """The scaler that writes a Deployment's own replicas, if there is one.

    It must not be fought, or both would write for ever. kubectl is no scaler: what a person changes by
    hand is drift.
    """
    for entry in deployment["metadata"].get("managedFields", []):
        manager = entry.get("manager", "")
        ours = manager == MANAGER or manager.startswith("kubectl")
        if entry.get("subresource") == "scale" and not ours and _owns_replicas(entry):
            return str(manager)
    return None


def foreign_scalers(observed: Observed, owner: Owner) -> dict[str, str]:
    """A sentence for each Deployment somebody else scales, by the Deployment's name."""
    found = {}
    for (kind, name), child in observed.children.items():
        if kind == "Deployment" and (manager := foreign_scaler(child)) is not None:
            target = owner.pool(label(child, POOL_LABEL))
            found[name] = f"{manager} scales deployment/{name}; point it at workerpool/{target} instead"
    return found


def _owns_replicas(entry: Json) -> bool:
    return "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
