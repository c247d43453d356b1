"""Pools scaled by real HorizontalPodAutoscalers and a real KEDA, by our own metrics, under real load.

`make keda-check` runs them with the examples of `deploy/autoscaling` as they are, but for how long an
autoscaler waits before it lowers a count. Two servers of external metrics can't share a cluster, so the
order matters: first the one that plays prometheus-adapter, then KEDA.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest

from deploy.cluster.real_cluster import RealCluster
from tests.node import metrics_pipeline as pipeline
from tests.node.load import Load
from tests.node.metrics_pipeline import EXAMPLES
from tests.node.product import POOL, START_S, Helm, Model, model_path
from tests.node.record import Record
from tests.operator.cluster.kube import Kube, eventually
from twolane.operator.names import SEED_MANAGER

pytestmark = [pytest.mark.scalers, pytest.mark.timeout(1500)]
NAMESPACE, NAME, PREFILL = "models", "demo", "demo-prefill"
# A worker can't do with less than what the machine has; three share its processors.
MOST = 3
SCALED_S = 420.0
# In place of five minutes, and a minute for each half.
SOONER = {
    "stabilizationWindowSeconds": 30,
    "policies": [{"type": "Percent", "value": 50, "periodSeconds": 30}],
}
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def demo(cluster: RealCluster | None, kube: Kube, release: Helm) -> Iterator[Model]:
    """A model in the namespace that the examples name, and a Prometheus that reads it."""
    if cluster is None:
        pytest.skip("KEDA and Prometheus are brought into a cluster of our own only")
    kube.kubectl("create", "namespace", NAMESPACE)
    pipeline.start_prometheus(cluster, kube)
    model = Model(kube, NAMESPACE, NAME)
    model.declare(_declaration())
    model.until_ready()
    yield model
    kube.kubectl("delete", "md", NAME, "-n", NAMESPACE, "--timeout=110s", patience_s=150)


def _declaration() -> str:
    prefill, decode = ({"replicas": 1, "scaling": {"minReplicas": 1, "maxReplicas": n}} for n in (MOST, 2))
    spec = {
        "model": {"imagePath": model_path()},
        "engine": {"numThreads": 1},
        "pools": {"prefill": {"shared": prefill}, "decode": decode},
        "drain": {"timeoutSeconds": 30},
    }
    head = {"apiVersion": "serving.twolane.dev/v1alpha1", "kind": "ModelDeployment"}
    return json.dumps({**head, "metadata": {"name": NAME}, "spec": spec})


def _prompt(days: int) -> str:
    """A prompt whose pages no cache has."""
    number = next(_numbers)
    words = " ".join(f"On day {number * 7 + day} the fox saw {day * number} crows." for day in range(days))
    return f"Story {number}. {words} What did the fox see?"


def _heavy(model: Model) -> Load:
    """Prompts of some thousand tokens, which take a worker about a second each."""
    return Load(model.url(), NAME, clients=12, prompts=lambda _: _prompt(150))


def _light(model: Model) -> Load:
    """Prompts of some hundred tokens, one after another: one worker has time between them."""
    return Load(model.url(), NAME, clients=2, prompts=lambda _: _prompt(10))


def _apply(model: Model, example: str) -> None:
    model.kube.kubectl("apply", "-n", NAMESPACE, "-f", str(EXAMPLES / example))


def _pool(model: Model) -> tuple[int, int, int]:
    pool = model.kube.get(NAMESPACE, "wp", PREFILL)
    status = pool["status"]
    return pool["spec"]["replicas"], status["desiredReplicas"], status["readyReplicas"]


def _seen_by(model: Model, hpa: str) -> bool:
    """Whether an autoscaler gets its metric."""
    found = model.kube.get(NAMESPACE, "hpa", hpa)["status"].get("conditions", [])
    return any((c["type"], c["status"]) == ("ScalingActive", "True") for c in found)


def _held(model: Model) -> str:
    """What the pool says once more are asked for than may run; empty before."""
    pool = model.kube.get(NAMESPACE, "wp", PREFILL)
    asked, status = pool["spec"]["replicas"], pool["status"]
    words = f"{asked} asked for, held at scaling.maxReplicas, {MOST}"
    held = asked > MOST and status["desiredReplicas"] == status["replicas"] == MOST
    return words if held and status.get("message") == words else ""


def _up_and_down(model: Model, hpa: str) -> None:
    """Load comes: workers come, no more than the pool may have. It goes: they go, and no request fails."""
    eventually(lambda: _seen_by(model, hpa), 120.0)
    with Record(model.kube, NAMESPACE, PREFILL, hpa) as record, _light(model) as light:
        light.wait_for(5)
        record.say("load begins")
        with _heavy(model) as heavy:
            eventually(lambda: _pool(model)[2] == MOST, SCALED_S)
            record.say(f"{MOST} workers serve")
            record.say(f"its status says: {eventually(lambda: _held(model), SCALED_S)}")
            heavy.wait_for(10, 180.0)
            condition = model.kube.condition(NAMESPACE, NAME, "ScalingActive")
        record.say(f"load ends: {heavy.seen.count} long requests, the slowest {heavy.seen.slowest_s:.1f} s")
        eventually(lambda: _pool(model) == (1, 1, 1), SCALED_S)
        # Those that end count too: what they had must have come to its end while somebody asked on.
        eventually(lambda: len(model.kube.listing(NAMESPACE, "pods", f"{POOL}=prefill")) == 1, START_S)
        light.wait_for(5)
        record.say(f"1 worker is left; {light.seen.count} smaller requests meanwhile")
    heavy.expect_no_failure()
    light.expect_no_failure()
    assert (condition["status"], condition["reason"]) == ("True", "OtherScaler")
    assert "prefill is scaled by a HorizontalPodAutoscaler" in condition["message"]
    # Nobody but the autoscaler wrote the count once it had: what it asked for beyond the bounds stayed.
    assert record.writers - {SEED_MANAGER} == {"kube-controller-manager"}
    decisions = model.object()["status"]["scalingDecisions"]
    assert all("asked for by kube-controller-manager" in each["reason"] for each in decisions[:2])
    print(json.dumps(condition), *(json.dumps(each) for each in decisions), sep="\n")


def test_a_plain_autoscaler_follows_an_external_metric(own: RealCluster, demo: Model, kube: Kube) -> None:
    """autoscaling/v2, the rules for prometheus-adapter, and nothing of KEDA."""
    pipeline.start_external_metrics(own, kube)
    _apply(demo, "hpa.yaml")
    body = {"spec": {"behavior": {"scaleDown": SOONER}}}
    kube.patch(NAMESPACE, "hpa", PREFILL, body)
    _up_and_down(demo, PREFILL)
    kube.kubectl("delete", "-n", NAMESPACE, "-f", str(EXAMPLES / "hpa.yaml"))
    pipeline.stop_external_metrics(kube)


@pytest.fixture(scope="module")
def keda(cluster: RealCluster | None, kube: Kube, demo: Model) -> None:
    """KEDA, once nobody else serves external metrics."""
    assert cluster is not None
    pipeline.start_keda(cluster, kube)


@pytest.mark.parametrize("example", ["keda.yaml", "keda-direct.yaml"])
def test_keda_follows_what_waits(keda: None, demo: Model, kube: Kube, example: str) -> None:
    """By Prometheus, and by a router alone."""
    _apply(demo, example)
    behavior = {"behavior": {"scaleDown": SOONER}}
    body = {"spec": {"advanced": {"horizontalPodAutoscalerConfig": behavior}}}
    kube.patch(NAMESPACE, "scaledobject", PREFILL, body)
    wait = ("wait", "--for=condition=Ready", f"scaledobject/{PREFILL}", "-n", NAMESPACE, "--timeout=60s")
    kube.kubectl(*wait)
    _up_and_down(demo, f"keda-hpa-{PREFILL}")
    kube.kubectl("delete", "-n", NAMESPACE, "-f", str(EXAMPLES / example))
    eventually(lambda: not kube.names(NAMESPACE, "hpa"))
