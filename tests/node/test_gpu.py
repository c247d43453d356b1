"""Devices as extended resources: no device is there, but the scheduler and the operator count them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from deploy.cluster.real_cluster import RealCluster
from tests.node.product import POOL, START_S, Helm, Model, model_path
from tests.operator.cluster.kube import Kube, eventually

pytestmark = [pytest.mark.node, pytest.mark.timeout(400)]

DECLARATION = """\
apiVersion: serving.twolane.dev/v1alpha1
kind: ModelDeployment
metadata: {{name: chat}}
spec:
  model: {{imagePath: {model}}}
  engine: {{numThreads: 1, device: cpu}}
  router: {{replicas: 1}}
  pools:
    mixed: {{replicas: 2, gpu: {{count: 2, resource: {resource}}}}}
"""
RESOURCE = "nvidia.com/gpu"


def _advertise(kube: Kube, node: str, count: int) -> None:
    path = "/status/capacity/" + RESOURCE.replace("/", "~1")
    change = [{"op": "add", "path": path, "value": str(count)}]
    args = ("patch", "node", node, "--subresource=status", "--type=json", "--patch", json.dumps(change))
    kube.kubectl(*args)


@pytest.fixture
def accelerated(own: RealCluster, kube: Kube, release: Helm) -> Iterator[Model]:
    """A model whose workers want two devices each, in a cluster with three on one node."""
    model = Model(kube, kube.make_namespace())
    [node, *_] = own.nodes
    _advertise(kube, node, 3)
    model.declare(DECLARATION.format(model=model_path(), resource=RESOURCE))
    yield model
    kube.kubectl("delete", "md", "chat", "-n", model.namespace, "--timeout=120s", patience_s=150)
    kube.drop_namespace(model.namespace)
    for name in own.nodes:
        _advertise(kube, name, 0)


def test_workers_go_where_devices_are(accelerated: Model, own: RealCluster) -> None:
    """One fits, and serves; for the other the status says what is missing, until a node brings it."""
    kube, namespace = accelerated.kube, accelerated.namespace
    first, second, *_ = own.nodes
    accelerated.until_ready()
    told = kube.until(namespace, "chat", "DecodeReady", status="True")["message"]
    pending = eventually(lambda: [p for p in accelerated.pods(POOL) if p["status"]["phase"] == "Pending"])
    assert len(pending) == 1, told
    shown = eventually(lambda: _mention(accelerated, RESOURCE), START_S)
    assert "Insufficient" in shown
    _advertise(kube, second, 2)
    eventually(lambda: accelerated.object()["status"]["decode"] == "2/2", START_S)
    assert sorted(pod["spec"]["nodeName"] for pod in accelerated.pods(POOL)) == sorted((first, second))


def _mention(model: Model, words: str) -> str:
    """The first message of the status that has the words."""
    conditions = model.object()["status"]["conditions"]
    return next((item["message"] for item in conditions if words in item["message"]), "")
