"""A release with a defect: its pods become ready, its answers fail, and the operator takes it back."""

from __future__ import annotations

import pytest

from tests.node.product import COMPONENT, START_S, Model
from tests.operator.cluster.kube import Json, eventually

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]
REVISION = "serving.twolane.dev/revision"
# What a worker of the release runs: it loads and warms up, and then fails every third step of real requests,
# never often enough in a row to take itself for broken.
DEFECT = """\
import itertools, sys
from twolane.cli.main import main
from twolane.engine.engine import Engine

step, numbers = Engine.step, itertools.count()

def failing(self, rows, *rest):
    if any(row.sequence.request_id.startswith("chatcmpl") for row in rows) and next(numbers) % 3 == 0:
        raise RuntimeError("the defect of this release")
    return step(self, rows, *rest)

Engine.step = failing
sys.exit(main())
"""
WORDS = "the engine failed on this request"


def _release(chat: Model) -> Json:
    """A pod template whose workers have the defect."""
    name = {"name": "defect"}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": {"run.py": DEFECT}}
    chat.kube.apply(chat.namespace, body)
    container = {"name": "twolane", "command": ["python", "/defect/run.py"]}
    mounted = {**container, "volumeMounts": [{**name, "mountPath": "/defect"}]}
    return {"spec": {"containers": [mounted], "volumes": [{**name, "configMap": name}]}}


def _rolled_back(chat: Model) -> Json:
    condition = chat.kube.condition(chat.namespace, chat.name, "RolloutComplete")
    return condition if condition["reason"] == "RolledBack" else {}


def _alone(chat: Model, revision: str) -> bool:
    return {pod["metadata"]["labels"][REVISION] for pod in chat.pods(COMPONENT)} == {revision}


def test_a_release_that_fails_requests_is_taken_back(chat: Model) -> None:
    """Nobody but its first few clients sees an error; status, table and an Event say what was done."""
    old = chat.object()["status"]["revision"]
    template = _release(chat)
    pools = {"prefill": {"shared": {"podTemplate": template}}, "decode": {"podTemplate": template}}
    rollout = {"rollback": {"minRequests": 5, "maxErrorPercent": 10}}
    try:
        with chat.load() as load:
            load.wait_for(5)
            chat.patch(pools=pools, rollout=rollout)
            condition = eventually(lambda: _rolled_back(chat), START_S)
            # Its routers end what they have; after them nobody is there to fail a request.
            eventually(lambda: _alone(chat, old), START_S)
            failures = len(load.seen.failures)
            load.wait_for(10)
            assert len(load.seen.failures) == failures, load.seen.failures
            assert all(WORDS in failure for failure in load.seen.failures), load.seen.failures
            assert failures >= 5
        assert "requests failed, most with internal" in condition["message"]
        assert chat.kube.condition(chat.namespace, chat.name, "Ready")["status"] == "True"
        assert "serves again" in chat.kube.events(chat.namespace)["RolledBack"]
        table = chat.kube.kubectl("get", "md", "-n", chat.namespace, "--no-headers")
        assert table.split()[1:3] == ["True", "RolledBack"]
        assert all(len(texts) == 1 for texts in load.seen.texts.values()), load.seen.texts
    finally:
        none = {"podTemplate": None}
        chat.patch(pools={"prefill": {"shared": none}, "decode": none}, rollout=None)
        eventually(lambda: _alone(chat, old), START_S)
        chat.kube.kubectl("delete", "configmap", "defect", "-n", chat.namespace)
