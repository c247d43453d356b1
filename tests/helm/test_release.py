"""A release through its life on a real API server: install, upgrade, rollback, uninstall; nothing stays."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.helm.foreign_kinds import install_foreign_kinds
from tests.helm.release import NAME, Release, everything
from tests.operator.cluster.kube import CRDS, Kube, eventually, model_deployment
from tests.operator.cluster.operator_process import OperatorProcess, account_kubeconfig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
EVERYTHING = [
    *("--set", "redis.mode=bundled", "--set", "redis.bundled.persistence.enabled=false"),
    *("--set", "monitoring.podMonitor.enabled=true", "--set", "monitoring.alerts.enabled=true"),
    *("--set", "monitoring.dashboards.enabled=true", "--set", "replicas=3"),
]


@pytest.fixture
def release(kube: Kube, namespace: str) -> Iterator[Release]:
    """A release that the test installs; whatever is left of it ends."""
    install_foreign_kinds(kube)
    made = Release(kube, namespace)
    yield made
    if NAME in made._run("list", "--all", "--short"):
        made.uninstall()


def _secret(kube: Kube, namespace: str, key: str) -> str:
    data = kube.get(namespace, "secret", f"{NAME}-redis")["data"]
    return base64.b64decode(data[key]).decode()


def test_upgrade_rollback_and_uninstall_leave_nothing(kube: Kube, release: Release, tmp_path: Path) -> None:
    """With an operator that leads and a model that came and went; the definitions stay by design."""
    namespace = release.namespace
    # What controllers put into every new namespace.
    eventually(lambda: kube.get(namespace, "configmap", "kube-root-ca.crt"))
    eventually(lambda: kube.get(namespace, "serviceaccount", "default"))
    before = everything(kube)
    release.install()
    plain = everything(kube)
    release.upgrade(*EVERYTHING)
    assert {f"StatefulSet/{namespace}/twolane-redis", f"PrometheusRule/{namespace}/twolane"} <= everything(
        kube
    )
    eventually(lambda: kube.get(namespace, "deploy", "twolane-operator")["status"]["readyReplicas"] == 3)
    release.rollback()
    # helm's own record of each revision is a Secret.
    own = {name for name in everything(kube) if "/sh.helm.release" not in name}
    assert own == {name for name in plain if "/sh.helm.release" not in name}
    process = OperatorProcess(
        account_kubeconfig(kube, namespace, tmp_path), namespace, tmp_path, everywhere=True
    )
    process.start()
    try:
        kube.apply(namespace, model_deployment())
        kube.until(namespace, "demo", "Ready", status="True")
        kube.kubectl("delete", "md", "demo", "-n", namespace, "--timeout=90s")
        # The operator still runs and would write its lease anew if it could.
        release.uninstall()
        eventually(lambda: everything(kube) <= before)
    finally:
        process.stop()
    # Namespaces of other tests may have ended meanwhile.
    assert everything(kube) - before == set()


def test_a_password_is_made_once_and_stays(kube: Kube, release: Release) -> None:
    """An upgrade that made another would cut brokers off; one that is given is taken."""
    namespace = release.namespace
    release.install("--set", "redis.mode=bundled")
    first = _secret(kube, namespace, "password")
    assert re.fullmatch(r"[A-Za-z0-9]{32}", first)
    assert _secret(kube, namespace, "url") == f"redis://:{first}@twolane-redis.{namespace}.svc:6379/0"
    release.upgrade("--set", "redis.mode=bundled", "--set", "replicas=1")
    assert _secret(kube, namespace, "password") == first
    release.upgrade("--set", "redis.mode=bundled", "--set", "redis.bundled.password=another1password")
    assert _secret(kube, namespace, "url").startswith("redis://:another1password@")
    assert first not in release.manifest()


def test_a_newer_operator_upgrades_the_definitions(kube: Kube, release: Release, tmp_path: Path) -> None:
    """What an older chart had installed is replaced with the rights of the chart; a newer one's stay."""
    release.install()
    name, namespace = "modeldeployments.serving.twolane.dev", release.namespace
    older = yaml.safe_load((CRDS / "modeldeployments.yaml").read_text(encoding="utf-8"))
    spec = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["router"]["properties"]["ingress"]
    kube.kubectl("replace", "--filename", "-", text=json.dumps(older))
    kubeconfig = account_kubeconfig(kube, namespace, tmp_path)

    def fields() -> list[str]:
        body = kube.get(namespace, "crd", name)
        schema = body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        return list(schema["properties"]["router"]["properties"])

    assert "ingress" not in fields()
    process = OperatorProcess(kubeconfig, namespace, tmp_path, "new", flags=("--definitions-dir", str(CRDS)))
    process.start()
    try:
        eventually(lambda: "ingress" in fields())
        eventually(lambda: process.said('"leading"'))
    finally:
        process.stop()
    # As after a rollback: what is installed says it is newer.
    older["metadata"]["annotations"] = {"serving.twolane.dev/version": "99.0.0"}
    kube.kubectl("replace", "--filename", "-", text=json.dumps(older))
    again = OperatorProcess(kubeconfig, namespace, tmp_path, "old", flags=("--definitions-dir", str(CRDS)))
    again.start()
    try:
        eventually(lambda: again.said('"leading"'))
        assert "ingress" not in fields()
    finally:
        again.stop()
        kube.kubectl("replace", "--filename", str(CRDS / "modeldeployments.yaml"))


def test_a_lease_that_an_operator_made_itself_is_left_to_it(kube: Kube, release: Release) -> None:
    """helm refuses a release that would take over an object of somebody else's."""
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "twolane-operator"},
        "spec": {"holderIdentity": "a"},
    }
    kube.apply(release.namespace, lease)
    release.install()
    release.upgrade("--set", "replicas=1")
    assert kube.get(release.namespace, "lease", "twolane-operator")["spec"]["holderIdentity"] == "a"
    assert "kind: Lease" not in release.manifest()


def test_an_upgrade_leaves_the_lease_to_its_holder(kube: Kube, release: Release) -> None:
    """helm merges: what the operator wrote stays."""
    release.install()
    kube.patch(release.namespace, "lease", "twolane-operator", {"spec": {"holderIdentity": "b"}})
    release.upgrade(*EVERYTHING)
    release.rollback()
    assert kube.get(release.namespace, "lease", "twolane-operator")["spec"]["holderIdentity"] == "b"


def _ready_workers(kube: Kube, namespace: str) -> int:
    return int(kube.get(namespace, "wp", "demo-mixed")["status"]["readyReplicas"])


def test_models_outlive_a_release_and_are_served_by_the_next(
    kube: Kube, release: Release, tmp_path: Path
) -> None:
    """What is declared stays when a release ends, and so do its pods; a new release takes them up."""
    namespace = release.namespace
    for number in ("first", "second"):
        release.install()
        folder = tmp_path / number
        folder.mkdir()
        process = OperatorProcess(account_kubeconfig(kube, namespace, folder), namespace, folder, number)
        process.start()
        try:
            kube.apply(
                namespace, model_deployment(pools={"mixed": {"replicas": 1 if number == "first" else 2}})
            )
            eventually(lambda: kube.condition(namespace, "demo", "Ready")["status"] == "True")
            expected = {"first": 1, "second": 2}[number]
            eventually(lambda expected=expected: _ready_workers(kube, namespace) == expected)  # type: ignore[misc]
        finally:
            process.stop()
        release.uninstall()
        assert kube.listing(namespace, "pods", "serving.twolane.dev/model-deployment=demo")


def test_a_release_fits_into_helms_own_secret(kube: Kube, release: Release) -> None:
    """helm keeps a release, compressed, in a Secret of at most 1 MiB; all that can be on is."""
    release.install(*EVERYTHING)
    [record] = [
        s for s in kube.listing(release.namespace, "secrets") if "sh.helm.release" in s["metadata"]["name"]
    ]
    assert len(base64.b64decode(record["data"]["release"])) < 300_000


def test_the_operator_gets_the_charts_own_files(kube: Kube, release: Release) -> None:
    """The mounted definitions are those of the folder, byte for byte."""
    release.install()
    data = kube.get(release.namespace, "configmap", f"{NAME}-definitions")["data"]
    assert {name: text.rstrip("\n") for name, text in data.items()} == {
        path.name: path.read_text(encoding="utf-8").rstrip("\n") for path in CRDS.glob("*.yaml")
    }


def _place(words: list[str], namespace: str) -> str:
    """Where a command looks: what it says, or the namespace of the test's context."""
    return words[words.index("--namespace") + 1] if "--namespace" in words else namespace


NOTES = {
    "plain": [],
    "some namespaces": ["--set", "watchNamespaces={NAMESPACE}"],
    "everything": EVERYTHING,
    "external": ["--set", "redis.mode=external", "--set", "redis.external.url=redis://books.example:6379"],
}


@pytest.mark.parametrize("values", NOTES.values(), ids=NOTES)
def test_the_commands_of_the_notes_work(kube: Kube, release: Release, values: list[str]) -> None:
    """Every kubectl line of them, in order, as printed; what watches for ever is asked once."""
    namespace = release.namespace
    notes = release.install(*(value.replace("NAMESPACE", namespace) for value in values))
    blocks = re.findall(r"^  (kubectl (?:.*<<END\n(?:.*\n)*?  END|.*))$", notes, flags=re.MULTILINE)
    assert len(blocks) >= 7
    for block in blocks:
        command, _, text = block.partition("<<END\n")
        words = [word for word in command.split()[1:] if word not in ("--watch", "-")]
        if text:
            body = yaml.safe_load(text.partition("\n  END")[0])
            place = body["metadata"].get("namespace", namespace)
            kube.kubectl("apply", "--namespace", place, "--filename", "-", text=json.dumps(body))
        elif words[0] == "delete":
            kube.kubectl(*words, "--dry-run=server")
        elif words[0] == "apply":
            kube.kubectl(*words[:-1], str(CRDS))
        elif words[0] != "port-forward":
            kube.kubectl(*(word.strip("'") for word in words), "--namespace", _place(words, namespace))
    assert kube.names(namespace, "md") == ["chat"]
