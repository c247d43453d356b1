"""A cluster with real kubelets for the tests of the whole product: our own, or TWOLANE_TEST_KUBECONFIG's.

`make node-check` runs them. One installation and one ModelDeployment serve the whole run, as in life;
each test begins by bringing them back to their declared state.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from deploy.cluster import host
from deploy.cluster.real_cluster import RealCluster
from tests.node.product import DECLARATION, GIVEN, SYSTEM, Helm, Model, model_path
from tests.operator.cluster.kube import Kube


@pytest.fixture(scope="session")
def cluster() -> Iterator[RealCluster | None]:
    """Our own cluster; None when a kubeconfig was given."""
    if GIVEN:
        yield None
        return
    if reason := host.refusal():
        pytest.skip(f"NO REAL NODES HERE: {reason}")
    made = RealCluster()
    made.start()
    yield made
    made.stop()
    assert host.leftovers() == []


@pytest.fixture
def own(cluster: RealCluster | None) -> RealCluster:
    """For tests that reach into the cluster itself."""
    if cluster is None:
        pytest.skip("only a cluster of our own is disturbed so")
    return cluster


@pytest.fixture(scope="session")
def kube(cluster: RealCluster | None) -> Kube:
    """An administrator's client."""
    return Kube(cluster.kubeconfig if cluster else Path(GIVEN))


@pytest.fixture(scope="session")
def release(kube: Kube) -> Helm:
    """The chart, installed into a namespace that enforces the restricted Pod Security Standard."""
    kube.kubectl("create", "namespace", SYSTEM)
    kube.kubectl("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted")
    helm = Helm(kube)
    helm.install()
    return helm


@pytest.fixture(scope="session")
def served(kube: Kube, release: Helm) -> Model:
    """A ModelDeployment that serves the demo model on CPU pods, in a namespace as restricted."""
    model = Model(kube, kube.make_namespace())
    model.declare(DECLARATION.format(model=model_path()))
    model.until_ready()
    return model


@pytest.fixture
def chat(served: Model) -> Model:
    """The same, brought back to one worker a pool."""
    served.settle()
    return served


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows with a failure what the pods have logged of note: they are gone when somebody looks."""
    report = yield
    if call.when == "call" and report.failed:
        models = [each for each in getattr(item, "funcargs", {}).values() if isinstance(each, Model)]
        report.sections += [(f"pods of {each.name}", each.story()) for each in models]
    return report
