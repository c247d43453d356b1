"""`twolane k8s explain`: why each pool has the number of workers it has.

Who asked for the count, what bounds hold it, what the last decisions were and why, which autoscaler
points where and what it says, and what pods that are missing wait for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic_settings import CliPositionalArg

from twolane.operator.names import MODEL_LABEL, POOL_LABEL, WORKER_POOL
from twolane.operator.observed import is_ready, label
from twolane.operator.plugin.access import Access, ClusterFlags, model_deployment, objects
from twolane.operator.resources.shape import Json
from twolane.operator.resources.worker_pool import read_pool
from twolane.operator.scaling import held_words, scaled_by
from twolane.operator.trouble import worst_trouble


class ExplainFlags(ClusterFlags):
    """Flags of `twolane k8s explain`."""

    process = "k8s"
    verb = "k8s explain"

    name: CliPositionalArg[str]
    """The ModelDeployment."""


def main(argv: list[str]) -> int:
    """Prints the explanation; returns 0."""
    flags = ExplainFlags.from_args(argv)
    access = Access(flags)
    item = model_deployment(access, flags.name)
    space, selector = access.namespace, f"{MODEL_LABEL}={flags.name}"
    pools = access.list(objects("workerpools", space), selector)
    pods = access.list(objects("pods", space, group="api/v1"), selector)
    scalers = access.list(objects("horizontalpodautoscalers", space, group="apis/autoscaling/v2"))
    print("\n".join(explanation(item, pools, pods, scalers)))
    return 0


def explanation(
    item: Json, pools: Iterable[Json], pods: Sequence[Json], scalers: Sequence[Json]
) -> list[str]:
    """The lines: first scaling as a whole, then each pool.

    Args:
        item: the ModelDeployment.
        pools: its WorkerPools.
        pods: its pods.
        scalers: the HorizontalPodAutoscalers of the namespace.
    """
    status = item.get("status", {})
    lines = [
        f"ScalingActive is {condition['status']} ({condition['reason']}): {condition['message']}"
        for condition in status.get("conditions", [])
        if condition["type"] == "ScalingActive"
    ]
    for pool in sorted(pools, key=lambda pool: str(pool["metadata"]["name"])):
        name = label(pool, POOL_LABEL)
        mine = [pod for pod in pods if label(pod, POOL_LABEL) == name]
        lines += ["", *_pool(pool, mine), *_scalers(pool, scalers)]
        decisions = [each for each in status.get("scalingDecisions", []) if each["pool"] == name]
        lines += [_decision(each) for each in decisions] or ["  no decision is on record"]
    return lines


def _pool(pool: Json, pods: Sequence[Json]) -> list[str]:
    spec, ready = read_pool(pool), sum(map(is_ready, pods))
    desired = pool.get("status", {}).get("desiredReplicas", spec.held_replicas)
    ceiling = "no limit" if spec.max_replicas is None else str(spec.max_replicas)
    lines = [f"{pool['metadata']['name']}: {desired} wanted, {ready} ready, {len(pods)} pods exist"]
    if spec.replicas is None:
        lines.append(f"  nobody asks for a count; bounds are {spec.min_replicas} to {ceiling}")
    else:
        held = f", {held_words(spec.replicas, desired)}" if desired != spec.replicas else ""
        asker = scaled_by(pool)
        lines.append(
            f"  {spec.replicas} asked for by {asker}{held}; bounds are {spec.min_replicas} to {ceiling}"
        )
    if (trouble := worst_trouble(pods)) is not None:
        lines.append(f"  a pod that does not serve: {trouble.reason}: {trouble.message}")
    return lines


def _scalers(pool: Json, scalers: Iterable[Json]) -> list[str]:
    lines = []
    for scaler in scalers:
        target = scaler["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) == (WORKER_POOL, pool["metadata"]["name"]):
            name = scaler["metadata"]["name"]
            found = scaler.get("status", {}).get("conditions", [])
            lines.append(f"  hpa/{name} scales it" + ("" if found else "; it has not looked yet"))
            lines += [f"    {c['type']} is {c['status']}: {c.get('message', '')}" for c in found]
    return lines


def _decision(decision: Json) -> str:
    start = f"{decision['from']} to " if "from" in decision else ""
    return f"  {decision['time']}  {start}{decision['to']} workers: {decision['reason']}"
