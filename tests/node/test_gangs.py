"""Workers of two pods: ranks that meet over the pod network, compute as one process, live and end as one."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from datetime import datetime

import openai
import pytest

from tests.node.load import PROMPTS, stream
from tests.node.product import COMPONENT, START_S, Helm, Model, model_path
from tests.operator.cluster.kube import Json, Kube, eventually

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]
WORKER, REVISION = "serving.twolane.dev/worker", "serving.twolane.dev/revision"
# The scheduler would rather have the ranks of a worker on one node; the wire between nodes is the harder way.
DECLARATION = """\
apiVersion: serving.twolane.dev/v1alpha1
kind: ModelDeployment
metadata: {{name: pair}}
spec:
  model: {{imagePath: {model}}}
  engine: {{numThreads: 1}}
  router: {{replicas: 1}}
  pools:
    mixed:
      tensorParallel: {{size: 2, podsPerWorker: 2}}
      podTemplate:
        spec:
          topologySpreadConstraints:
            - maxSkew: 1
              topologyKey: kubernetes.io/hostname
              whenUnsatisfiable: DoNotSchedule
              labelSelector: {{matchLabels: {{serving.twolane.dev/component: worker}}}}
              matchLabelKeys: [serving.twolane.dev/worker]
  rollout: {{rollback: {{soakSeconds: 5}}}}
  drain: {{timeoutSeconds: 30}}
"""


@pytest.fixture(scope="module")
def pair(kube: Kube, release: Helm) -> Iterator[Model]:
    """A model whose one worker is two pods."""
    model = Model(kube, kube.make_namespace(), "pair")
    model.declare(DECLARATION.format(model=model_path()))
    model.until_ready()
    yield model
    kube.kubectl("delete", "md", "pair", "-n", model.namespace, "--timeout=120s", patience_s=150)
    kube.drop_namespace(model.namespace)


def _answers(model: Model) -> list[str]:
    with openai.OpenAI(base_url=model.url(), api_key="none", max_retries=0, timeout=60) as client:
        return [stream(client, model.name, prompt) for prompt in PROMPTS]


def _ranks(model: Model) -> list[Json]:
    return model.pods(f"{COMPONENT}=worker")


def _worker(pod: Json) -> str:
    return str(pod["metadata"]["labels"][WORKER])


def _started(pod: Json) -> datetime | None:
    """When its process started; None while it isn't ready."""
    [container] = pod["status"].get("containerStatuses") or [{"ready": False}]
    if not container["ready"]:
        return None
    return datetime.fromisoformat(container["state"]["running"]["startedAt"])


def _peers(model: Model, pod: Json) -> set[str]:
    """Addresses that a pod has open connections with."""
    command = ("cat", "/proc/net/tcp", "/proc/net/tcp6")
    table = model.kube.kubectl("exec", pod["metadata"]["name"], "-n", model.namespace, "--", *command)
    rows = [line.split() for line in table.splitlines()]
    # The state 01 is an open connection; addresses are written as the machine's own numbers.
    open_to = [row[2].split(":")[0] for row in rows if len(row) > 3 and row[3] == "01"]
    return {str(ipaddress.IPv4Address(bytes.fromhex(peer[-8:])[::-1])) for peer in open_to}


def test_a_worker_of_two_pods_answers_as_one_process_does(chat: Model, pair: Model) -> None:
    """The same tokens, from ranks on two nodes where there are two."""
    assert _answers(pair) == _answers(chat)
    nodes = pair.kube.kubectl("get", "nodes", "-o", "name").split()
    assert len({pod["spec"]["nodeName"] for pod in _ranks(pair)}) == min(2, len(nodes))


def test_a_killed_rank_restarts_its_whole_worker_and_costs_no_request(pair: Model) -> None:
    """All its ranks start anew, those of the other worker do not, and clients see nothing of it."""
    pair.scale(2, "mixed")
    before = {pod["metadata"]["name"]: _started(pod) for pod in _ranks(pair)}
    victim = next(pod for pod in _ranks(pair) if pod["metadata"]["name"].endswith("-0-1"))
    with pair.load(2) as load:
        load.wait_for(3)
        name = victim["metadata"]["name"]
        pair.kube.kubectl("delete", "pod", name, "-n", pair.namespace, "--force", "--grace-period=0")

        def restarted() -> set[str]:
            now = {pod["metadata"]["name"]: (_worker(pod), _started(pod)) for pod in _ranks(pair)}
            assert len(now) <= 4
            if len(now) < 4 or not all(started for _, started in now.values()):
                return set()
            return {worker for pod, (worker, started) in now.items() if started != before[pod]}

        assert eventually(restarted, START_S) == {_worker(victim)}
        after = {pod["metadata"]["name"]: _started(pod) for pod in _ranks(pair)}
        anew = [pod for pod, started in after.items() if started != before[pod]]
        assert len(anew) == 2
        pair.until_ready()
        load.wait_for(3)
    load.expect_no_failure()
    pair.scale(1, "mixed")


def test_ranks_of_two_revisions_never_meet(pair: Model) -> None:
    """While both run each rank has connections to the other one of its worker, and to no rank beside."""
    before = pair.object()["status"]["revision"]
    with pair.load(2) as load:
        load.wait_for(3)
        pair.patch(engine={"pageTokens": 32})
        both = eventually(lambda: _of_two_revisions(pair), START_S)
        places = {pod["status"]["podIP"]: _worker(pod) for pod in both}
        assert len(set(places.values())) == 2
        for pod in both:
            mates = {address for address, worker in places.items() if worker == _worker(pod)}
            itself = {pod["status"]["podIP"]}
            assert (_peers(pair, pod) & set(places)) - itself == mates - itself
        eventually(lambda: {pod["metadata"]["labels"][REVISION] for pod in _ranks(pair)} != {before}, START_S)
        eventually(lambda: len(_ranks(pair)) == 2, START_S)
        load.wait_for(3)
    load.expect_no_failure()
    assert {pod["metadata"]["labels"][REVISION] for pod in _ranks(pair)} == {
        pair.object()["status"]["revision"]
    }


def _of_two_revisions(model: Model) -> list[Json]:
    """All ranks of two revisions while all of them are ready; else empty."""
    pods = _ranks(model)
    revisions = {pod["metadata"]["labels"][REVISION] for pod in pods}
    return pods if len(revisions) == 2 and len(pods) == 4 and all(map(_started, pods)) else []
