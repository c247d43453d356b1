"""The end of a release takes the operator's finalizers along, with no more rights than that needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.restricted import beyond, violations
from tests.operator.cluster.kube import Kube, Refused, eventually, model_deployment
from tests.operator.cluster.operator_process import OperatorProcess, chart, operator_kubeconfig
from twolane.operator.names import FINALIZER, MODEL_LABEL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
Json = dict[str, Any]
ACCOUNT = "twolane-leave"


def _hooks(namespace: str, *args: str) -> list[Json]:
    """What runs before the release ends."""
    return [
        body
        for body in chart(namespace, *args)
        if body["metadata"].get("annotations", {}).get("helm.sh/hook") == "pre-delete"
    ]


@pytest.fixture
def leaving(kube: Kube, namespace: str, tmp_path: Path) -> tuple[Path, list[str]]:
    """The kubeconfig of the hook's account, with the chart's rights in this namespace, and its arguments."""
    hooks = _hooks(namespace, "--set", f"watchNamespaces={{{namespace}}}")
    rights = [body for body in hooks if body["kind"] != "Job"]
    kube.kubectl("apply", "--filename", "-", text=yaml.safe_dump_all(rights))
    token = kube.kubectl("create", "token", ACCOUNT, "--namespace", namespace, "--duration=1h").strip()
    access = yaml.safe_load(kube.kubeconfig.read_text(encoding="utf-8"))
    for user in access["users"]:
        user["user"] = {"token": token}
    path = tmp_path / "leave-kubeconfig"
    path.write_text(yaml.safe_dump(access), encoding="utf-8")
    [job] = [body for body in hooks if body["kind"] == "Job"]
    [container] = job["spec"]["template"]["spec"]["containers"]
    return path, container["args"]


def _run(kubeconfig: Path, args: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "twolane.cli.main", *args]
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def _operators_deployment(kube: Kube, namespace: str) -> None:
    bodies = chart(namespace, "--set", f"watchNamespaces={{{namespace}}}")
    wanted = [body for body in bodies if body["kind"] in ("Deployment", "ServiceAccount")]
    kube.kubectl("apply", "--filename", "-", text=yaml.safe_dump_all(wanted))


def test_a_model_that_outlives_its_operator_can_be_deleted(
    kube: Kube, namespace: str, leaving: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """It serves on; kubectl delete then ends it and all its children, where it waited for ever before."""
    _operators_deployment(kube, namespace)
    pods = "app.kubernetes.io/name=twolane-operator"
    eventually(lambda: len(kube.listing(namespace, "pods", pods)) == 2)
    process = OperatorProcess(operator_kubeconfig(kube, namespace, tmp_path), namespace, tmp_path)
    process.start()
    try:
        kube.apply(namespace, model_deployment())
        kube.until(namespace, "demo", "Ready", status="True")
    finally:
        process.stop()
    kube.patch(namespace, "md", "demo", {"metadata": {"finalizers": [FINALIZER, "example.com/theirs"]}})
    done = _run(*leaving)
    assert done.returncode == 0, done.stderr
    assert f'"object": "{namespace}/demo"' in done.stdout + done.stderr
    assert kube.get(namespace, "deploy", "twolane-operator")["spec"]["replicas"] == 0
    assert kube.get(namespace, "md", "demo")["metadata"]["finalizers"] == ["example.com/theirs"]
    assert kube.listing(namespace, "pods", "serving.twolane.dev/model-deployment=demo")
    kube.patch(namespace, "md", "demo", {"metadata": {"finalizers": []}})
    kube.kubectl("delete", "md", "demo", "-n", namespace, "--timeout=30s", patience_s=60)
    for kind in ("wp", "deployments", "services", "pdb", "networkpolicies"):
        eventually(lambda kind=kind: not kube.listing(namespace, kind, MODEL_LABEL))  # type: ignore[misc]


def test_an_operator_that_does_not_stop_keeps_its_finalizers(
    kube: Kube, namespace: str, leaving: tuple[Path, list[str]]
) -> None:
    """It would put them back; the uninstall fails and says where to look."""
    kube.apply(namespace, {**model_deployment(), "metadata": {"name": "demo", "finalizers": [FINALIZER]}})
    pod: Json = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "operator-x",
            "labels": {"app.kubernetes.io/name": "twolane-operator", "app.kubernetes.io/instance": "twolane"},
        },
        "spec": _hooks(namespace)[-1]["spec"]["template"]["spec"] | {"serviceAccountName": "default"},
    }
    kube.apply(namespace, pod)
    path, args = leaving
    done = _run(path, [*args, "--stop-s=1"])
    assert done.returncode == 1
    assert f"kubectl get pods --namespace {namespace}" in done.stderr
    assert kube.get(namespace, "md", "demo")["metadata"]["finalizers"] == [FINALIZER]


def test_the_account_may_do_nothing_else(kube: Kube, namespace: str, leaving: tuple[Path, list[str]]) -> None:
    """No pod to make or to end, no Secret, no other Deployment, no other namespace."""
    account = f"system:serviceaccount:{namespace}:{ACCOUNT}"
    for verb, what, where in [
        ("create", "pods", namespace),
        ("delete", "modeldeployments", namespace),
        ("get", "secrets", namespace),
        ("patch", "deployments/other", namespace),
        ("list", "modeldeployments", "default"),
    ]:
        with pytest.raises(Refused):
            kube.kubectl("auth", "can-i", verb, what, "-n", where, "--as", account, "--quiet")


@pytest.mark.parametrize("values", [[], ["--set", "watchNamespaces={a,b}"]])
def test_the_hook_is_confined_and_ends_in_time(values: list[str]) -> None:
    """Restricted pod, a deadline below helm's own five minutes, nothing left after it."""
    hooks = _hooks("serving", *values)
    [job] = [body for body in hooks if body["kind"] == "Job"]
    pod = job["spec"]["template"]["spec"]
    assert violations(pod) == []
    assert beyond(pod, account=True) == []
    assert job["spec"]["activeDeadlineSeconds"] < 300
    assert all("hook-succeeded" in b["metadata"]["annotations"]["helm.sh/hook-delete-policy"] for b in hooks)
    # Rights and account are there before the Job.
    others = [body for body in hooks if body["kind"] != "Job"]
    assert {body["metadata"]["annotations"]["helm.sh/hook-weight"] for body in others} == {"-1"}
    assert not _hooks("serving", "--set", "rbac.create=false", *values)
