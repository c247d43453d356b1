"""Certificates on a real API server, made with the rights of the chart and no others."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.helm.foreign_kinds import install_foreign_kinds
from tests.operator.cluster.kube import Json, Kube, Refused, eventually, model_deployment
from tests.operator.cluster.operator_process import OperatorProcess, operator_kubeconfig
from twolane.rpc.tls import Tls

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
COMPONENTS = ("broker", "router", "worker")
Start = Callable[..., OperatorProcess]


@pytest.fixture
def start(kube: Kube, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """Starts the operator with values of the chart and its own flags for them."""
    started: list[OperatorProcess] = []

    def run(values: list[str], flags: list[str]) -> OperatorProcess:
        access = operator_kubeconfig(kube, namespace, tmp_path, *values)
        started.append(OperatorProcess(access, namespace, tmp_path, flags=tuple(flags)))
        started[-1].start()
        return started[-1]

    yield run
    for process in started:
        process.stop()


def _data(kube: Kube, namespace: str, name: str) -> dict[str, bytes]:
    data: Json = kube.get(namespace, "secret", name)["data"]
    return {key: base64.b64decode(value) for key, value in data.items()}


def _folder(kube: Kube, namespace: str, component: str, path: Path) -> Path:
    """What a kubelet would mount."""
    path.mkdir()
    for name, content in _data(kube, namespace, f"demo-tls-{component}").items():
        (path / name).write_bytes(content)
    return path


def test_the_operator_signs_renews_and_forgets(
    kube: Kube, namespace: str, start: Start, tmp_path: Path
) -> None:
    """Processes could start with what is mounted; a lost Secret comes back; another mode takes them away."""
    operator = start(["--set", "tls.secrets=true"], ["--tls-secrets"])
    kube.apply(namespace, model_deployment(tls={"mode": "operator"}))
    condition = kube.until(namespace, "demo", "CertificatesReady", status="True")
    assert "issued by the operator" in condition["message"]
    kube.until(namespace, "demo", "Ready", status="True")
    for component in COMPONENTS:
        tls = Tls(_folder(kube, namespace, component, tmp_path / component))
        assert tls.deployment == f"demo.{namespace}.svc"
        assert tls.current().names == (f"{component}.demo.{namespace}.svc",)
    pods = kube.listing(namespace, "pods", "serving.twolane.dev/component=worker")
    for pod in pods:
        [volume] = [each for each in pod["spec"]["volumes"] if each["name"] == "certificates"]
        assert volume["secret"]["secretName"] == "demo-tls-worker"
        assert "--tls-dir" in pod["spec"]["containers"][0]["args"]

    before = x509.load_pem_x509_certificate(_data(kube, namespace, "demo-tls-broker")["tls.crt"])
    kube.kubectl("delete", "secret", "demo-tls-broker", "-n", namespace)
    kube.kubectl("annotate", "md", "demo", "-n", namespace, "seen=1")
    eventually(lambda: "demo-tls-broker" in kube.names(namespace, "secrets"))
    after = x509.load_pem_x509_certificate(_data(kube, namespace, "demo-tls-broker")["tls.crt"])
    assert after.serial_number != before.serial_number
    assert after.issuer == before.issuer
    # A renewal is no new revision.
    assert len(kube.get(namespace, "md", "demo")["status"]["servingRevisions"]) == 1

    kube.patch(namespace, "md", "demo", {"spec": {"tls": {"mode": "disabled"}}})
    eventually(lambda: [name for name in kube.names(namespace, "secrets") if name.startswith("demo-")] == [])
    eventually(lambda: "certificates" not in kube.get(namespace, "md", "demo")["status"])
    assert not operator.said("forbidden")
    assert not operator.said("PRIVATE KEY")


def test_without_the_right_no_secret_is_touched(kube: Kube, namespace: str, start: Start) -> None:
    """The default installation; the status names the value to set."""
    operator = start([], [])
    kube.apply(namespace, model_deployment(tls={"mode": "operator"}))
    condition = kube.until(namespace, "demo", "Ready", reason="NotGranted")
    assert "tls.secrets=true" in condition["message"]
    assert not operator.said("forbidden")
    # A right that the flag promises and nobody gave is said as well.
    account = f"system:serviceaccount:{namespace}:twolane-operator"
    with pytest.raises(Refused):
        kube.kubectl("auth", "can-i", "get", "secrets", "-n", namespace, "--as", account, "--quiet")


def test_cert_manager_gets_certificates_to_fill(kube: Kube, namespace: str, start: Start) -> None:
    """Its own schema takes what we write; what it says (here by hand) is what the status says."""
    install_foreign_kinds(kube)
    operator = start(["--set", "tls.certManager=true"], ["--tls-cert-manager"])
    tls = {"mode": "certManager", "certManager": {"issuerRef": {"name": "our-ca"}}}
    kube.apply(namespace, model_deployment(tls=tls))
    kube.until(namespace, "demo", "CertificatesReady", reason="WaitingForCertManager")
    kind = "certificates.cert-manager.io"
    assert kube.names(namespace, kind) == [f"demo-cert-{component}" for component in COMPONENTS]
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    for component in COMPONENTS:
        kube.patch(namespace, kind, f"demo-cert-{component}", ready, "--subresource=status")
    kube.kubectl("annotate", "md", "demo", "-n", namespace, "seen=1")
    kube.until(namespace, "demo", "CertificatesReady", status="True", reason="Issued")
    assert not operator.said("forbidden")


@pytest.mark.parametrize(
    ("tls", "words"),
    [
        ({"mode": "certManager"}, "needs tls.certManager.issuerRef"),
        ({"mode": "operator", "authorityDays": 30, "certificateDays": 20}, "at least three times"),
        ({"mode": "sometimes"}, "Unsupported value"),
    ],
)
def test_what_can_not_work_is_refused_at_once(kube: Kube, namespace: str, tls: Json, words: str) -> None:
    """By the schema, in words."""
    with pytest.raises(Refused, match=words):
        kube.apply(namespace, model_deployment(tls=tls))
