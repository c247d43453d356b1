"""A real API server for the operator's tests: our own, or the one TWOLANE_TEST_KUBECONFIG leads to.

`make cluster-check` runs these tests. Pods run nowhere: kwok plays the kubelets of the test's nodes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cluster.control_plane import ControlPlane
from tests.operator.cluster.kube import CRDS, Kube, eventually
from tests.operator.cluster.operator_process import OperatorProcess, operator_kubeconfig


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane | None]:
    """Our own control plane; None when a kubeconfig was given."""
    if os.environ.get("TWOLANE_TEST_KUBECONFIG"):
        yield None
        return
    plane = ControlPlane(tmp_path_factory.mktemp("control-plane"))
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="session")
def kube(control_plane: ControlPlane | None) -> Kube:
    """An administrator's client, with our kinds installed and a node of kwok's that holds 64 devices."""
    given = os.environ.get("TWOLANE_TEST_KUBECONFIG")
    kubeconfig = Path(given) if given else control_plane and control_plane.kubeconfig
    assert kubeconfig
    made = Kube(kubeconfig)
    made.kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(CRDS))
    # kubectl wait fails on kinds that have no status yet.
    eventually(lambda: made.names("default", "md") == made.names("default", "wp") == [])
    if control_plane is not None:
        made.add_node("node-a")
    return made


@pytest.fixture
def namespace(kube: Kube) -> Iterator[str]:
    """A namespace of the test's own that enforces the restricted Pod Security Standard."""
    name = kube.make_namespace()
    yield name
    kube.drop_namespace(name)


@pytest.fixture
def operator(kube: Kube, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    """The operator for the test's namespace, with no other right than the chart gives it."""
    process = OperatorProcess(operator_kubeconfig(kube, namespace, tmp_path), namespace, tmp_path)
    process.start()
    yield process
    process.stop()
