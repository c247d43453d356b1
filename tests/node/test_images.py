"""The images of deploy/images under a kubelet, nothing of this machine in them; `make node-images-check`.

Apart from the other tests of real nodes, since building takes long. TWOLANE_TEST_TARGETS names what was
built: without `cpu`, which holds gigabytes, workers run the programs of this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from deploy.cluster.enclosure import run
from deploy.cluster.real_cluster import IMAGE, RealCluster
from tests.node.load import stream
from tests.node.product import COMPONENT, SYSTEM, Helm, Model
from tests.operator.cluster.kube import Json, Kube

pytestmark = [pytest.mark.images, pytest.mark.timeout(1800)]
TAG = os.environ.get("TWOLANE_TEST_TAG", "dev")
TARGETS = os.environ.get("TWOLANE_TEST_TARGETS", "control cpu").split()
MACHINE = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "machine"}}
WRITES = "import os; print(os.getuid()); open('/tmp/x', 'w').close(); open('/opt/x', 'w')"


def _reference(target: str) -> str:
    return f"twolane:{TAG}-{target}"


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """A cluster of one node that has the images and shows containers nothing of this machine."""
    cluster = RealCluster(("node-a",), "plain")
    cluster.start()
    try:
        [node] = cluster.nodes.values()
        for target in TARGETS:
            archive = tmp_path_factory.mktemp(target) / "image.tar"
            _export(target, archive)
            node.import_image(archive)
            archive.unlink()
        client = Kube(cluster.kubeconfig)
        client.apply("default", {**MACHINE, "handler": "machine"})
        yield client
    finally:
        cluster.stop()


def _export(target: str, archive: Path) -> None:
    reference = _reference(target)
    place = f"docker-archive:{archive}:docker.io/library/{reference}"
    run("buildah", "push", "--quiet", f"localhost/{reference}", place, timeout_s=900)


def _declaration() -> str:
    """A model whose routers and broker run the image `control`."""
    own = {"name": "twolane", "image": _reference("cpu") if "cpu" in TARGETS else IMAGE}
    spec: Json = {"containers": [own]}
    if "cpu" not in TARGETS:
        spec["runtimeClassName"] = "machine"
    pool: Json = {"podTemplate": {"spec": spec}}
    body: dict[str, Any] = {
        "apiVersion": "serving.twolane.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "chat"},
        "spec": {
            "model": {"imagePath": "/opt/twolane/demo-model"},
            "engine": {"numThreads": 1},
            "router": {"replicas": 1},
            "pools": {"prefill": {"shared": pool}, "decode": pool},
        },
    }
    return yaml.safe_dump(body)


def test_built_images_serve_as_the_chart_runs_them(kube: Kube) -> None:
    """No root, nothing to write but /tmp, no package of this machine: an answer streams through them."""
    kube.kubectl("create", "namespace", SYSTEM)
    kube.kubectl("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted")
    Helm(kube, _reference("control")).install()
    model = Model(kube, kube.make_namespace())
    model.declare(_declaration())
    model.until_ready()
    with openai.OpenAI(base_url=model.url(), api_key="none", max_retries=0, timeout=60) as client:
        assert len(stream(client, "chat", "Tell me about the sea.", tokens=32).split()) > 3
    components = ("router", "broker", "worker") if "cpu" in TARGETS else ("router", "broker")
    for component in components:
        name = model.pods(f"{COMPONENT}={component}")[0]["metadata"]["name"]
        in_pod = ("exec", name, "-n", model.namespace, "--")
        assert kube.kubectl(*in_pod, "twolane", "--version").startswith("twolane")
        with pytest.raises(Exception, match="Read-only file system: '/opt/x'"):
            kube.kubectl(*in_pod, "python", "-c", WRITES)
        with pytest.raises(Exception, match="No module named 'pytest'"):
            kube.kubectl(*in_pod, "python", "-c", "import pytest")
