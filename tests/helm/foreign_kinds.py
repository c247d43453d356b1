"""Kinds of other projects that the chart or the operator make objects of, from those projects' Go modules."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.operator.cluster.kube import Kube, eventually

_MODULES = {
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": (
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
    "github.com/cert-manager/cert-manager@v1.19.0": ("deploy/crds/cert-manager.io_certificates.yaml",),
    "sigs.k8s.io/gateway-api@v1.4.0": ("config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",),
}


def install_foreign_kinds(kube: Kube) -> None:
    """Lets the cluster know PodMonitor, PrometheusRule, Certificate and HTTPRoute."""
    for module, paths in _MODULES.items():
        command = ["go", "mod", "download", "-json", module]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, timeout=300)
        answer = json.loads(done.stdout)
        assert "Dir" in answer, answer.get("Error")
        for path in paths:
            kube.kubectl("apply", "--server-side", "--filename", str(Path(answer["Dir"]) / path))
    for kind in ("podmonitors", "prometheusrules", "certificates", "httproutes"):
        eventually(lambda kind=kind: kube.names("default", kind) == [])  # type: ignore[misc]
