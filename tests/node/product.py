"""What a user does with the product on a cluster: install it, declare a model, scale, change and end it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from deploy.cluster.binaries import ensure
from deploy.cluster.images import INSIDE, REDIS
from deploy.cluster.real_cluster import IMAGE
from tests.node.load import Load
from tests.operator.cluster.kube import ROOT, Json, Kube, Refused, eventually

# A worker starts in seconds on an idle machine, and in minutes on one that others keep busy.
START_S = 240.0
SYSTEM = "twolane"
COMPONENT, POOL = "serving.twolane.dev/component", "serving.twolane.dev/pool"
OPERATOR = "app.kubernetes.io/name=twolane-operator"
GIVEN = os.environ.get("TWOLANE_TEST_KUBECONFIG", "")
"""A cluster to use in place of our own; its nodes must be able to pull TWOLANE_TEST_IMAGE."""

DECLARATION = """\
apiVersion: serving.twolane.dev/v1alpha1
kind: ModelDeployment
metadata: {{name: chat}}
spec:
  model: {{imagePath: {model}}}
  engine: {{numThreads: 1}}
  pools:
    prefill: {{shared: {{replicas: 1}}}}
    decode: {{replicas: 1}}
  drain: {{timeoutSeconds: 30}}
"""


def image() -> str:
    """The product's image."""
    given = os.environ.get("TWOLANE_TEST_IMAGE", "")
    assert given or not GIVEN, (
        "with TWOLANE_TEST_KUBECONFIG, TWOLANE_TEST_IMAGE must name the product's image"
    )
    return given or IMAGE


def redis_image() -> str:
    """Image of the chart's Redis; "" takes the chart's default."""
    return os.environ.get("TWOLANE_TEST_REDIS_IMAGE", "") or ("" if GIVEN else REDIS)


def model_path() -> str:
    """Where the demo model lies in the image."""
    ours = INSIDE / "services" / "twolane" / "demo_model"
    return os.environ.get("TWOLANE_TEST_MODEL_PATH", "") or str(ours)


class Helm:
    """The chart as one release."""

    def __init__(self, kube: Kube, reference: str = "") -> None:
        """`reference`: image of the operator and, by default, of what it starts."""
        self._kube, self._image = kube, reference or image()

    def run(self, *args: str) -> str:
        """Runs helm in the release's namespace."""
        program = str(ensure("helm")["helm"])
        command = [program, "--kubeconfig", str(self._kube.kubeconfig), "--namespace", SYSTEM, *args]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_S + 30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def install(self) -> str:
        """Installs the chart, and waits until the operator is ready."""
        return self._bring("install", {})

    def upgrade(self, **values: Any) -> str:
        """The same with other values beside, in place."""
        return self._bring("upgrade", values)

    def _bring(self, verb: str, more: Json) -> str:
        access = yaml.safe_load(self._kube.kubeconfig.read_text(encoding="utf-8"))
        port = urlsplit(access["clusters"][0]["cluster"]["server"]).port or 443
        values: Json = {"image": split(self._image), "tls": {"secrets": True}, **more}
        # Where policies are enforced, the operator needs the API server's own port.
        values["networkPolicy"] = {"apiServerPorts": sorted({443, 6443, port})}
        path = Path(self._kube.kubeconfig.parent, "values.yaml")
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        chart = str(ROOT / "helm" / "twolane")
        wait = ("--wait", "--timeout", f"{START_S:.0f}s")
        return self.run(verb, "twolane", chart, "--values", str(path), *wait)


def split(reference: str) -> Json:
    """A reference of an image as the chart's values have it."""
    repository, _, tag = reference.rpartition(":")
    registry, _, name = repository.rpartition("/")
    return {"registry": registry, "repository": name, "tag": tag}


class Model:
    """One ModelDeployment and its clients."""

    def __init__(self, kube: Kube, namespace: str, name: str = "chat") -> None:
        self.kube, self.namespace, self.name = kube, namespace, name

    def declare(self, text: str) -> None:
        """kubectl apply; this machine reaches a Service of another cluster by a port of its nodes."""
        self.kube.kubectl("apply", "--namespace", self.namespace, "--filename", "-", text=text)
        if GIVEN:
            self.patch(router={"service": {"type": "NodePort"}})

    def patch(self, **spec: Any) -> None:
        """kubectl patch."""
        self.kube.patch(self.namespace, "md", self.name, {"spec": spec})

    def object(self) -> Json:
        """The ModelDeployment."""
        return self.kube.get(self.namespace, "md", self.name)

    def until_ready(self) -> None:
        """Returns once it serves."""
        self._until(lambda: self.kube.condition(self.namespace, self.name, "Ready")["status"] == "True")

    def scale(self, replicas: int, *pools: str) -> None:
        """kubectl scale, and waits until so many workers are ready and no other is left."""
        pools = pools or ("prefill", "decode")
        names = [f"{self.name}-{pool}" for pool in pools]
        self.kube.kubectl("scale", "wp", *names, "-n", self.namespace, f"--replicas={replicas}")
        for pool in pools:
            self._until(lambda pool=pool: self._counted(pool, replicas))

    def pods(self, selector: str) -> list[Json]:
        """Its pods that have the labels and are not about to end."""
        mine = f"serving.twolane.dev/model-deployment={self.name},{selector}"
        found = self.kube.listing(self.namespace, "pods", mine)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def url(self) -> str:
        """An address of the Service that this machine reaches."""
        service = self.kube.get(self.namespace, "service", self.name)
        ports = {port["name"]: port for port in service["spec"]["ports"]}
        if not GIVEN:
            return f"http://{service['spec']['clusterIP']}:{ports['http']['port']}/v1"
        [node, *_] = json.loads(self.kube.kubectl("get", "nodes", "--output", "json"))["items"]
        address = next(a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP")
        return f"http://{address}:{ports['http']['nodePort']}/v1"

    def load(self, clients: int = 3) -> Load:
        """Clients that ask without a pause."""
        return Load(self.url(), self.name, clients)

    def settle(self) -> None:
        """Brings it back to one ready worker a pool, whatever was done to it."""
        self.scale(1)
        self.until_ready()
        self._until(
            lambda: self.kube.condition(self.namespace, self.name, "RolloutComplete")["status"] == "True"
        )

    def _counted(self, pool: str, replicas: int) -> bool:
        status = {entry["name"]: entry for entry in self.object()["status"]["pools"]}[pool]
        return all(status[name] == replicas for name in ("desired", "replicas", "ready"))

    def _until(self, question: Any) -> None:
        try:
            eventually(question, START_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def _remarks(self, pod: str) -> str:
        try:
            log = self.kube.kubectl("logs", pod, "-n", self.namespace, "--tail=3000")
        except Refused as error:
            return f"{pod}: {error}"
        lines = [line for line in log.splitlines() if "request ended" not in line]
        return "\n".join([f"--- {pod}", *lines[-40:]])

    def _conditions(self) -> str:
        try:
            return json.dumps(self.object().get("status", {}).get("conditions"), indent=1)
        except Refused as error:
            return f"no ModelDeployment any more: {error}"

    def story(self) -> str:
        """What kubectl tells about it, for the message of a failed test."""
        parts = [
            self.kube.kubectl("get", "md,wp,pods", "-n", self.namespace, "-o", "wide"),
            self._conditions(),
            self.kube.kubectl("get", "events", "-n", self.namespace, "--sort-by=.lastTimestamp")[-3000:],
            *map(self._remarks, self.kube.names(self.namespace, "pods")),
        ]
        return "\n".join(parts)
