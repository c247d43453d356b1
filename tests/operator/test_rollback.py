"""A rollout that fails halts and returns, once only for one spec; `test_error_rate` has what errors do."""

from __future__ import annotations

import pytest

from tests.operator.objects import NOW, World, model_deployment
from tests.operator.rollouts import PAIRS, change, counts, rollout, settled, wait
from twolane.operator.actions import Delete
from twolane.operator.conditions import ROLLED_BACK
from twolane.operator.names import REVISION_LABEL
from twolane.operator.observe import pods_to_ask
from twolane.operator.progress import trial_name
from twolane.operator.resources.rollout_status import Failure, Progress, read_progress
from twolane.operator.resources.shape import Json


def _roll_until_failed(world: World, new: str, turns: int = 40) -> None:
    """Lets the pods of the old revision follow, those of the new one never get ready."""
    for _ in range(turns):
        world.follow(ready=False, revision=new)
        for revision in {c["metadata"]["labels"].get(REVISION_LABEL, "") for c in world.children.values()}:
            if revision not in ("", new):
                world.follow(revision=revision)
        world.turn()
        wait(world, 60)


def test_a_revision_that_never_gets_ready_is_given_up_after_its_deadline() -> None:
    """The old one is whole again, the new one is gone, and the status, an Event and the table say why."""
    world = settled()
    old, new = change(world)
    before = {"demo-broker": 1, "demo-decode": 2, "demo-prefill": 2, "demo-router": 2}
    _roll_until_failed(world, new)
    world.settle()
    assert counts(world, old) == before
    assert counts(world, new) == {}
    condition = world.condition("RolloutComplete")
    assert (condition["status"], condition["reason"]) == ("False", ROLLED_BACK)
    assert f"revision {new} failed: nothing more became ready for 600 s" in condition["message"]
    assert "0 of 2 prefill, 0 of 2 decode" in condition["message"]
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("True", ROLLED_BACK)
    assert world.events.count(ROLLED_BACK) == 1
    status = world.md["status"]
    assert (status["revision"], status["servingRevisions"]) == (new, [old])
    assert (status["prefill"], status["decode"]) == ("2/2", "2/2")


def test_a_failure_is_not_tried_again_and_writes_nothing() -> None:
    """However long it stays, whatever scalers write."""
    world = settled()
    old, new = change(world)
    _roll_until_failed(world, new)
    world.settle()
    wait(world, 86400)
    assert world.turn().actions == ()
    # A scaler of the routers changes the spec's generation.
    world.md["spec"]["router"] = {"replicas": 4}
    world.md["metadata"]["generation"] += 1
    world.children["WorkerPool", "demo-decode"]["spec"]["replicas"] = 3
    world.settle()
    assert counts(world, old)["demo-router"] == 4
    assert counts(world, old)["demo-decode"] == 3
    assert counts(world, new) == {}
    assert world.condition("RolloutComplete")["reason"] == ROLLED_BACK
    assert world.events.count(ROLLED_BACK) == 1


@pytest.mark.parametrize("mend", ["another image", "back", "same revision"])
def test_a_changed_spec_is_tried(mend: str) -> None:
    """A new revision, the old spec, or the same revision under another spec."""
    world = settled()
    old, new = change(world)
    _roll_until_failed(world, new)
    world.settle()
    if mend == "another image":
        world.md["spec"]["image"] = "registry.example/twolane:3"
    elif mend == "back":
        del world.md["spec"]["image"]
    else:
        world.md["spec"]["slo"] = {"ttftMs": 100}
    world.md["metadata"]["generation"] += 1
    world.settle()
    assert world.condition("RolloutComplete")["reason"] == "UpToDate"
    assert world.condition("Ready")["reason"] == "Serving"
    revision = world.md["status"]["revision"]
    assert (revision == old, revision == new) == (mend == "back", mend == "same revision")
    assert "rollout" not in world.md["status"]


def test_the_old_revision_keeps_a_pair_while_the_new_one_proves_itself() -> None:
    """Then it goes; without a soak it goes at once."""
    for soak_s, stays in ((60, True), (0, False)):
        world = settled(rollout=rollout(soakSeconds=soak_s))
        old, _ = change(world)
        for _ in range(8):
            world.follow()
            world.turn()
        assert (counts(world, old).get("demo-decode") == 1) == stays
        wait(world, 61)
        world.settle()
        assert counts(world, old) == {}


def test_progress_keeps_a_slow_rollout_alive() -> None:
    """The deadline counts from the last worker that became ready, not from the start."""
    world = settled()
    _, new = change(world)
    for _ in range(30):
        # One pod after the other, each just in time.
        fresh = [
            pod
            for pod in world.pods
            if pod["metadata"]["labels"][REVISION_LABEL] == new and not _is_ready(pod)
        ]
        for pod in fresh[:1]:
            pod["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
        wait(world, 590)
        world.turn()
        ready = {pod["metadata"]["name"] for pod in world.pods if _is_ready(pod)}
        world.follow(ready=False)
        for pod in world.pods:
            state = "True" if pod["metadata"]["name"] in ready else "False"
            old = pod["metadata"]["labels"][REVISION_LABEL] != new
            pod["status"]["conditions"] = [{"type": "Ready", "status": "True" if old else state}]
        if new in world.md["status"]["servingRevisions"]:
            break
    else:
        raise AssertionError("the new revision never served")
    assert "failure" not in world.md["status"].get("rollout", {})


def _is_ready(pod: Json) -> bool:
    return bool(pod["status"]["conditions"][0]["status"] == "True")


def test_a_revision_that_loses_its_readiness_again_fails_too() -> None:
    """It came up, and then did not stay up: the deadline counts from its best moment."""
    world = settled(rollout=rollout(soakSeconds=86400))
    old, new = change(world)
    for _ in range(8):
        world.follow()
        world.turn()
    assert world.condition("RolloutComplete")["reason"] == "Soaking"
    for pod in world.pods:
        if pod["metadata"]["labels"][REVISION_LABEL] == new:
            pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    world.turn()
    wait(world, 601)
    world.turn()
    assert world.condition("RolloutComplete")["reason"] == ROLLED_BACK
    world.settle()
    assert world.md["status"]["servingRevisions"] == [old]


def test_a_change_on_the_way_returns_to_what_served_before_it_all() -> None:
    """Two broken specs in a row: the first that worked is what remains, with all its workers."""
    world = settled()
    old, broken = change(world)
    for _ in range(3):
        world.follow(ready=False, revision=broken)
        world.turn()
    world.md["spec"]["image"] = "registry.example/twolane:3"
    world.md["metadata"]["generation"] += 1
    world.turn()
    newer = world.md["status"]["revision"]
    _roll_until_failed(world, newer)
    world.settle()
    assert world.md["status"]["servingRevisions"] == [old]
    assert counts(world, old)["demo-prefill"] == 2
    assert counts(world, broken) == counts(world, newer) == {}


def test_pools_that_only_the_old_revision_has_serve_again() -> None:
    """A change of the pools themselves that fails: counts are those of before the change."""
    world = settled()
    old = world.md["status"]["revision"]
    world.md["spec"]["pools"] = {"mixed": {"replicas": 3}}
    world.md["metadata"]["generation"] += 1
    world.turn()
    new = world.md["status"]["revision"]
    _roll_until_failed(world, new)
    world.settle()
    assert counts(world, old) == {"demo-broker": 1, "demo-decode": 2, "demo-prefill": 2, "demo-router": 2}
    assert (world.md["status"]["prefill"], world.md["status"]["decode"]) == ("2/2", "2/2")
    assert world.condition("Ready")["reason"] == ROLLED_BACK


def test_nothing_is_rolled_back_while_there_is_nothing_to_return_to() -> None:
    """A first install that does not come up waits, and says so."""
    world = World(model_deployment(pools=PAIRS, rollout=rollout()))
    for _ in range(40):
        made = world.turn()
        world.follow(ready=False)
        wait(world, 60)
        assert not any(isinstance(action, Delete) for action in made.actions)
    assert world.condition("Ready")["status"] == "False"
    assert "rollout" not in world.md["status"]


def test_an_end_goes_on_in_the_middle_of_a_failure() -> None:
    """A deletion drains whatever is left of both."""
    world = settled()
    _, new = change(world)
    _roll_until_failed(world, new)
    world.md["metadata"]["deletionTimestamp"] = world.now.isoformat()
    for _ in range(10):
        world.turn()
        world.follow()
    assert world.md["metadata"]["finalizers"] == []


def test_routers_are_asked_only_while_two_revisions_run() -> None:
    """Nobody's metrics are read for nothing."""
    world = settled()
    assert pods_to_ask(world.observe()) == []
    change(world)
    world.follow()
    asked = pods_to_ask(world.observe())
    assert {pod["metadata"]["name"].rsplit("-", 2)[0] for pod in asked} == {"demo-router"}
    assert len({pod["metadata"]["labels"][REVISION_LABEL] for pod in asked}) == 2


def test_a_record_comes_back_as_it_was_written() -> None:
    """Through JSON; one of another version is no record."""
    failure = Failure(reason="ErrorRate", message="m", at=NOW, trial="t")
    progress = Progress(
        revision="b",
        previous="a",
        pools={"prefill-short": 2},
        routers=1,
        started=NOW,
        progressed=NOW,
        failure=failure,
    )
    written = progress.written()
    assert written["started"] == "2026-01-02T03:04:05Z"
    assert written["pools"] == {"prefill-short": 2}
    assert read_progress({"rollout": written}) == progress
    assert read_progress({"rollout": {"revision": "b"}}) is None
    assert read_progress({}) is None


def test_counts_are_no_part_of_what_is_tried() -> None:
    """All else is."""
    spec: Json = {"pools": {"prefill": {"short": {"replicas": 1}, "long": {}}, "decode": {"replicas": 2}}}
    scaled: Json = {"pools": {"prefill": {"short": {"replicas": 3}, "long": {}}, "decode": {}}, "router": {}}
    assert trial_name(spec) == trial_name(scaled | {"router": {"replicas": 9}})
    assert trial_name(spec) != trial_name({**spec, "slo": {"ttftMs": 1}})
    assert trial_name(spec) != trial_name(
        {"pools": {"prefill": {"short": {"gpu": {}}, "long": {}}, "decode": {}}}
    )
