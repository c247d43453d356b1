"""Planned counts against a real API server: with the chart's rights, beside autoscalers and people."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio import client, config

from tests.operator.cluster.kube import ROOT, Kube, eventually, model_deployment
from tests.operator.cluster.operator_process import OperatorProcess, operator_kubeconfig
from tests.operator.test_planner import _router, _worker
from twolane.operator.cluster import Cluster
from twolane.operator.metrics import OperatorMetrics
from twolane.operator.names import PLANNER_MANAGER
from twolane.operator.observe import observe
from twolane.operator.planner_keeper import PlannerKeeper
from twolane.operator.planner_spec import INTERVAL_S
from twolane.operator.scrape import Reading
from twolane.operator.watches import Watches
from twolane.telemetry.metrics import new_registry

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
POOLS = {"prefill": {"shared": {"scaling": {"maxReplicas": 6}}}, "decode": {"scaling": {"maxReplicas": 6}}}
AUTOSCALERS = ROOT / "deploy" / "autoscaling" / "hpa.yaml"


class _Load:
    """Speaks for every pod, since kwok's pods run nothing."""

    def __init__(self) -> None:
        self.arrivals = 0.0

    async def read(self, pods: Any) -> dict[str, Reading]:
        """A router under load, or a worker that has measured its steps."""
        names = [pod["metadata"]["name"] for pod in pods]
        return {name: _router(0.0, self.arrivals) if "-router-" in name else _worker(0.0) for name in names}


def _count(kube: Kube, namespace: str, pool: str) -> int:
    return int(kube.get(namespace, "wp", f"demo-{pool}")["spec"]["replicas"])


def _writers(kube: Kube, namespace: str, pool: str) -> list[str]:
    args = ["get", "wp", f"demo-{pool}", "-n", namespace, "-o", "json", "--show-managed-fields"]
    entries = json.loads(kube.kubectl(*args))["metadata"]["managedFields"]
    return [e["manager"] for e in entries if "f:replicas" in e["fieldsV1"].get("f:spec", {})]


async def _plan(kubeconfig: Path, namespace: str, rate: float, intervals: int) -> None:
    """Plans as the leader would, with the rights of a kubeconfig."""
    access = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=access)  # type: ignore[no-untyped-call]
    cluster = Cluster(client.ApiClient(access), OperatorMetrics(new_registry()))
    load = _Load()
    keeper = PlannerKeeper(cluster, load)  # type: ignore[arg-type]
    watches = Watches(cluster, [namespace])
    running = asyncio.create_task(watches.run())
    try:
        await watches.complete()
        for number in range(intervals):
            load.arrivals += rate * INTERVAL_S
            observed = await observe(cluster.store, load, namespace, "demo")  # type: ignore[arg-type]
            assert observed is not None
            await keeper.keep(observed, number * INTERVAL_S)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await cluster.close()


def test_a_planned_count_is_written_with_the_rights_of_the_chart(
    kube: Kube,
    namespace: str,
    operator: OperatorProcess,
    tmp_path: Path,
) -> None:
    """By the planner's own field manager; the operator follows it and says why."""
    kube.apply(namespace, model_deployment(pools=POOLS, router={"replicas": 1}, scaling={}))
    kube.until(namespace, "demo", "Ready", status="True")
    asyncio.run(_plan(operator_kubeconfig(kube, namespace, tmp_path), namespace, 40.0, 8))
    assert _count(kube, namespace, "prefill") > 1
    assert PLANNER_MANAGER in _writers(kube, namespace, "prefill")

    def said() -> bool:
        decisions = kube.get(namespace, "md", "demo")["status"]["scalingDecisions"]
        return any("work for" in decision["reason"] for decision in decisions)

    eventually(said)


def test_an_autoscaler_owns_its_pool_and_the_planner_leaves_it_alone(
    kube: Kube,
    namespace: str,
    operator: OperatorProcess,
    tmp_path: Path,
) -> None:
    """The example for HorizontalPodAutoscalers reaches a pool through its Scale subresource: the real
    controller raises it to its least count, and no plan writes over that."""
    kube.apply(namespace, model_deployment(pools=POOLS, router={"replicas": 1}, scaling={}))
    kube.until(namespace, "demo", "Ready", status="True")
    prefill, _ = yaml.safe_load_all(AUTOSCALERS.read_text(encoding="utf-8"))
    prefill["spec"]["minReplicas"] = 3
    kube.apply(namespace, prefill)
    eventually(lambda: _count(kube, namespace, "prefill") == 3)
    assert "kube-controller-manager" in _writers(kube, namespace, "prefill")
    asyncio.run(_plan(operator_kubeconfig(kube, namespace, tmp_path), namespace, 40.0, 8))
    assert _count(kube, namespace, "prefill") == 3
    assert _count(kube, namespace, "decode") > 1
    autoscaler = kube.get(namespace, "hpa", "demo-prefill")
    able = [c for c in autoscaler["status"]["conditions"] if c["type"] == "AbleToScale"]
    assert able[0]["status"] == "True"
