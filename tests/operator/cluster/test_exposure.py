"""Ingress, HTTPRoute and the routers' autoscaler on a real API server; Scale counts routers."""

from __future__ import annotations

import json

import pytest

from tests.helm.foreign_kinds import install_foreign_kinds
from tests.operator.cluster.kube import Kube, Refused, eventually, model_deployment
from tests.operator.cluster.operator_process import OperatorProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
INGRESS = {"hosts": ["chat.example"], "className": "any", "tlsSecretName": "chat-tls"}
ROUTE = {"parentRefs": [{"name": "front", "namespace": "edge"}], "hostnames": ["chat.example"]}
ROUTER = {
    "replicas": 2,
    "resources": {"requests": {"cpu": "100m"}},
    "autoscaling": {"minReplicas": 1, "maxReplicas": 5},
}
KINDS = ("ingress", "httproutes", "hpa")


def test_ways_in_come_and_go_with_the_spec(kube: Kube, namespace: str, operator: OperatorProcess) -> None:
    """Made with the rights of the chart, repaired when changed, deleted when no longer asked for."""
    install_foreign_kinds(kube)
    kube.apply(namespace, model_deployment(router={**ROUTER, "ingress": INGRESS, "httpRoute": ROUTE}))
    kube.until(namespace, "demo", "Ready", status="True")
    for kind in KINDS:
        eventually(lambda kind=kind: len(kube.names(namespace, kind)) == 1)  # type: ignore[misc]
    [rule] = kube.get(namespace, "ingress", "demo")["spec"]["rules"]
    assert rule["host"] == "chat.example"
    kube.patch(
        namespace,
        "md",
        "demo",
        {"spec": {"router": {"ingress": None, "httpRoute": None, "autoscaling": None}}},
    )
    for kind in KINDS:
        eventually(lambda kind=kind: kube.names(namespace, kind) == [])  # type: ignore[misc]
    assert not operator.said("forbidden")


def test_scaling_a_model_deployment_scales_its_routers(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """As kubectl and autoscalers do: count and selector by the Scale subresource; no pod restarts for it."""
    kube.apply(namespace, model_deployment(router=ROUTER))
    kube.until(namespace, "demo", "Ready", status="True")
    revision = kube.get(namespace, "md", "demo")["status"]["revision"]
    path = f"/apis/serving.twolane.dev/v1alpha1/namespaces/{namespace}/modeldeployments/demo/scale"
    scale = json.loads(kube.kubectl("get", "--raw", path))
    selector = scale["status"]["selector"]
    assert len(kube.listing(namespace, "pods", selector)) == scale["status"]["replicas"] == 2
    kube.kubectl("scale", "md", "demo", "-n", namespace, "--replicas=4")
    eventually(lambda: kube.get(namespace, "md", "demo")["status"]["routers"]["ready"] == 4)
    assert len(kube.listing(namespace, "pods", selector)) == 4
    assert kube.get(namespace, "md", "demo")["status"]["revision"] == revision
    [target] = [hpa["spec"]["scaleTargetRef"] for hpa in kube.listing(namespace, "hpa")]
    assert (target["kind"], target["name"]) == ("ModelDeployment", "demo")
    # The autoscaler's controller finds its target and reads the count; it has no metrics here.
    eventually(lambda: kube.get(namespace, "hpa", "demo-router")["status"]["currentReplicas"] == 4)


def test_a_route_without_the_gateway_api_is_said_in_the_status(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """The rest serves; the condition names what is to be installed."""
    crd = "httproutes.gateway.networking.k8s.io"
    kube.kubectl("delete", "crd", crd, "--ignore-not-found")
    kube.apply(namespace, model_deployment(router={"httpRoute": ROUTE}))
    condition = kube.until(namespace, "demo", "Ready", reason="ApplyRefused")
    assert "no kind HTTPRoute" in condition["message"]
    assert kube.names(namespace, "services")


@pytest.mark.parametrize(
    ("router", "words"),
    [
        ({"autoscaling": {"maxReplicas": 3}}, "router.resources.requests.cpu"),
        ({**ROUTER, "autoscaling": {"minReplicas": 4, "maxReplicas": 3}}, "must not be below"),
        ({"ingress": {"hosts": []}}, "at least 1"),
        ({"httpRoute": {"parentRefs": []}}, "at least 1"),
    ],
)
def test_what_can_not_work_is_refused(
    kube: Kube, namespace: str, router: dict[str, object], words: str
) -> None:
    """At the moment of kubectl apply."""
    with pytest.raises(Refused, match=words):
        kube.apply(namespace, model_deployment(router=router))
