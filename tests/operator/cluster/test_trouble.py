"""The cluster misbehaves: the API server goes away, the leader dies, writers collide."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cluster.control_plane import ControlPlane
from tests.operator.cluster.kube import Kube, eventually, model_deployment
from tests.operator.cluster.operator_process import OperatorProcess, operator_kubeconfig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def _ready(kube: Kube, namespace: str) -> bool:
    return bool(kube.condition(namespace, "demo", "Ready").get("status") == "True")


def test_work_goes_on_after_a_restart_of_the_api_server(
    kube: Kube, namespace: str, operator: OperatorProcess, control_plane: ControlPlane | None
) -> None:
    """In the middle of a creation, and again for a change made right after; the process never ends."""
    if control_plane is None:
        pytest.skip("only our own API server is restarted")
    kube.apply(namespace, model_deployment())
    control_plane.stop_part("kube-apiserver")
    control_plane.start_part("kube-apiserver")
    eventually(lambda: _ready(kube, namespace))
    kube.kubectl("scale", "wp", "demo-decode", "-n", namespace, "--replicas=2")
    eventually(lambda: kube.get(namespace, "md", "demo")["status"]["decode"] == "2/2")
    assert operator.running
    assert operator.stop() == 0
    operator.start()
    kube.kubectl("scale", "wp", "demo-decode", "-n", namespace, "--replicas=3")
    eventually(lambda: kube.get(namespace, "md", "demo")["status"]["decode"] == "3/3")


def test_a_leader_that_was_cut_off_stands_back_and_leads_again(
    kube: Kube, namespace: str, operator: OperatorProcess, control_plane: ControlPlane | None
) -> None:
    """It stops before another could start, and needs no restart to go on."""
    if control_plane is None:
        pytest.skip("only our own API server is stopped")
    kube.apply(namespace, model_deployment())
    eventually(lambda: _ready(kube, namespace))
    control_plane.stop_part("kube-apiserver")
    try:
        eventually(lambda: operator.said("lease lost"))
    finally:
        control_plane.start_part("kube-apiserver")
    kube.kubectl("scale", "wp", "demo-decode", "-n", namespace, "--replicas=2")
    eventually(lambda: kube.get(namespace, "md", "demo")["status"]["decode"] == "2/2")
    assert operator.running
    assert operator.log.read_text(encoding="utf-8").count('"leading"') == 2


def test_one_replica_leads_and_another_takes_over(kube: Kube, namespace: str, tmp_path: Path) -> None:
    """After a kill the lease runs out first; after an orderly end it is given over at once."""
    kubeconfig = operator_kubeconfig(kube, namespace, tmp_path)
    replicas = {name: OperatorProcess(kubeconfig, namespace, tmp_path, name) for name in ("a", "b")}

    def holder() -> str:
        return str(kube.get(namespace, "lease", "twolane-operator")["spec"].get("holderIdentity", ""))

    try:
        replicas["a"].start()
        eventually(lambda: holder() == "a")
        replicas["b"].start()
        kube.apply(namespace, model_deployment())
        eventually(lambda: _ready(kube, namespace))
        assert not replicas["b"].said('"plan"')
        replicas["a"].kill()
        eventually(lambda: holder() == "b")
        kube.kubectl("delete", "service", "demo", "-n", namespace)
        eventually(lambda: "demo" in kube.names(namespace, "services"))
        replicas["a"].start()
        assert replicas["b"].stop() == 0
        eventually(lambda: holder() == "a")
    finally:
        for replica in replicas.values():
            if replica.running:
                replica.stop()


def test_writers_that_collide_lose_nothing(kube: Kube, namespace: str, operator: OperatorProcess) -> None:
    """A user's finalizer and annotations survive while ours are written, and ours come through."""
    body = model_deployment()
    body["metadata"]["finalizers"] = ["example.org/mine"]
    kube.apply(namespace, body)
    for number in range(8):
        kube.kubectl("annotate", "md", "demo", "-n", namespace, f"note-{number}=x")
    eventually(lambda: _ready(kube, namespace))
    metadata = kube.get(namespace, "md", "demo")["metadata"]
    assert set(metadata["finalizers"]) == {"example.org/mine", "serving.twolane.dev/drain"}
    assert {f"note-{number}" for number in range(8)} <= set(metadata["annotations"])
    kube.kubectl("delete", "md", "demo", "-n", namespace, "--wait=false")
    eventually(lambda: kube.get(namespace, "md", "demo")["metadata"]["finalizers"] == ["example.org/mine"])


def test_what_changed_while_no_operator_ran_is_caught_up(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """Nothing depends on having seen an event."""
    kube.apply(namespace, model_deployment())
    eventually(lambda: _ready(kube, namespace))
    operator.kill()
    kube.patch(namespace, "md", "demo", {"spec": {"engine": {"pageTokens": 32}}})
    kube.kubectl("delete", "networkpolicy", "demo-worker", "-n", namespace)
    operator.start()
    eventually(lambda: "demo-worker" in kube.names(namespace, "networkpolicies"))
    kube.until(namespace, "demo", "RolloutComplete", observedGeneration=2, status="True")
    eventually(lambda: _ready(kube, namespace))
