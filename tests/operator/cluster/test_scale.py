"""Whoever scales a pool: kubectl, an autoscaler, the declaration. The operator never fights one."""

from __future__ import annotations

import json

import pytest

from tests.operator.cluster.kube import Kube, eventually, model_deployment
from tests.operator.cluster.operator_process import OperatorProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
MIXED = {"mixed": {"replicas": 1, "scaling": {"maxReplicas": 4}}}


def _workers(kube: Kube, namespace: str) -> int:
    [deployment] = kube.listing(namespace, "deployments", "serving.twolane.dev/pool=mixed")
    return int(deployment["spec"]["replicas"])


def _asked(kube: Kube, namespace: str) -> int:
    return int(kube.get(namespace, "wp", "demo-mixed")["spec"]["replicas"])


def _serving(kube: Kube, namespace: str) -> None:
    kube.apply(namespace, model_deployment(pools=MIXED))
    kube.until(namespace, "demo", "Ready", status="True")


def _scale(kube: Kube, namespace: str, kind: str, name: str, replicas: int, manager: str) -> None:
    body = {"spec": {"replicas": replicas}}
    kube.patch(namespace, kind, name, body, "--subresource=scale", f"--field-manager={manager}")


def test_kubectl_scale_works_on_a_pool_and_stays(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """Followed, shown with its reason, and not written back by anything that happens later."""
    _serving(kube, namespace)
    kube.kubectl("scale", "workerpool", "demo-mixed", "-n", namespace, "--replicas=3")
    eventually(lambda: kube.get(namespace, "md", "demo")["status"]["decode"] == "3/3")
    decision = kube.get(namespace, "md", "demo")["status"]["scalingDecisions"][0]
    assert (decision["from"], decision["to"]) == (1, 3)
    assert decision["reason"] == "3 asked for by kubectl"
    # A new revision, a deleted child: neither brings the declared count back.
    kube.patch(namespace, "md", "demo", {"spec": {"logLevel": "DEBUG"}})
    kube.until(namespace, "demo", "RolloutComplete", observedGeneration=2, status="True")
    revision = kube.get(namespace, "md", "demo")["status"]["revision"]
    assert _workers(kube, namespace) == 3
    assert _asked(kube, namespace) == 3
    pool = kube.get(namespace, "wp", "demo-mixed")
    assert pool["status"]["revision"] == revision
    assert _writers_of_the_count(kube, namespace) == ["kubectl"]


def _writers_of_the_count(kube: Kube, namespace: str) -> list[str]:
    args = ["get", "wp", "demo-mixed", "-n", namespace, "-o", "json", "--show-managed-fields"]
    entries = json.loads(kube.kubectl(*args))["metadata"]["managedFields"]
    return [e["manager"] for e in entries if "f:replicas" in e["fieldsV1"].get("f:spec", {})]


def test_an_autoscaler_is_held_within_the_bounds(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """Its wish is kept as it is; what runs is bounded, and the pool says why."""
    _serving(kube, namespace)
    _scale(kube, namespace, "wp", "demo-mixed", 9, "keda")
    eventually(lambda: _workers(kube, namespace) == 4)
    assert _asked(kube, namespace) == 9
    message = eventually(lambda: str(kube.get(namespace, "wp", "demo-mixed")["status"]["message"]))
    assert message == "9 asked for, held at scaling.maxReplicas, 4"
    path = f"/apis/serving.twolane.dev/v1alpha1/namespaces/{namespace}/workerpools/demo-mixed/scale"
    scale = json.loads(kube.kubectl("get", "--raw", path))
    # What an autoscaler needs: the pods by selector, and the count.
    eventually(lambda: kube.get(namespace, "wp", "demo-mixed")["status"]["replicas"] == 4)
    assert len(kube.listing(namespace, "pods", scale["status"]["selector"])) == 4


def test_a_count_changed_in_the_declaration_is_passed_on_once(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """The last explicit wish counts, and an autoscaler may move on from it."""
    _serving(kube, namespace)
    _scale(kube, namespace, "wp", "demo-mixed", 3, "keda")
    eventually(lambda: _workers(kube, namespace) == 3)
    kube.patch(namespace, "md", "demo", {"spec": {"pools": {"mixed": {"replicas": 2}}}})
    eventually(lambda: _workers(kube, namespace) == 2)
    _scale(kube, namespace, "wp", "demo-mixed", 4, "keda")
    eventually(lambda: _workers(kube, namespace) == 4)
    kube.patch(namespace, "md", "demo", {"spec": {"router": {"replicas": 1}}})
    eventually(lambda: kube.get(namespace, "md", "demo")["status"]["observedGeneration"] == 3)
    assert _asked(kube, namespace) == 4


def test_a_scaler_on_the_deployment_itself_is_named_and_left_alone(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """The status says where to point it; the count stays as the scaler wrote it."""
    _serving(kube, namespace)
    name = kube.listing(namespace, "deployments", "serving.twolane.dev/pool=mixed")[0]["metadata"]["name"]
    _scale(kube, namespace, "deployment", name, 3, "kube-controller-manager")
    condition = kube.until(namespace, "demo", "ScalingActive", reason="ForeignScaler")
    assert "point it at workerpool/demo-mixed" in condition["message"]
    kube.patch(namespace, "md", "demo", {"spec": {"router": {"replicas": 1}}})
    eventually(lambda: kube.get(namespace, "md", "demo")["status"]["observedGeneration"] == 2)
    assert _workers(kube, namespace) == 3


def test_a_pool_can_be_scaled_to_nothing_and_back(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """With minReplicas 0; the table says so."""
    pools = {"mixed": {"replicas": 1, "scaling": {"minReplicas": 0}}}
    kube.apply(namespace, model_deployment(pools=pools))
    kube.until(namespace, "demo", "Ready", status="True")
    kube.kubectl("scale", "wp", "demo-mixed", "-n", namespace, "--replicas=0")
    kube.until(namespace, "demo", "Ready", reason="ScaledToZero")
    eventually(lambda: _workers(kube, namespace) == 0)
    kube.kubectl("scale", "wp", "demo-mixed", "-n", namespace, "--replicas=2")
    kube.until(namespace, "demo", "Ready", status="True")


def test_a_model_that_sleeps_says_so_in_the_table_and_wakes(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """Ready without workers, since routers hold what comes; the rest of the row tells the truth too."""
    # kwok's pods have no metrics, so the planner leaves the counts alone.
    kube.apply(namespace, model_deployment(scaling={"scaleToZero": {"holdSeconds": 45}}))
    kube.until(namespace, "demo", "Ready", reason="Serving")
    revision = kube.get(namespace, "md", "demo")["status"]["revision"]
    for pool in ("demo-prefill", "demo-decode"):
        kube.kubectl("scale", "wp", pool, "-n", namespace, "--replicas=0")
    condition = kube.until(namespace, "demo", "Ready", reason="Asleep")
    assert condition["status"] == "True"
    assert "held for up to 45 s" in condition["message"]
    # The last workers may still be leaving.
    eventually(
        lambda: (
            kube.kubectl("get", "md", "demo", "-n", namespace, "--no-headers").split()[:5]
            == ["demo", "True", "Asleep", "0/0", "0/0"]
        )
    )
    [router] = kube.listing(namespace, "deployments", "serving.twolane.dev/component=router")
    args = router["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[args.index("--hold-s") + 1] == "45"
    for pool in ("demo-prefill", "demo-decode"):
        kube.kubectl("scale", "wp", pool, "-n", namespace, "--replicas=1")
    kube.until(namespace, "demo", "Ready", reason="Serving")
    # Latency targets are the routers' alone: no worker starts anew for them.
    kube.patch(namespace, "md", "demo", {"spec": {"slo": {"ttftMs": 300, "long": {"ttftMs": 9000}}}})
    eventually(lambda: kube.get(namespace, "md", "demo")["status"]["observedGeneration"] == 2)
    assert kube.get(namespace, "md", "demo")["status"]["revision"] == revision
