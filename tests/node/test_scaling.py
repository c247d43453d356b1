"""Pools grow, shrink and fall asleep while clients stream: nobody notices but by waiting."""

from __future__ import annotations

import pytest

from tests.node.product import POOL, START_S, Model
from tests.operator.cluster.kube import eventually

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]


def test_one_to_three_to_one_fails_no_request(chat: Model) -> None:
    """New workers take their part; ending ones finish what they have."""
    with chat.load() as load:
        load.wait_for(5)
        chat.scale(3)
        load.wait_for(10)
        chat.scale(1)
        load.wait_for(5)
    load.expect_no_failure()


def test_to_zero_and_back_fails_no_request(chat: Model) -> None:
    """Routers hold what comes while nothing runs, and what they hold wakes the model.

    Routers are told to hold by being replaced in place, under load.
    """
    try:
        with chat.load() as load:
            load.wait_for(5)
            _bound(chat, 0, 2)
            chat.patch(scaling={"scaleToZero": {"holdSeconds": 200}})
            generation = chat.object()["metadata"]["generation"]
            wanted = {"observedGeneration": generation, "status": "True"}
            eventually(lambda: chat.kube.until(chat.namespace, "chat", "RolloutComplete", **wanted), START_S)
            load.wait_for(5)
            before = {pod["metadata"]["name"] for pod in chat.pods(POOL)}
            pools = ("chat-prefill", "chat-decode")
            chat.kube.kubectl("scale", "wp", *pools, "-n", chat.namespace, "--replicas=0")
            eventually(lambda: not before & {pod["metadata"]["name"] for pod in chat.pods(POOL)}, START_S)
            # Their last answers have been given: the next are those of workers that were woken.
            load.wait_for(5, START_S)
        load.expect_no_failure()
        assert any(decision["to"] == 0 for decision in chat.object()["status"]["scalingDecisions"])
    finally:
        chat.patch(scaling=None)
        _bound(chat, 1, None)


def _bound(chat: Model, least: int, most: int | None) -> None:
    bounds = {"scaling": {"minReplicas": least, "maxReplicas": most}}
    chat.patch(pools={"prefill": {"shared": bounds}, "decode": bounds})
