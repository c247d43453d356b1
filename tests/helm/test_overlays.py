"""The overlays of kind and k3s: their values pass the schema, their declarations an API server."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.cluster.binaries import ensure
from tests.operator.cluster.kube import Kube
from tests.operator.cluster.operator_process import OperatorProcess, account_kubeconfig, chart

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
OVERLAYS = Path(__file__).parents[2] / "deploy" / "overlays"


@pytest.mark.parametrize("name", ["kind", "k3s"])
def test_the_values_of_an_overlay_render(name: str) -> None:
    """With images that were built on this machine and no registry."""
    bodies = chart("serving", "--values", str(OVERLAYS / name / "values.yaml"))
    [deployment] = [body for body in bodies if body["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["imagePullPolicy"]) == ("twolane:dev-control", "Never")
    assert "--image=twolane:dev-cpu" in container["args"]


def test_the_declarations_of_the_walk_through_are_accepted(kube: Kube, namespace: str) -> None:
    """The demo model, and its Ingress on k3s as a patch of it."""
    kube.kubectl("apply", "-n", namespace, "-f", str(OVERLAYS / "demo.yaml"))
    patch = OVERLAYS / "k3s" / "ingress.yaml"
    kube.kubectl("patch", "md", "demo", "-n", namespace, "--type=merge", "--patch-file", str(patch))
    router = kube.get(namespace, "md", "demo")["spec"]["router"]
    assert router["ingress"]["hosts"] == ["demo.localhost"]
    assert router["replicas"] == 1


def test_the_cluster_of_kind_is_plain_yaml() -> None:
    """More than one node that takes pods, so that spreading is seen."""
    body = yaml.safe_load((OVERLAYS / "kind" / "cluster.yaml").read_text(encoding="utf-8"))
    assert [node["role"] for node in body["nodes"]].count("worker") == 2


def _commands() -> list[str]:
    """What a reader types, a line each; what needs an answer or ends all definitions is left out."""
    text = (OVERLAYS / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    commands = [
        line for block in blocks for line in block.splitlines() if line.startswith(("helm ", "kubectl "))
    ]
    return [line for line in commands if "port-forward" not in line and "delete crd" not in line]


@pytest.mark.timeout(600)
def test_the_commands_of_the_walk_through_work(kube: Kube, tmp_path: Path) -> None:
    """In order, as printed, by the shell; kwok plays the pods, so that nobody answers at the address."""
    for name, program in (("helm", ensure("helm")["helm"]), ("kubectl", Path(kube.program))):
        (tmp_path / name).symlink_to(program)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "KUBECONFIG": str(kube.kubeconfig)}
    operator: OperatorProcess | None = None
    commands = [command.replace("OVERLAY", "kind") for command in _commands()]
    assert len(commands) > 10
    try:
        for command in commands:
            if command.startswith("helm uninstall") and operator is not None:
                operator.stop()
                operator = None
            done = subprocess.run(
                ["bash", "-euc", command],
                cwd=OVERLAYS.parents[1],
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                check=False,
                timeout=360,
            )
            assert done.returncode == 0, (command, done.stderr)
            if command.startswith("helm install"):
                kubeconfig = account_kubeconfig(kube, "twolane", tmp_path)
                operator = OperatorProcess(kubeconfig, "twolane", tmp_path, everywhere=True)
                operator.start()
    finally:
        if operator is not None:
            operator.stop()
    assert kube.names("default", "md") == []
