"""What breaks in a cluster: processes, pods, the operator, the API server, a node that must be emptied."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cluster.real_cluster import RealCluster
from tests.node.product import COMPONENT, OPERATOR, POOL, START_S, SYSTEM, Model
from tests.operator.cluster.kube import Json, Kube, eventually

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]


def _kill_process(pod: Json) -> None:
    """SIGKILL for the pod's process, as the kernel kills one that takes too much memory."""
    name = pod["metadata"]["name"]
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdigit() else []
            if name.encode() in words and b"worker" in words:
                os.kill(int(folder.name), signal.SIGKILL)
                return
    raise AssertionError(f"no process of {name}")


@pytest.mark.parametrize("pool", ["prefill", "decode"])
def test_a_worker_that_is_killed_costs_no_request(own: RealCluster, chat: Model, pool: str) -> None:
    """What it had in hand goes on elsewhere, in mid-answer too: no gap, no token twice."""
    chat.scale(2)
    with chat.load() as load:
        load.wait_for(5)
        _kill_process(chat.pods(f"{POOL}={pool}")[0])
        load.wait_for(10)
        eventually(lambda: any(_restarts(pod) for pod in chat.pods(f"{POOL}={pool}")), START_S)
        chat.until_ready()
    load.expect_no_failure()


def _restarts(pod: Json) -> int:
    return sum(int(status["restartCount"]) for status in pod["status"].get("containerStatuses", []))


@pytest.mark.parametrize("component", ["router", "broker"])
def test_a_pod_that_is_deleted_costs_no_request(chat: Model, component: str) -> None:
    """A router ends its streams first; without its broker the rest goes on as it was."""
    with chat.load() as load:
        load.wait_for(5)
        [name, *_] = [pod["metadata"]["name"] for pod in chat.pods(f"{COMPONENT}={component}")]
        chat.kube.kubectl("delete", "pod", name, "-n", chat.namespace, "--timeout=100s", patience_s=150)
        load.wait_for(5)
        eventually(lambda: _all_ready(chat, component), START_S)
        load.wait_for(5)
    load.expect_no_failure()


def _all_ready(chat: Model, component: str) -> bool:
    pods = chat.pods(f"{COMPONENT}={component}")
    wanted = 2 if component == "router" else 1
    ready = [c for pod in pods for c in pod["status"]["conditions"] if c["type"] == "Ready"]
    return len(ready) == wanted and all(condition["status"] == "True" for condition in ready)


def test_the_operator_may_die_under_load(chat: Model) -> None:
    """Serving does not need it; its successor does what was asked for meanwhile."""
    with chat.load() as load:
        load.wait_for(5)
        dying = ("delete", "pods", "-n", SYSTEM, "-l", OPERATOR, "--force", "--grace-period=0")
        chat.kube.kubectl(*dying)
        chat.scale(2, "decode")
        load.wait_for(5)
    load.expect_no_failure()


def test_the_api_server_may_restart_under_load(own: RealCluster, chat: Model) -> None:
    """Nothing of a request goes through it; work asked for afterwards is done."""
    with chat.load() as load:
        load.wait_for(5)
        own.plane.stop_part("kube-apiserver")
        load.wait_for(5)
        own.plane.start_part("kube-apiserver")
        chat.scale(2, "decode")
        load.wait_for(5)
    load.expect_no_failure()


@pytest.fixture
def emptied(kube: Kube, chat: Model) -> Iterator[str]:
    """The node that a prefill worker runs on; schedulable again in the end."""
    chat.scale(2)
    node = str(chat.pods(f"{POOL}=prefill")[0]["spec"]["nodeName"])
    yield node
    kube.kubectl("uncordon", node)


def test_a_node_is_drained_without_a_failed_request(emptied: str, chat: Model) -> None:
    """Budgets let one pod of a kind go at a time, and only once its like is ready elsewhere."""
    with chat.load() as load:
        load.wait_for(5)
        args = (
            "drain",
            emptied,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            f"--timeout={START_S:.0f}s",
        )
        chat.kube.kubectl(*args, patience_s=START_S + 10)
        load.wait_for(5)
    load.expect_no_failure()
    nodes = {pod["spec"]["nodeName"] for pod in chat.pods(COMPONENT)}
    assert nodes
    assert emptied not in nodes
