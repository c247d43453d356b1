"""The chart as helm renders and installs it; helm is built from its Go module."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.cluster.binaries import KUBERNETES, ensure
from tests.operator.cluster.kube import Kube, Refused, eventually, model_deployment
from tests.operator.cluster.operator_process import OperatorProcess, account_kubeconfig, chart
from twolane.operator.config import OperatorConfig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
CHART = Path(__file__).parents[2] / "helm" / "twolane"
Json = dict[str, Any]


def _helm(*args: str) -> str:
    done = subprocess.run(
        [str(ensure("helm")["helm"]), *args], capture_output=True, text=True, check=False, timeout=180
    )
    if done.returncode:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def _render(*args: str) -> list[Json]:
    return chart("serving", *args)


def _one(bodies: list[Json], kind: str) -> Json:
    [found] = [body for body in bodies if body["kind"] == kind]
    return found


@pytest.mark.parametrize("values", [[], ["--set", "watchNamespaces={a,b}", "--set", "replicas=1"]])
def test_helm_finds_nothing_to_mend(values: list[str]) -> None:
    """Strict: a warning fails."""
    answer = _helm("lint", "--strict", "--kube-version", KUBERNETES, str(CHART), *values)
    assert "0 chart(s) failed" in answer


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("image.repositry=x", "additional properties 'repositry' not allowed"),
        ("replicas=0", "minimum"),
        ("logLevel=LOUD", "logLevel"),
        ("workers=many", "workers"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(value: str, words: str) -> None:
    """By its schema, before anything is installed."""
    with pytest.raises(Refused, match=words):
        _render("--set", value)


def test_the_operator_understands_its_arguments() -> None:
    """What the chart writes, the program reads."""
    args = ["--set", "watchNamespaces={a,b}", "--set", "workers=7", "--set", "resyncSeconds=60"]
    [container] = _one(_render(*args), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["twolane"]
    config = OperatorConfig.from_args(container["args"][1:])
    assert config.namespace_list == ["a", "b"]
    assert (config.workers, config.resync_s) == (7, 60)
    # Two images of one version: the operator's own has no torch.
    assert container["image"] == f"{config.image}-control"
    assert config.lease_name == "twolane-operator"


def test_a_list_of_namespaces_leaves_no_right_elsewhere() -> None:
    """Roles in these namespaces alone; the lease in the release's own."""
    bodies = _render("--set", "watchNamespaces={a,b}")
    assert "--definitions-dir" not in str(bodies)
    assert [body for body in bodies if body["kind"].startswith("ClusterRole")] == []
    places = [(b["metadata"]["namespace"], b["metadata"]["name"]) for b in bodies if b["kind"] == "Role"]
    own, leaving = "twolane-operator", "twolane-leave"
    assert sorted(places) == [
        *(("a", f"{leaving}-models"), ("a", own), ("b", f"{leaving}-models"), ("b", own)),
        *(("serving", leaving), ("serving", f"{own}-lease")),
    ]


def test_the_rights_name_no_secrets_and_no_wildcards() -> None:
    """Least privilege, seen at a glance."""
    rules = [rule for body in _render() if body["kind"] in ("Role", "ClusterRole") for rule in body["rules"]]
    assert rules
    for rule in rules:
        assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
        assert "secrets" not in rule["resources"]


@pytest.mark.parametrize(
    ("value", "resource", "flag"),
    [
        ("tls.secrets", "secrets", "--tls-secrets"),
        ("tls.certManager", "certificates", "--tls-cert-manager"),
    ],
)
def test_whoever_signs_gets_a_right_of_its_own(value: str, resource: str, flag: str) -> None:
    """With the flag that makes use of it; nobody may list what the operator has not made."""
    bodies = _render("--set", f"{value}=true")
    rules = [rule for body in bodies if body["kind"] == "ClusterRole" for rule in body.get("rules", [])]
    [rule] = [rule for rule in rules if resource in rule["resources"]]
    assert rule["verbs"] == ["get", "create", "patch", "delete"]
    assert {"secrets", "certificates"} & {each for one in rules for each in one["resources"]} == {resource}
    [container] = _one(bodies, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert flag in container["args"]
    config = OperatorConfig.from_args(container["args"][1:])
    assert config.tls_secrets is (resource == "secrets")
    assert config.tls_cert_manager is (resource == "certificates")


def test_monitors_and_budgets_are_there_when_asked_for() -> None:
    """PodMonitors need kinds that a plain cluster lacks; one replica needs no budget."""
    kinds = [body["kind"] for body in _render()]
    assert "PodMonitor" not in kinds
    assert "PodDisruptionBudget" in kinds
    monitored = _render("--set", "monitoring.podMonitor.enabled=true", "--set", "replicas=1")
    kinds = [body["kind"] for body in monitored]
    assert kinds.count("PodMonitor") == 2
    assert "PodDisruptionBudget" not in kinds


@pytest.fixture
def installed(kube: Kube, namespace: str) -> Iterator[tuple[str, str]]:
    """The chart, installed by helm into a namespace that enforces the restricted standard."""
    where = ["--kubeconfig", str(kube.kubeconfig), "--namespace", namespace]
    notes = _helm("install", "twolane", str(CHART), *where, "--wait", "--timeout", "2m")
    yield namespace, notes
    _helm("uninstall", "twolane", *where, "--wait")


def test_helm_install_is_taken_by_a_restricted_namespace(kube: Kube, installed: tuple[str, str]) -> None:
    """Two replicas come up, and the declaration in the notes is accepted by the schema."""
    namespace, notes = installed
    eventually(lambda: kube.get(namespace, "deploy", "twolane-operator")["status"]["readyReplicas"] == 2)
    found = re.search(r"<<END\n(.*?)\n  END", notes, flags=re.DOTALL)
    assert found is not None
    declaration = yaml.safe_load(found.group(1))
    assert len(found.group(1).splitlines()) <= 10
    kube.kubectl("apply", "-n", namespace, "-f", "-", text=json.dumps(declaration))
    kube.kubectl("get", "md", "chat", "-n", namespace)


def test_the_installed_account_may_serve_every_namespace(
    kube: Kube, installed: tuple[str, str], tmp_path: Path
) -> None:
    """With the rights of the chart as installed, and none that it lacks."""
    release, _ = installed
    elsewhere = kube.make_namespace()
    kubeconfig = account_kubeconfig(kube, release, tmp_path)
    process = OperatorProcess(kubeconfig, release, tmp_path, everywhere=True)
    process.start()
    try:
        kube.apply(elsewhere, model_deployment())
        kube.until(elsewhere, "demo", "Ready", status="True")
        kube.kubectl("delete", "md", "demo", "-n", elsewhere, "--timeout=60s")
        # A namespace of another test that is ending refuses what is made in it: that is no missing right.
        assert not process.said("forbidden: User")
    finally:
        process.stop()
        kube.drop_namespace(elsewhere)


def test_users_with_the_usual_roles_may_declare_and_scale(kube: Kube, installed: tuple[str, str]) -> None:
    """edit may change, view may look; neither needs a role of ours by name."""
    namespace, _ = installed
    for role in ("edit", "view"):
        kube.kubectl(
            "create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}r", "-n", namespace
        )
    eventually(lambda: _can(kube, namespace, "editr", "create", "modeldeployments"))
    eventually(lambda: _can(kube, namespace, "editr", "update", "workerpools", "--subresource=scale"))
    eventually(lambda: _can(kube, namespace, "viewr", "get", "modeldeployments"))
    assert not _can(kube, namespace, "viewr", "create", "modeldeployments")


def _can(kube: Kube, namespace: str, user: str, *what: str) -> bool:
    try:
        kube.kubectl("auth", "can-i", *what, "-n", namespace, "--as", user, "--quiet")
    except Refused:
        return False
    return True
