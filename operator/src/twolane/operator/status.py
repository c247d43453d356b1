"""The statuses the operator writes, and the Events that follow from what changed in them."""

from __future__ import annotations

from twolane.operator.actions import Emit
from twolane.operator.build.exposure import router_selector
from twolane.operator.build.front import router_url
from twolane.operator.build.workers import PoolPlan
from twolane.operator.conditions import ROLLED_BACK, Condition, dated, ready
from twolane.operator.health import Situation, conditions_of
from twolane.operator.names import INDEX_LABEL, MODEL_LABEL, POOL_LABEL, owner_of
from twolane.operator.observed import Count
from twolane.operator.resources.shape import Json
from twolane.operator.resources.worker_pool import read_pool
from twolane.operator.scaling import decisions, held_words
from twolane.operator.store import EXPOSURE_KINDS


def status_of(situation: Situation) -> Json:
    """The whole status of a ModelDeployment."""
    observed, wanted = situation.observed, situation.wanted
    found = conditions_of(situation)
    before = observed.model_deployment.get("status", {})
    generation = observed.model_deployment["metadata"]["generation"]
    everything = [ready(found), *found.values()]
    awake = [r for r, state in situation.states.items() if state.alive or situation.asleep]
    serving = [r for r in awake if situation.states[r].router.ready]
    progress = situation.progress
    return {
        "observedGeneration": generation,
        "url": router_url(owner_of(observed.model_deployment)),
        "revision": wanted.revision if progress is None else progress.revision,
        **({} if progress is None else {"rollout": progress.written()}),
        "servingRevisions": serving,
        **({"certificates": kept.status} if (kept := observed.certificates) and kept.status else {}),
        "prefill": _ready_of(situation, "prefill"),
        "decode": _ready_of(situation, "decode"),
        "routers": _routers(situation),
        "pools": [_pool(situation, pool) for pool in situation.pools],
        "scalingDecisions": decisions(situation.pools, wanted.pools, observed, before),
        "conditions": dated(everything, before.get("conditions", []), generation, observed.now),
    }


def refused_status(model_deployment: Json, condition: Condition, before: Json, now_conditions: Json) -> Json:
    """The status when nothing but Ready can be judged; the rest stays as it was."""
    generation = model_deployment["metadata"]["generation"]
    others = [item for item in before.get("conditions", []) if item["type"] != condition.type]
    return {**before, "observedGeneration": generation, "conditions": [now_conditions, *others]}


def _ready_of(situation: Situation, role: str) -> str:
    pools = [pool.name for pool in situation.pools if pool.role in (role, "mixed")]
    return f"{sum(map(situation.ready, pools))}/{sum(situation.wanted.pools[pool] for pool in pools)}"


def _pool(situation: Situation, pool: PoolPlan) -> Json:
    counts = [state.pools.get(pool.name, Count()) for state in situation.states.values()]
    state = situation.states.get(situation.wanted.revision)
    updated = state.pools.get(pool.name, Count()).exist if state else 0
    return {
        "name": pool.name,
        "role": pool.role,
        "lane": pool.lane,
        "desired": situation.wanted.pools[pool.name],
        "replicas": sum(count.exist for count in counts),
        "ready": sum(count.ready for count in counts),
        "updated": updated,
    }


def _routers(situation: Situation) -> Json:
    """Counts and selector for the Scale subresource, and which kinds bring clients or routers."""
    counts = [state.router for state in situation.states.values()]
    selector = router_selector(owner_of(situation.observed.model_deployment))
    kinds = {kind for kind, _ in situation.observed.children if kind in EXPOSURE_KINDS}
    return {
        "replicas": sum(count.exist for count in counts),
        "ready": sum(count.ready for count in counts),
        "selector": ",".join(f"{name}={value}" for name, value in selector.items()),
        "exposedBy": sorted(kinds),
    }


def pool_status(situation: Situation, pool: PoolPlan, child: Json) -> Json:
    """The status of a WorkerPool; its selector lets an autoscaler find the pods."""
    counts = _pool(situation, pool)
    labels = {MODEL_LABEL: situation.observed.model_deployment["metadata"]["name"], POOL_LABEL: pool.name}
    if pool.pods_per_worker > 1:
        # One pod a worker, so that an autoscaler's means are those of workers.
        labels[INDEX_LABEL] = "0"
    asked, desired = read_pool(child).replicas, counts["desired"]
    held = asked is not None and asked != desired
    return {
        "observedGeneration": child["metadata"]["generation"],
        "replicas": counts["replicas"],
        "readyReplicas": counts["ready"],
        "desiredReplicas": desired,
        "selector": ",".join(f"{name}={value}" for name, value in labels.items()),
        "revision": situation.wanted.revision,
        "message": f"{asked} asked for, {held_words(asked, desired)}" if held and asked is not None else "",
    }


def events_between(before: Json, after: Json) -> list[Emit]:
    """Events for conditions that turned, and for new scaling decisions."""
    known = {item["type"]: item for item in before.get("conditions", [])}
    events: list[Emit] = []
    for item in after["conditions"]:
        old = known.get(item["type"])
        # Ready has a reason for every stage on the way; of its parts only the turns matter.
        watched = ("status", "reason") if item["type"] == "Ready" else ("status",)
        if old is not None and any(old[name] != item[name] for name in watched):
            events.append(_turned(item))
    failed = after.get("rollout", {}).get("failure")
    if failed and failed != before.get("rollout", {}).get("failure"):
        new, previous = after["rollout"]["revision"], after["rollout"]["previous"]
        words = f"revision {new} failed: {failed['message']}; revision {previous} serves again"
        events.append(Emit("Warning", ROLLED_BACK, words))
    old_decisions = before.get("scalingDecisions", [])
    for decision in after.get("scalingDecisions", []):
        if decision not in old_decisions and "from" in decision:
            change = f"{decision['from']} to {decision['to']} workers"
            events.append(Emit("Normal", "Scaled", f"{decision['pool']}: {change}, {decision['reason']}"))
    return events


def _turned(item: Json) -> Emit:
    words = f"{item['type']} is {item['status']}: {item['message']}"
    if item["status"] == "True":
        return Emit("Normal", item["type"], words)
    return Emit("Warning", item["reason"], words)
