"""Pools grow, shrink and fall asleep while clients stream: nobody notices but by waiting."""

from __future__ import annotations

import pytest

from tests.node.product import POOL, Model
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
    """Routers hold what comes while nothing runs. They are replaced in place when told to, under load."""
    asleep = {"scaling": {"minReplicas": 0}}
    try:
        with chat.load() as load:
            load.wait_for(5)
            pools = {"prefill": {"shared": asleep}, "decode": asleep}
            chat.patch(pools=pools, scaling={"scaleToZero": {"holdSeconds": 120}})
            generation = chat.object()["metadata"]["generation"]
            chat.kube.until(
                chat.namespace, chat.name, "RolloutComplete", observedGeneration=generation, status="True"
            )
            load.wait_for(5)
            chat.scale(0)
            assert not chat.pods(POOL)
            before = load.seen.count
            eventually(lambda: chat.kube.condition(chat.namespace, "chat", "Ready")["reason"] == "Asleep")
            chat.scale(1)
            load.wait_for(5)
        assert load.seen.count > before
        load.expect_no_failure()
    finally:
        awake = {"scaling": {"minReplicas": 1}}
        chat.patch(pools={"prefill": {"shared": awake}, "decode": awake}, scaling=None)
