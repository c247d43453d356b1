"""A ModelDeployment from its birth to its end, on a real API server."""

from __future__ import annotations

import json

import pytest

from tests.operator.cluster.kube import Kube, Refused, eventually, model_deployment
from tests.operator.cluster.operator_process import OperatorProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
GPU = {"gpu": {"count": 2, "type": "NVIDIA-H100-80GB-HBM3"}}


def _ready(kube: Kube, namespace: str, name: str = "demo") -> bool:
    return bool(kube.condition(namespace, name, "Ready").get("status") == "True")


def _gone(kube: Kube, namespace: str, kind: str) -> bool:
    return kube.names(namespace, kind) == []


def _deployment(kube: Kube, namespace: str, pool: str) -> str:
    [found] = kube.listing(namespace, "deployments", f"serving.twolane.dev/pool={pool}")
    return str(found["metadata"]["name"])


def test_a_short_declaration_serves_and_its_end_leaves_nothing(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """Restricted pods on device nodes, a truthful table, a drain in order, and no forbidden request."""
    kube.apply(namespace, model_deployment(pools={"prefill": {"short": GPU, "long": GPU}, "decode": GPU}))
    eventually(lambda: _ready(kube, namespace))
    header, row = kube.kubectl("get", "md", "demo", "--namespace", namespace).splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "PREFILL", "DECODE", "URL", "AGE"]
    url = f"http://demo.{namespace}.svc:8000/v1"
    assert row.split()[:-1] == ["demo", "True", "Serving", "2/2", "1/1", url]
    status = kube.get(namespace, "md", "demo")["status"]
    assert status["observedGeneration"] == 1
    assert status["servingRevisions"] == [status["revision"]]
    pods = kube.listing(namespace, "pods", "serving.twolane.dev/component=worker")
    assert {pod["spec"]["nodeSelector"]["nvidia.com/gpu.product"] for pod in pods} == {GPU["gpu"]["type"]}
    assert all(pod["spec"]["nodeName"] == "node-a" for pod in pods)

    kube.kubectl("delete", "md", "demo", "--namespace", namespace, "--wait=false")
    eventually(lambda: _gone(kube, namespace, "md"))
    for kind in ("workerpools", "deployments", "pods", "services", "networkpolicies", "poddisruptionbudgets"):
        eventually(lambda kind=kind: _gone(kube, namespace, kind))  # type: ignore[misc]
    assert "Drained" in kube.events(namespace)
    assert not operator.said("forbidden")


def test_what_hands_change_is_set_back(kube: Kube, namespace: str, operator: OperatorProcess) -> None:
    """An image, a count, a policy that is opened, a service that is deleted."""
    kube.apply(namespace, model_deployment())
    eventually(lambda: _ready(kube, namespace))
    name = _deployment(kube, namespace, "decode")
    image = '[{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"evil"}]'
    kube.kubectl("patch", "deployment", name, "-n", namespace, "--type=json", "--patch", image)
    kube.kubectl("scale", "deployment", name, "-n", namespace, "--replicas=4")
    kube.kubectl(
        "patch",
        "networkpolicy",
        "demo-broker",
        "-n",
        namespace,
        "--type=json",
        "--patch",
        '[{"op":"add","path":"/spec/ingress/-","value":{}}]',
    )
    kube.kubectl("delete", "service", "demo", "-n", namespace)

    def mended() -> bool:
        deployment = kube.get(namespace, "deployment", name)["spec"]
        [container] = deployment["template"]["spec"]["containers"]
        policy = kube.get(namespace, "networkpolicy", "demo-broker")["spec"]
        service = kube.get(namespace, "service", "demo")["spec"]
        return bool(
            container["image"] == "twolane:test"
            and deployment["replicas"] == 1
            and len(policy["ingress"]) == 2
            and service["ports"]
        )

    eventually(mended)
    assert "set back" in kube.events(namespace)["DriftRepaired"]


def test_a_settled_deployment_is_not_written_any_more(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """What the API server makes of our objects counts as what we wanted: no write repeats for ever."""
    kube.apply(namespace, model_deployment(podTemplate={"spec": {"terminationGracePeriodSeconds": 90}}))
    eventually(lambda: _ready(kube, namespace))
    kube.until(namespace, "demo", "RolloutComplete", status="True")
    kinds = "deployments,services,workerpools,poddisruptionbudgets,networkpolicies,modeldeployments"

    def versions() -> dict[str, str]:
        items = json.loads(kube.kubectl("get", kinds, "-n", namespace, "-o", "json"))["items"]
        return {f"{i['kind']}/{i['metadata']['name']}": i["metadata"]["resourceVersion"] for i in items}

    def looks() -> int:
        return operator.log.read_text(encoding="utf-8").count('"plan"')

    before, plans = versions(), looks()
    # A label of somebody else wakes the operator; it must find nothing to do.
    for number in range(3):
        kube.kubectl("label", "pods", "--all", "-n", namespace, f"touched={number}", "--overwrite")
    eventually(lambda: kube.listing(namespace, "pods", "touched=2"))
    kube.kubectl("annotate", "md", "demo", "-n", namespace, "seen=1")
    eventually(lambda: versions()["ModelDeployment/demo"] != before["ModelDeployment/demo"])
    # It does react: this plan comes after all those that must be empty.
    kube.kubectl("delete", "service", "demo", "-n", namespace)
    eventually(lambda: looks() > plans)
    after = versions()
    same = [name for name in before if name not in ("ModelDeployment/demo", "Service/demo")]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_a_name_that_somebody_else_uses_is_not_taken_over(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """Server-side apply would do it silently; the status says what is in the way."""
    kube.kubectl("create", "service", "clusterip", "demo", "--tcp=80:80", "-n", namespace)
    kube.apply(namespace, model_deployment())
    condition = kube.until(namespace, "demo", "Ready", reason="ApplyRefused")
    assert "Service demo exists and does not belong to this ModelDeployment" in condition["message"]
    assert kube.get(namespace, "service", "demo")["spec"]["ports"][0]["port"] == 80
    kube.kubectl("delete", "service", "demo", "-n", namespace)
    eventually(lambda: _ready(kube, namespace))


def test_workers_that_fit_nowhere_say_so(kube: Kube, namespace: str, operator: OperatorProcess) -> None:
    """The scheduler's own words are in the status."""
    pools = {"mixed": {"gpu": {"type": "NVIDIA-NONE-SUCH"}}}
    kube.apply(namespace, model_deployment(pools=pools))
    condition = kube.until(namespace, "demo", "Ready", reason="Unschedulable")
    assert "didn't match Pod's node affinity/selector" in condition["message"]


def test_a_pod_that_the_namespace_refuses_is_explained(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """A hostPath source leaves the restricted standard; the admission's own words are in the status."""
    body = model_deployment()
    body["spec"]["model"] = {"hostPath": {"path": "/models"}}
    kube.apply(namespace, body)
    condition = kube.until(namespace, "demo", "ModelLoaded", reason="PodsRefused")
    assert "violates PodSecurity" in condition["message"]


def test_the_operator_may_do_no_more_than_it_needs(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """No Secrets, no pods to make, nothing in other namespaces."""
    account = f"system:serviceaccount:{namespace}:twolane-operator"
    for verb, what, where in [
        ("get", "secrets", namespace),
        ("create", "pods", namespace),
        ("create", "rolebindings", namespace),
        ("list", "modeldeployments", "default"),
        ("create", "deployments", "default"),
    ]:
        with pytest.raises(Refused):
            kube.kubectl("auth", "can-i", verb, what, "-n", where, "--as", account, "--quiet")
    kube.kubectl("auth", "can-i", "create", "deployments", "-n", namespace, "--as", account, "--quiet")
