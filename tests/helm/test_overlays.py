"""The overlays of kind and k3s: their values pass the schema, their declarations an API server."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.operator.cluster.kube import Kube
from tests.operator.cluster.operator_process import chart

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
