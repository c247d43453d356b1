"""The end of everything; last by its name, since nothing can run after it."""

from __future__ import annotations

import pytest

from tests.node.product import OPERATOR, SYSTEM, Helm, Model
from tests.operator.cluster.kube import Kube, eventually

pytestmark = [pytest.mark.node, pytest.mark.timeout(400)]
KINDS = (
    "md,wp,deployments,replicasets,pods,services,endpointslices,pdb,networkpolicies,configmaps,secrets,leases"
)
# Every namespace has it.
GIVEN_BY_KUBERNETES = {"configmap/kube-root-ca.crt"}


def _left(kube: Kube, namespace: str, labels: str = "") -> set[str]:
    names = kube.kubectl("get", KINDS, "-n", namespace, "-l", labels, "-o", "name").split()
    return set(names) - GIVEN_BY_KUBERNETES


def test_a_deleted_model_leaves_nothing_and_fails_no_running_request(chat: Model) -> None:
    """Streams that run end whole; kubectl returns when the last pod has gone. What helm put there stays."""
    chat.kube.kubectl("delete", "md", "chat", "-n", chat.namespace, "--timeout=110s", patience_s=150)
    eventually(lambda: not _left(chat.kube, chat.namespace, "app.kubernetes.io/managed-by!=Helm"))
    chat.kube.drop_namespace(chat.namespace)


def test_an_uninstalled_release_leaves_its_definitions_alone(kube: Kube, release: Helm) -> None:
    """helm keeps definitions, so that no model is lost by mistake; everything else is gone."""
    release.run("uninstall", "twolane", "--wait", "--timeout", "110s")
    eventually(lambda: not _left(kube, SYSTEM))
    everywhere = "clusterroles,clusterrolebindings"
    assert not kube.kubectl("get", everywhere, "-l", OPERATOR, "-o", "name")
    assert "modeldeployments.serving.twolane.dev" in kube.kubectl("get", "crds", "-o", "name")
    kube.kubectl("delete", "namespace", SYSTEM, "--timeout=60s", patience_s=150)
