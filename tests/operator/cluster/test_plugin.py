"""`twolane k8s` against a real API server, as `kubectl twolane` runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.operator.cluster.kube import Kube, eventually, model_deployment
from tests.operator.cluster.operator_process import OperatorProcess, chart

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
GPU = {"gpu": {"count": 1, "type": "NVIDIA-H100-80GB-HBM3"}}


def _twolane(kube: Kube, namespace: str, *args: str) -> tuple[int, str]:
    """Status and everything printed by `kubectl twolane ARGS`; kubectl finds it beside the interpreter."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(kube.kubeconfig)}
    command = [kube.program, "twolane", *args, "--namespace", namespace]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_status_and_explain_follow_a_deployment(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """Down to the pods, with who scaled a pool, and with the cause of a pool that can't be."""
    status, text = _twolane(kube, namespace, "status")
    assert status == 1
    assert f"no ModelDeployment in namespace {namespace}" in text
    kube.apply(namespace, model_deployment(pools={"prefill": {"shared": GPU}, "decode": GPU}))
    kube.until(namespace, "demo", "Ready", status="True")
    kube.kubectl("scale", "workerpool", "demo-prefill", "--namespace", namespace, "--replicas=2")

    def scaled() -> bool:
        status, text = _twolane(kube, namespace, "status", "demo")
        return status == 0 and "prefill (prefill): 2 of 2 workers ready" in text

    eventually(scaled)
    _, text = _twolane(kube, namespace, "status", "demo")
    for pod in kube.names(namespace, "pods"):
        assert f"{pod}  ready" in text
    status, text = _twolane(kube, namespace, "explain", "demo")
    assert status == 0
    assert "demo-prefill: 2 wanted, 2 ready, 2 pods exist" in text
    assert "2 asked for by kubectl" in text
    assert "1 to 2 workers: 2 asked for by kubectl" in text
    status, text = _twolane(kube, namespace, "explain", "dmeo")
    assert status == 1
    assert "there are demo" in text


def test_doctor_names_what_is_missing(kube: Kube, namespace: str, operator: OperatorProcess) -> None:
    """A pool whose devices no node has, an operator that was never installed; what is well is said too."""
    huge = {"gpu": {"count": 9, "type": "NVIDIA-B900"}}
    kube.apply(namespace, model_deployment(pools={"prefill": {"shared": huge}, "decode": GPU}))
    eventually(lambda: kube.condition(namespace, "demo", "Ready"))
    status, text = _twolane(kube, namespace, "doctor")
    assert status == 1
    assert "modeldeployments v1alpha1 have every field that this program knows" in text
    assert f"FAIL  {namespace}/demo, pool prefill: 9 nvidia.com/gpu of type NVIDIA-B900" in text
    assert f"ok    {namespace}/demo, pool decode" in text


def test_doctor_asks_for_the_rights_of_an_installed_operator(kube: Kube, namespace: str) -> None:
    """The chart's objects without its rights: the doctor lists what the account may not."""
    bodies = chart(namespace, "--set", f"watchNamespaces={{{namespace}}}")
    rights = [body for body in bodies if body["kind"] in ("Role", "RoleBinding")]
    others = [body for body in bodies if body["kind"] in ("ServiceAccount", "Deployment")]
    kube.kubectl("apply", "--namespace", namespace, "--filename", "-", text=yaml.safe_dump_all(others))
    _, text = _twolane(kube, namespace, "doctor")
    account = f"system:serviceaccount:{namespace}:twolane-operator"
    assert f"{account} may not list modeldeployments" in text
    kube.kubectl("apply", "--namespace", namespace, "--filename", "-", text=yaml.safe_dump_all(rights))

    def granted() -> bool:
        return (
            f"operator {namespace}/twolane-operator has its rights in {namespace}"
            in _twolane(kube, namespace, "doctor")[1]
        )

    eventually(granted)


def test_logs_of_a_pod_that_is_gone_are_explained(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """No kubelet answers for kwok's pods: each is named, and the end says what to do."""
    kube.apply(namespace, model_deployment())
    kube.until(namespace, "demo", "Ready", status="True")
    status, text = _twolane(kube, namespace, "logs", "demo", "req-1")
    assert status == 1
    assert "no line about req-1 in" in text
    assert "a log collector keeps them" in text
