"""Judges the parts of a ModelDeployment: from counts and pods to conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twolane.operator.build.workers import PoolPlan
from twolane.operator.conditions import ASLEEP, ROLLED_BACK, Condition
from twolane.operator.gangs import is_first_rank
from twolane.operator.names import COMPONENT_LABEL, POOL_LABEL, REVISION_LABEL
from twolane.operator.observed import Observed, RevisionState, label
from twolane.operator.resources.model_deployment import ModelDeploymentSpec
from twolane.operator.resources.rollout_status import Progress
from twolane.operator.resources.shape import Json
from twolane.operator.rollout import Wanted
from twolane.operator.scaling import other_scalers, scaler_words
from twolane.operator.trouble import Trouble, has_started, worst_trouble


@dataclass(frozen=True, slots=True)
class Situation:
    """All that conditions follow from.

    Attributes:
        observed: the observation.
        spec: what was declared.
        pools: the declared pools.
        wanted: where the rollout goes; its pools hold the counts asked for.
        states: what runs, by revision.
        foreign_scalers: sentences about Deployments that somebody scales instead of their WorkerPool.
        progress: of the rollout; None when there is none.
        replacing: Deployments that are given another pod template in this moment.
    """

    observed: Observed
    spec: ModelDeploymentSpec
    pools: Sequence[PoolPlan]
    wanted: Wanted
    states: Mapping[str, RevisionState]
    foreign_scalers: Sequence[str] = ()
    progress: Progress | None = None
    replacing: Sequence[str] = ()

    @property
    def asleep(self) -> bool:
        """No worker runs because none is needed: routers hold a request until some do."""
        scaling = self.spec.scaling
        sleeps = scaling is not None and scaling.scale_to_zero is not None
        return sleeps and not any(self.wanted.pools.values())

    def ready(self, pool: str) -> int:
        """Ready workers of a pool over all revisions."""
        return sum(state.pools[pool].ready for state in self.states.values() if pool in state.pools)

    def trouble(self, slots: Sequence[str]) -> Trouble | None:
        """The worst trouble of the pods of the wanted revision in these pools or components."""
        revision = self.wanted.revision
        pods = [pod for slot in slots for pod in self.observed.pods_of(revision, slot)]
        deployments = [child for child in _deployments(self, revision) if _slot(child) in slots]
        return worst_trouble(pods, deployments)


def _slot(child: Json) -> str:
    return label(child, POOL_LABEL) or label(child, COMPONENT_LABEL)


def conditions_of(situation: Situation) -> dict[str, Condition]:
    """Every condition but Ready, by type."""
    found = [
        _model(situation),
        _role(situation, "PrefillReady", "prefill"),
        _role(situation, "DecodeReady", "decode"),
        _front(situation, "RouterReady", "router"),
        _front(situation, "BrokerReady", "broker"),
        _scaling(situation),
        _rollout(situation),
    ]
    if situation.observed.certificates is not None:
        found.append(situation.observed.certificates.condition)
    return {condition.type: condition for condition in found}


def _model(situation: Situation) -> Condition:
    names = [pool.name for pool in situation.pools]
    places = [(state, name) for state in situation.states for name in names]
    pods = [pod for place in places for pod in situation.observed.pods_of(*place) if is_first_rank(pod)]
    loaded = sum(has_started(pod) for pod in pods)
    if situation.asleep:
        return _sleeping("ModelLoaded", situation)
    if loaded:
        return Condition("ModelLoaded", "True", "Loaded", f"{loaded} of {len(pods)} workers have loaded it")
    if not any(situation.wanted.pools.values()):
        return Condition("ModelLoaded", "False", "ScaledToZero", "no worker is asked for")
    return _failing("ModelLoaded", situation.trouble(names), "no worker has started yet")


def _role(situation: Situation, kind: str, role: str) -> Condition:
    pools = [pool.name for pool in situation.pools if pool.role in (role, "mixed")]
    desired = sum(situation.wanted.pools[pool] for pool in pools)
    ready = sum(situation.ready(pool) for pool in pools)
    counts = f"{ready} of {desired} {role} workers are ready"
    trouble = situation.trouble(pools)
    if situation.asleep:
        return _sleeping(kind, situation)
    empty = [pool for pool in pools if not situation.wanted.pools[pool]]
    if empty:
        return Condition(kind, "False", "ScaledToZero", f"pool {empty[0]} is asked to have no workers")
    if all(situation.ready(pool) for pool in pools):
        if ready >= desired:
            return Condition(kind, "True", "AllReady", counts)
        return Condition(kind, "True", "Degraded", counts + (f"; {trouble.message}" if trouble else ""))
    return _failing(kind, trouble, counts)


def _sleeping(kind: str, situation: Situation) -> Condition:
    scaling = situation.spec.scaling
    assert scaling is not None
    assert scaling.scale_to_zero is not None
    hold_s = scaling.scale_to_zero.hold_seconds
    words = f"no worker runs; the next request is held for up to {hold_s} s and wakes the model"
    return Condition(kind, "False", ASLEEP, words)


def _front(situation: Situation, kind: str, component: str) -> Condition:
    counts = [getattr(state, component) for state in situation.states.values()]
    ready = sum(count.ready for count in counts)
    wanted = situation.wanted.routers if component == "router" else situation.wanted.brokers
    words = f"{ready} of {wanted} {component}s are ready"
    if ready >= wanted:
        return Condition(kind, "True", "AllReady", words)
    if ready:
        return Condition(kind, "True", "Degraded", words)
    return _failing(kind, situation.trouble([component]), words)


def _failing(kind: str, trouble: Trouble | None, otherwise: str) -> Condition:
    if trouble is None:
        return Condition(kind, "False", "WaitingForPods", otherwise)
    return Condition(kind, "False", trouble.reason, trouble.message)


def _scaling(situation: Situation) -> Condition:
    if situation.foreign_scalers:
        return Condition("ScalingActive", "False", "ForeignScaler", "; ".join(situation.foreign_scalers))
    if situation.observed.planned is not None:
        return situation.observed.planned.condition
    message = "each pool has the count of its WorkerPool, held within its bounds"
    pools = situation.observed.pools()
    declared = {pool.name: pools[pool.name] for pool in situation.pools if pool.name in pools}
    if others := other_scalers(declared):
        return Condition("ScalingActive", "True", "OtherScaler", f"{scaler_words(others)}; {message}")
    return Condition("ScalingActive", "True", "ManualScale", message)


def _rollout(situation: Situation) -> Condition:
    revision, progress = situation.wanted.revision, situation.progress
    if progress is not None and progress.failure is not None:
        words = f"revision {progress.revision} failed: {progress.failure.message}; revision {revision} "
        words += "serves, and the new one is tried again when the spec changes"
        return Condition("RolloutComplete", "False", ROLLED_BACK, words)
    others = sorted(set(situation.states) - {revision})
    for child in _deployments(situation, revision):
        if _is_stuck(child):
            trouble = situation.trouble([_slot(child)])
            words = trouble.message if trouble else f"{child['metadata']['name']} makes no progress"
            return Condition("RolloutComplete", "False", "RolloutStuck", words)
    if others and progress is not None and progress.settled is not None:
        words = f"all of revision {revision} serves; {', '.join(others)} stays until it has proved itself"
        return Condition("RolloutComplete", "False", "Soaking", words)
    if others:
        words = f"revision {revision} replaces {', '.join(others)}"
        return Condition("RolloutComplete", "False", "RollingOut", words)
    if words := _unfinished(situation, revision):
        return Condition("RolloutComplete", "False", "Starting", words)
    return Condition("RolloutComplete", "True", "UpToDate", f"revision {revision} runs alone")


def _unfinished(situation: Situation, revision: str) -> str:
    """Why the only revision is not whole yet; empty when it is."""
    if situation.replacing:
        return f"new pods replace those of {', '.join(situation.replacing)}"
    parts, before = _deployments(situation, revision), situation.observed.condition("RolloutComplete")
    started = parts and all(_is_complete(child, before) for child in parts) and _gangs_started(situation)
    return "" if started else f"revision {revision} is starting"


def _deployments(situation: Situation, revision: str) -> list[Json]:
    children = situation.observed.children.items()
    return [
        child
        for (kind, _), child in children
        if kind == "Deployment" and label(child, REVISION_LABEL) == revision
    ]


def _gangs_started(situation: Situation) -> bool:
    """Whether all workers of several pods were there once; what fails later does not undo a rollout."""
    before = situation.observed.model_deployment.get("status", {}).get("revision")
    if before == situation.wanted.revision and situation.observed.condition("RolloutComplete") == "True":
        return True
    gangs = [pool.name for pool in situation.pools if pool.pods_per_worker > 1]
    return all(situation.ready(pool) >= situation.wanted.pools[pool] for pool in gangs)


def _is_complete(deployment: Json, before: str) -> bool:
    """Whether all its pods were there once; a pod that fails later does not undo a rollout.

    Its status may tell of an earlier template, unless all was complete `before`: then its count alone
    has changed.
    """
    generation, status = deployment["metadata"].get("generation"), deployment.get("status", {})
    if before != "True" and status.get("observedGeneration", generation) != generation:
        return False
    conditions = status.get("conditions", [])
    return any(item.get("reason") == "NewReplicaSetAvailable" for item in conditions)


def _is_stuck(deployment: Json) -> bool:
    conditions = deployment.get("status", {}).get("conditions", [])
    return any(item["type"] == "Progressing" and item["status"] == "False" for item in conditions)
