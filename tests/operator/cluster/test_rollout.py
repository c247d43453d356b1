"""Changes of what workers run: the old revision serves until the new one does, and they never meet."""

from __future__ import annotations

import pytest

from tests.operator.cluster.kube import Json, Kube, eventually, model_deployment
from tests.operator.cluster.operator_process import OperatorProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
REVISION, COMPONENT = "serving.twolane.dev/revision", "serving.twolane.dev/component"


def _flag(pod: Json, *names: str) -> str:
    args = pod["spec"]["containers"][0]["args"]
    return str(next(args[args.index(name) + 1] for name in names if name in args))


def _ready(pod: Json) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def test_a_change_rolls_without_a_gap_and_without_a_meeting(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """At every look one revision is whole, surge is bounded, and each revision has a broker of its own."""
    pools = {"prefill": {"shared": {"replicas": 3}}, "decode": {"replicas": 3}}
    kube.apply(namespace, model_deployment(pools=pools))
    kube.until(namespace, "demo", "Ready", reason="Serving")
    first = kube.get(namespace, "md", "demo")["status"]["revision"]
    kube.patch(namespace, "md", "demo", {"spec": {"engine": {"pageTokens": 32}}})
    seen: set[str] = set()

    def over() -> bool:
        pods = kube.listing(namespace, "pods", COMPONENT)
        revisions = {pod["metadata"]["labels"][REVISION] for pod in pods}
        seen.update(revisions)
        slots = {r: _slots(pods, r) for r in revisions}
        assert any({"router", "prefill", "decode"} <= ready for ready in slots.values()), slots
        for pool in ("prefill", "decode"):
            held = [pod for pod in pods if pod["metadata"]["labels"].get("serving.twolane.dev/pool") == pool]
            assert len(held) <= 4
        for pod in pods:
            if pod["metadata"]["labels"][COMPONENT] != "broker":
                revision = pod["metadata"]["labels"][REVISION]
                assert _flag(pod, "--broker").startswith(f"demo-broker-{revision}.")
        complete = kube.condition(namespace, "demo", "RolloutComplete")
        return bool(complete["observedGeneration"] == 2 and complete["status"] == "True")

    eventually(over)
    second = kube.get(namespace, "md", "demo")["status"]["revision"]
    assert second != first
    assert seen == {first, second}
    eventually(lambda: _revisions(kube, namespace) == {second})


def _slots(pods: list[Json], revision: str) -> set[str]:
    labels = [
        p["metadata"]["labels"] for p in pods if _ready(p) and p["metadata"]["labels"][REVISION] == revision
    ]
    return {entry.get("serving.twolane.dev/pool", entry[COMPONENT]) for entry in labels}


def _revisions(kube: Kube, namespace: str) -> set[str]:
    children = kube.listing(namespace, "deployments,services,pods", REVISION)
    return {child["metadata"]["labels"][REVISION] for child in children}


def test_a_change_that_cannot_run_is_named_and_undone_by_the_old_spec(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """Ready stays True on the old revision; going back costs no restart of its workers."""
    kube.apply(namespace, model_deployment(pools={"mixed": {"replicas": 2}}))
    kube.until(namespace, "demo", "Ready", reason="Serving")
    first = kube.get(namespace, "md", "demo")["status"]["revision"]
    pods = set(kube.names(namespace, "pods"))
    none_such = {"nodeSelector": {"kubernetes.io/hostname": "none-such"}}
    kube.patch(namespace, "md", "demo", {"spec": {"podTemplate": {"spec": none_such}}})
    kube.until(namespace, "demo", "RolloutComplete", reason="RollingOut")
    eventually(lambda: len(_revisions(kube, namespace)) == 2)
    assert kube.condition(namespace, "demo", "Ready")["status"] == "True"
    assert kube.get(namespace, "md", "demo")["status"]["servingRevisions"] == [first]
    kube.patch(namespace, "md", "demo", {"spec": {"podTemplate": None}})
    eventually(lambda: _revisions(kube, namespace) == {first})
    eventually(lambda: set(kube.names(namespace, "pods")) == pods)


def test_recreate_never_holds_devices_twice(kube: Kube, namespace: str, operator: OperatorProcess) -> None:
    """For clusters without a spare device."""
    pools = {"mixed": {"replicas": 2}}
    kube.apply(namespace, model_deployment(pools=pools, rollout={"strategy": "Recreate"}))
    kube.until(namespace, "demo", "Ready", reason="Serving")
    first = kube.get(namespace, "md", "demo")["status"]["revision"]
    kube.patch(namespace, "md", "demo", {"spec": {"engine": {"pageTokens": 8}}})

    def over() -> bool:
        workers = kube.listing(namespace, "pods", f"{COMPONENT}=worker")
        assert len({pod["metadata"]["labels"][REVISION] for pod in workers}) <= 1
        return kube.get(namespace, "md", "demo")["status"]["servingRevisions"] not in ([], [first])

    eventually(over)


def test_a_change_that_gets_nowhere_is_rolled_back_and_not_tried_again(
    kube: Kube, namespace: str, operator: OperatorProcess
) -> None:
    """The old workers come back, the new ones go, the status says why; a mended spec is tried."""
    pools = {"mixed": {"replicas": 2}}
    kube.apply(namespace, model_deployment(pools=pools, rollout={"progressDeadlineSeconds": 60}))
    kube.until(namespace, "demo", "RolloutComplete", status="True")
    first = kube.get(namespace, "md", "demo")["status"]["revision"]
    gpu = {"count": 1, "type": "of-the-future"}
    kube.patch(namespace, "md", "demo", {"spec": {"pools": {"mixed": {"gpu": gpu}}}})
    kube.until(namespace, "demo", "RolloutComplete", reason="RollingOut")
    condition = eventually(lambda: _rolled_back(kube, namespace), timeout_s=120)
    assert "nothing more became ready for 60 s" in condition["message"]
    eventually(lambda: _revisions(kube, namespace) == {first})
    status = eventually(lambda: _whole_again(kube, namespace))
    assert status["servingRevisions"] == [first]
    assert first in kube.events(namespace)["RolledBack"]
    row = kube.kubectl("get", "md", "demo", "-n", namespace, "--no-headers").split()
    assert row[:5] == ["demo", "True", "RolledBack", "2/2", "2/2"]
    # Nothing of it starts again, though the operator itself does.
    operator.kill()
    operator.start()
    kube.kubectl("scale", "wp", "demo-mixed", "-n", namespace, "--replicas=3")
    eventually(lambda: kube.get(namespace, "md", "demo")["status"]["decode"] == "3/3")
    assert _revisions(kube, namespace) == {first}
    kube.patch(namespace, "md", "demo", {"spec": {"pools": {"mixed": {"gpu": {"type": ""}}}}})
    kube.until(namespace, "demo", "RolloutComplete", status="True")
    assert "rollout" not in kube.get(namespace, "md", "demo")["status"]
    assert _revisions(kube, namespace) != {first}


def _rolled_back(kube: Kube, namespace: str) -> Json:
    condition = kube.condition(namespace, "demo", "RolloutComplete")
    return condition if condition["reason"] == "RolledBack" else {}


def _whole_again(kube: Kube, namespace: str) -> Json:
    status: Json = kube.get(namespace, "md", "demo")["status"]
    return status if status["decode"] == "2/2" else {}
