"""Workers of several pods on a real API server: StatefulSets that its own controllers make pods for."""

from __future__ import annotations

import json

import pytest

from tests.operator.cluster.kube import Json, Kube, eventually, model_deployment
from tests.operator.cluster.operator_process import OperatorProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
WORKER, RANK = "serving.twolane.dev/worker", "apps.kubernetes.io/pod-index"
GANG = {"tensorParallel": {"size": 2, "podsPerWorker": 2}, "gpu": {"count": 1}, "replicas": 2}
POOLS = {"prefill": {"shared": {}}, "decode": GANG}


def _ready(kube: Kube, namespace: str) -> None:
    kube.apply(namespace, model_deployment(pools=POOLS))
    kube.until(namespace, "demo", "RolloutComplete", status="True")
    kube.until(namespace, "demo", "Ready", reason="Serving")


def _ranks(kube: Kube, namespace: str) -> list[Json]:
    return kube.listing(namespace, "pods", WORKER)


def _decode(kube: Kube, namespace: str) -> str:
    return str(kube.get(namespace, "md", "demo")["status"]["decode"])


def test_workers_of_several_pods_count_scale_and_end_as_one(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """Two pods each with numbers for ranks, counts in workers, and nothing left of those that end."""
    _ready(kube, namespace)
    labels = [pod["metadata"]["labels"] for pod in _ranks(kube, namespace)]
    names = {entry[WORKER] for entry in labels}
    assert sorted((entry[WORKER], entry[RANK]) for entry in labels) == sorted(
        (name, rank) for name in names for rank in ("0", "1")
    )
    assert len(names) == 2
    assert _decode(kube, namespace) == "2/2"
    path = f"/apis/serving.twolane.dev/v1alpha1/namespaces/{namespace}/workerpools/demo-decode/scale"
    scale = json.loads(kube.kubectl("get", "--raw", path))
    assert scale["status"]["replicas"] == 2
    # An autoscaler sees one pod a worker.
    assert len(kube.listing(namespace, "pods", scale["status"]["selector"])) == 2
    budget = kube.get(namespace, "pdb", "demo-decode")
    eventually(lambda: kube.get(namespace, "pdb", "demo-decode")["status"]["expectedPods"] == 4)
    assert budget["spec"]["maxUnavailable"] == 1

    kube.kubectl("scale", "wp", "demo-decode", "-n", namespace, "--replicas=1")
    eventually(lambda: len(kube.names(namespace, "statefulsets")) == 1)
    eventually(lambda: len(_ranks(kube, namespace)) == 2)
    assert _decode(kube, namespace) == "1/1"
    kube.kubectl("delete", "md", "demo", "-n", namespace, "--wait=false")
    for kind in ("md", "statefulsets", "services", "pods"):
        eventually(lambda kind=kind: kube.names(namespace, kind) == [])  # type: ignore[misc]
    assert not operator.said("forbidden")


def test_one_missing_rank_takes_its_whole_worker_out_of_the_count(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """And a rank that did not notice the end of another is replaced with it."""
    _ready(kube, namespace)
    first, second = sorted(pod["metadata"]["name"] for pod in _ranks(kube, namespace))[:2]
    _set_life(kube, namespace, first, started="2026-01-01T00:00:00Z")
    _set_life(kube, namespace, second, started="2026-01-01T01:00:00Z", ended="2026-01-01T00:59:00Z")
    eventually(lambda: "WorkerRestarted" in kube.events(namespace))
    assert f"{first} went on after another rank had ended" in kube.events(namespace)["WorkerRestarted"]
    eventually(lambda: _decode(kube, namespace) == "2/2")
    pods = [kube.get(namespace, "pod", name) for name in (first, second)]
    started = [pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] for pod in pods]
    assert all(moment > "2026-01-01T02" for moment in started)


def _set_life(kube: Kube, namespace: str, pod: str, started: str, ended: str = "") -> None:
    """A process that is not ready, and when it started; the one before it ended with an error."""
    status = kube.get(namespace, "pod", pod)["status"]
    container = status["containerStatuses"][0]
    container |= {"ready": False, "state": {"running": {"startedAt": started}}}
    if ended:
        container["lastState"] = {"terminated": {"exitCode": 1, "finishedAt": ended, "startedAt": ended}}
    conditions = [
        item | ({"status": "False"} if "Ready" in item["type"] else {}) for item in status["conditions"]
    ]
    body = {"status": {"containerStatuses": [container], "conditions": conditions}}
    kube.patch(namespace, "pod", pod, body, "--subresource=status")


def test_settled_workers_of_several_pods_are_not_written_any_more(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """What the API server makes of a StatefulSet counts as what we wanted."""
    _ready(kube, namespace)

    def plans() -> list[str]:
        lines = operator.log.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if '"plan"' in line and "Apply" in line]

    before = len(plans())
    kube.kubectl("label", "pods", "--all", "-n", namespace, "touched=1")
    # Everything that comes before this plan must be empty.
    kube.kubectl("delete", "service", "demo", "-n", namespace)
    eventually(lambda: "demo" in kube.names(namespace, "services"))
    fresh = plans()[before:]
    assert [line.count("Apply") for line in fresh] == [1], fresh
