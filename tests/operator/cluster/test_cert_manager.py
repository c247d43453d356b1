"""cert-manager itself signs for a ModelDeployment: built from its module, on a real API server."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from deploy.cluster.binaries import CERT_MANAGER, ensure
from tests.operator.cluster.kube import Json, Kube, Refused, eventually, model_deployment
from tests.operator.cluster.operator_process import ACCOUNT, OperatorProcess, operator_kubeconfig
from twolane.rpc.issuing import make_authority
from twolane.rpc.tls import Tls

# The first run builds cert-manager: some minutes.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
COMPONENTS = ("broker", "router", "worker")
KINDS = ("certificates", "certificaterequests", "issuers")


@pytest.fixture
def signing(kube: Kube, namespace: str, tmp_path: Path) -> Iterator[str]:
    """cert-manager with an Issuer `our-ca` for the test's namespace; returns its log's path."""
    command = ["go", "mod", "download", "-json", f"github.com/cert-manager/cert-manager@v{CERT_MANAGER}"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True, timeout=300)
    folder = Path(json.loads(done.stdout)["Dir"], "deploy", "crds")
    for kind in KINDS:
        path = folder / f"cert-manager.io_{kind}.yaml"
        kube.kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(path))
        eventually(lambda kind=kind: kube.names(namespace, f"{kind}.cert-manager.io") == [])  # type: ignore[misc]
    pair = make_authority("a company", datetime.now(UTC), timedelta(days=365))
    data = {"tls.crt": pair.certificate, "tls.key": pair.key}
    secret: Json = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "our-ca"},
        "type": "kubernetes.io/tls",
        "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
    }
    issuer: Json = {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Issuer",
        "metadata": {"name": "our-ca"},
        "spec": {"ca": {"secretName": "our-ca"}},
    }
    program = str(ensure("cert-manager")["cert-manager"])
    with (tmp_path / "cert-manager.log").open("wb") as log:
        running = subprocess.Popen([program, str(kube.kubeconfig), namespace], stdout=log, stderr=log)
    for body in (secret, issuer):
        kube.apply(namespace, body)
    yield str(tmp_path / "cert-manager.log")
    running.terminate()
    running.wait(30)


def _folder(kube: Kube, namespace: str, component: str, path: Path) -> Path:
    """What a kubelet would mount."""
    path.mkdir()
    for name, value in kube.get(namespace, "secret", f"demo-cert-{component}")["data"].items():
        (path / name).write_bytes(base64.b64decode(value))
    return path


def _serial(kube: Kube, namespace: str) -> int:
    data = kube.get(namespace, "secret", "demo-cert-broker")["data"]
    return x509.load_pem_x509_certificate(base64.b64decode(data["tls.crt"])).serial_number


def test_cert_manager_signs_and_renews(kube: Kube, namespace: str, signing: str, tmp_path: Path) -> None:
    """Processes could start with what it makes, and the operator sees no Secret of it."""
    access = operator_kubeconfig(kube, namespace, tmp_path, "--set", "tls.certManager=true")
    operator = OperatorProcess(access, namespace, tmp_path, flags=("--tls-cert-manager",))
    operator.start()
    try:
        tls = {"mode": "certManager", "certManager": {"issuerRef": {"name": "our-ca"}}}
        kube.apply(namespace, model_deployment(tls=tls))
        try:
            kube.until(namespace, "demo", "CertificatesReady", status="True")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{Path(signing).read_text(encoding='utf-8')[-3000:]}") from None
        kube.until(namespace, "demo", "Ready", status="True")
        for component in COMPONENTS:
            mounted = Tls(_folder(kube, namespace, component, tmp_path / component))
            assert mounted.current().names == (f"{component}.demo.{namespace}.svc",)
            left = mounted.current().ends - datetime.now(UTC)
            assert timedelta(days=29) < left <= timedelta(days=30)
        before = _serial(kube, namespace)
        kube.kubectl("delete", "secret", "demo-cert-broker", "-n", namespace)
        eventually(lambda: _serial(kube, namespace) != before)
        account = f"system:serviceaccount:{namespace}:{ACCOUNT}"
        with pytest.raises(Refused):
            kube.kubectl("auth", "can-i", "get", "secrets", "-n", namespace, "--as", account, "--quiet")
        assert not operator.said("forbidden")
    finally:
        operator.stop()
