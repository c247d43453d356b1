"""The operator's decision: from what is observed to what to do. Pure and level-triggered.

The reconciler calls it with a fresh observation after every change; it remembers nothing, so a lost
event, a restart or a second operator can't lead it astray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from pydantic import ValidationError

from twolane.operator.actions import (
    Action,
    Apply,
    Delete,
    Emit,
    Plan,
    SetFinalizer,
    WriteStatus,
)
from twolane.operator.build.pods import grace_s
from twolane.operator.build.workers import pools_of
from twolane.operator.children import of_revision, standing, workers_of_revision
from twolane.operator.conditions import Condition, dated
from twolane.operator.drift import first_difference, reason_to_apply
from twolane.operator.gangs import restarts, surplus
from twolane.operator.health import Situation
from twolane.operator.names import FINALIZER, REVISION_LABEL, owner_of
from twolane.operator.observed import Observed, label
from twolane.operator.older import pools_of_state, toward
from twolane.operator.progress import Served, Trial, follow, is_soaking, served_by, trial_name
from twolane.operator.resources.model_deployment import ModelDeploymentSpec, Redis, read_spec
from twolane.operator.resources.rollout_status import Progress, read_progress
from twolane.operator.resources.shape import Json
from twolane.operator.revision import revision_of
from twolane.operator.rollout import Wanted, fall_back, retire, step
from twolane.operator.scaling import counts, foreign_scalers, pass_on
from twolane.operator.status import events_between, pool_status, refused_status, status_of
from twolane.operator.trouble import worst_trouble

LOOK_AGAIN_S = 5.0
"""How soon a rollout or a drain is looked at again; pods that end send no event of their own."""


def plan(observed: Observed, default_image: str, default_redis: Redis | None = None) -> Plan:
    """What to do about one ModelDeployment.

    Args:
        observed: a fresh observation.
        default_image: image for specs that name none.
        default_redis: where brokers of specs that name no Redis find one.
    """
    try:
        spec = read_spec(observed.model_deployment)
    except ValidationError as error:
        return _plan_without_spec(observed, error)
    if observed.deleting:
        return _plan_end(observed, grace_s(spec))
    if spec.broker.redis is None and default_redis is not None:
        spec = spec.model_copy(update={"broker": spec.broker.model_copy(update={"redis": default_redis})})
    return _plan_life(observed, spec, spec.image or default_image)


def _plan_life(observed: Observed, spec: ModelDeploymentSpec, image: str) -> Plan:
    owner, pools, existing = owner_of(observed.model_deployment), pools_of(spec), observed.pools()
    actions: list[Action] = []
    if FINALIZER not in observed.model_deployment["metadata"].get("finalizers", []):
        actions.append(SetFinalizer(True))
    for pool in pools:
        actions += pass_on(owner, pool, existing.get(pool.name))
    states, strangers = observed.revisions(), foreign_scalers(observed, owner)
    wanted = _wanted(spec, revision_of(owner, spec, image), counts(pools, existing))
    progress = follow(
        read_progress(observed.model_deployment.get("status", {})),
        wanted,
        states,
        _trial(observed, spec, wanted.revision),
    )
    situation = Situation(observed, spec, pools, wanted, states, list(strangers.values()), progress)
    desired = standing(owner, spec, pools)
    if progress is not None and progress.failure is not None:
        return _plan_return(situation, progress, actions, desired)
    targets = step(replace(wanted, soaking=is_soaking(progress, observed.now, spec.rollout)), states)
    if (target := targets.pop(wanted.revision, None)) is not None:
        desired += of_revision(owner, spec, image, wanted.revision, target)
        names = {pool: owner.workers(pool.name, wanted.revision) for pool in pools}
        workers = {
            pool: None if name in strangers else target.pools[pool.name] for pool, name in names.items()
        }
        desired += workers_of_revision(owner, spec, image, wanted.revision, workers)
        for pool in pools:
            if pool.pods_per_worker > 1:
                actions += surplus(observed, wanted.revision, pool.name, target.pools[pool.name])
    actions += _applies(observed, desired)
    situation = replace(situation, replacing=_replacing(observed, desired))
    for revision, old in targets.items():
        actions += toward(observed, states[revision], old)
    fresh, suspected = restarts(observed)
    actions += [*_strays(observed, desired, {wanted.revision, *targets}), *fresh]
    return Plan((*actions, *_report(situation)), LOOK_AGAIN_S if targets or suspected else None)


def _plan_return(
    situation: Situation, progress: Progress, actions: list[Action], desired: list[Json]
) -> Plan:
    """Back to the previous revision, as it still is, and no further until the spec changes."""
    observed, states = situation.observed, situation.states
    previous = states[progress.previous]
    # Counts that were changed since hold for it too; pools it alone has keep what they had.
    kept = {name: situation.wanted.pools.get(name, progress.pools.get(name, 0)) for name in previous.pools}
    wanted = replace(situation.wanted, revision=progress.previous, pools=kept)
    targets = fall_back(wanted, states)
    actions = [*actions, *_applies(observed, desired)]
    for revision, target in targets.items():
        actions += toward(observed, states[revision], target)
    fresh, suspected = restarts(observed)
    actions += [*_strays(observed, desired, set(targets)), *fresh]
    pools = pools_of_state(previous, list(situation.pools))
    report = _report(replace(situation, wanted=wanted, pools=pools))
    return Plan((*actions, *report), LOOK_AGAIN_S if len(targets) > 1 or suspected else None)


def _wanted(spec: ModelDeploymentSpec, revision: str, pools: dict[str, int]) -> Wanted:
    return Wanted(
        revision,
        pools,
        spec.router.replicas,
        spec.broker.replicas,
        spec.rollout.strategy,
        spec.rollout.max_surge,
        holds=spec.scaling is not None and spec.scaling.scale_to_zero is not None,
    )


def _trial(observed: Observed, spec: ModelDeploymentSpec, revision: str) -> Trial:
    served: dict[str, dict[str, Served]] = {}
    for pod in observed.pods:
        if (reading := observed.readings.get(pod["metadata"]["name"])) is not None:
            served.setdefault(label(pod, REVISION_LABEL), {})[pod["metadata"]["name"]] = served_by(reading)
    trouble = worst_trouble(pod for pod in observed.pods if label(pod, REVISION_LABEL) == revision)
    name = trial_name(observed.model_deployment["spec"])
    return Trial(observed.now, name, spec.rollout, served, trouble.message if trouble else "")


def _applies(observed: Observed, desired: list[Json]) -> list[Action]:
    actions: list[Action] = []
    for body in desired:
        child = observed.children.get((body["kind"], body["metadata"]["name"]))
        why = reason_to_apply(child, body)
        if why is not None:
            actions.append(Apply(body, why))
            if why.startswith("."):
                words = f"{body['kind']} {body['metadata']['name']}: {why} was changed by hand; set back"
                actions.append(Emit("Warning", "DriftRepaired", words))
    return actions


def _replacing(observed: Observed, desired: list[Json]) -> list[str]:
    """Deployments of the revision whose pods are about to be replaced in place, as routers can be."""
    existing = {name: child for (kind, name), child in observed.children.items() if kind == "Deployment"}
    known = [(existing[body["metadata"]["name"]], body) for body in desired if _is_known(body, existing)]
    return [
        body["metadata"]["name"]
        for child, body in known
        if first_difference(child["spec"]["template"], body["spec"]["template"])
    ]


def _is_known(body: Json, deployments: Mapping[str, Json]) -> bool:
    return body["kind"] == "Deployment" and body["metadata"]["name"] in deployments


def _strays(observed: Observed, desired: list[Json], revisions: set[str]) -> list[Action]:
    """Children that nobody declares any more; those of a revision end with it."""
    kept = {(body["kind"], body["metadata"]["name"]) for body in desired}
    return [
        Delete(*key)
        for key, child in observed.children.items()
        if key not in kept and label(child, REVISION_LABEL) not in revisions
    ]


def _report(situation: Situation) -> list[Action]:
    """Statuses that differ from the ones written, and the Events for it."""
    metadata = situation.observed.model_deployment["metadata"]
    before = situation.observed.model_deployment.get("status", {})
    after = status_of(situation)
    actions: list[Action] = []
    if after != before:
        actions += [WriteStatus("ModelDeployment", metadata["name"], after), *events_between(before, after)]
    children = situation.observed.pools()
    for pool in situation.pools:
        child = children.get(pool.name)
        if child is not None and (status := pool_status(situation, pool, child)) != child.get("status", {}):
            actions.append(WriteStatus("WorkerPool", child["metadata"]["name"], status))
    return actions


def _plan_end(observed: Observed, grace: int) -> Plan:
    """Drains in order, then lets the object go; its children follow it by their owner references."""
    metadata = observed.model_deployment["metadata"]
    if FINALIZER not in metadata.get("finalizers", []):
        return Plan(())
    states = observed.revisions()
    targets = {revision: retire(state) for revision, state in states.items()}
    if all(target.remove for target in targets.values()):
        return Plan((Emit("Normal", "Drained", "all workers have ended"), SetFinalizer(False)))
    began = datetime.fromisoformat(metadata["deletionTimestamp"])
    # Routers and then workers may each take a whole grace period.
    limit_s = 2 * grace + 60
    if (observed.now - began).total_seconds() > limit_s:
        words = f"pods are still there {limit_s} s after the end was asked for; they are left to the cluster"
        return Plan((Emit("Warning", "DrainTimedOut", words), SetFinalizer(False)))
    actions: list[Action] = []
    for revision, target in targets.items():
        if not target.remove:
            actions += toward(observed, states[revision], target)
    counts_left = [count for state in states.values() for count in (state.router, *state.pools.values())]
    words = f"{sum(count.exist for count in counts_left)} routers and workers are ending their requests"
    condition = Condition("Ready", "False", "Draining", words)
    return Plan((*actions, *_only_ready(observed, condition)), LOOK_AGAIN_S)


def _plan_without_spec(observed: Observed, error: ValidationError) -> Plan:
    """Says what is wrong and touches nothing that runs; an end that was asked for goes on."""
    if observed.deleting:
        drain = ModelDeploymentSpec.model_validate({"model": {}})
        return _plan_end(observed, grace_s(drain))
    faults = [f"spec.{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    words = "this operator can't read the spec: " + "; ".join(faults)
    return Plan(tuple(_only_ready(observed, Condition("Ready", "False", "SpecInvalid", words))))


def plan_refused(observed: Observed, reason: str) -> list[Action]:
    """What to write when the API server refused a part of the plan for good."""
    return _only_ready(observed, Condition("Ready", "False", "ApplyRefused", reason))


def _only_ready(observed: Observed, condition: Condition) -> list[Action]:
    model_deployment = observed.model_deployment
    metadata, before = model_deployment["metadata"], model_deployment.get("status", {})
    [item] = dated([condition], before.get("conditions", []), metadata["generation"], observed.now)
    after = refused_status(model_deployment, condition, before, item)
    if after == before:
        return []
    return [WriteStatus("ModelDeployment", metadata["name"], after), *events_between(before, after)]
