"""The chart's own Redis and two brokers that share it; last but for the end, since it changes the release."""

from __future__ import annotations

import pytest

from tests.node.product import COMPONENT, START_S, SYSTEM, Helm, Model, redis_image, split
from tests.operator.cluster.kube import Json, Kube, Refused, eventually

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]
REDIS = "app.kubernetes.io/name=twolane-redis"
REVISION = "serving.twolane.dev/revision"
AT_ONCE = ("--force", "--grace-period=0")


def _values(chat: Model) -> Json:
    bundled = {"image": split(redis_image())} if redis_image() else {}
    return {"mode": "bundled", "namespaces": [chat.namespace], "bundled": bundled}


def _ready(pods: list[Json], count: int) -> bool:
    states = [
        c["status"] for pod in pods for c in pod["status"].get("conditions", []) if c["type"] == "Ready"
    ]
    return states == ["True"] * count


def _redis(kube: Kube) -> list[Json]:
    pods = kube.listing(SYSTEM, "pods", REDIS)
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def _revisions(chat: Model) -> set[str]:
    return {pod["metadata"]["labels"][REVISION] for pod in chat.pods(COMPONENT)}


def _agree(chat: Model) -> bool:
    """Whether the books of a broker and of all workers say the same, which `inspect leaks` tells."""
    [broker, *_] = chat.pods(f"{COMPONENT}=broker")
    ask = ("twolane", "inspect", "leaks", "--broker", f"{broker['status']['podIP']}:9200")
    try:
        chat.kube.kubectl("exec", broker["metadata"]["name"], "-n", chat.namespace, "--", *ask)
    except Refused:
        return False
    return True


def test_redis_and_a_broker_die_and_no_request_does(release: Helm, chat: Model) -> None:
    """An upgrade brings Redis in and rolls the model; then both are killed, and fill their books anew."""
    kube, before = chat.kube, chat.object()["status"]["revision"]
    chat.patch(rollout={"rollback": {"soakSeconds": 5}})
    with chat.load() as load:
        load.wait_for(5)
        release.upgrade(redis=_values(chat))
        eventually(lambda: chat.object()["status"]["revision"] != before, START_S)
        eventually(lambda: _revisions(chat) == {chat.object()["status"]["revision"]}, 2 * START_S)
        assert _ready(_redis(kube), 1)
        chat.patch(broker={"replicas": 2, "redis": {"secretName": "twolane-redis"}})
        eventually(lambda: _ready(chat.pods(f"{COMPONENT}=broker"), 2), START_S)
        load.wait_for(5)
        victim = chat.pods(f"{COMPONENT}=broker")[0]["metadata"]["name"]
        old = _redis(kube)[0]["metadata"]["uid"]
        kube.kubectl("delete", "pods", "-n", SYSTEM, "-l", REDIS, *AT_ONCE)
        kube.kubectl("delete", "pod", victim, "-n", chat.namespace, *AT_ONCE)
        load.wait_for(5)
        eventually(lambda: _ready(_redis(kube), 1) and _redis(kube)[0]["metadata"]["uid"] != old, START_S)
        eventually(lambda: _ready(chat.pods(f"{COMPONENT}=broker"), 2), START_S)
        load.wait_for(5)
    load.expect_no_failure()
    eventually(lambda: _agree(chat), START_S)
