"""The plan against a cluster of dictionaries: what is made, who scales, what the status says, how it ends."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.operator.objects import IMAGE, NOW, World, model_deployment
from twolane.operator.actions import Apply, Emit, PassOn, Scale, SetFinalizer, WriteStatus
from twolane.operator.names import REVISION_LABEL
from twolane.operator.plan import plan
from twolane.operator.resources.shape import Json


def _settled(**spec: Any) -> World:
    world = World(model_deployment(**spec))
    world.settle()
    return world


def _condition(kind: str, reason: str, message: str) -> Json:
    return {"type": kind, "status": "False", "reason": reason, "message": message}


def _args(deployment: Json) -> list[str]:
    args: list[str] = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    return args


def test_a_short_spec_becomes_a_whole_serving_stack() -> None:
    """Broker, routers, both pools, budgets and policies; the status says it serves and where."""
    world = _settled()
    kinds = sorted(f"{kind} {name}" for kind, name in world.children if kind not in ("Deployment",))
    assert [kind for kind in kinds if "broker-" not in kind] == [
        "NetworkPolicy demo-broker",
        "NetworkPolicy demo-router",
        "NetworkPolicy demo-worker",
        "PodDisruptionBudget demo-broker",
        "PodDisruptionBudget demo-decode",
        "PodDisruptionBudget demo-prefill",
        "PodDisruptionBudget demo-router",
        "Service demo",
        "WorkerPool demo-decode",
        "WorkerPool demo-prefill",
    ]
    assert world.deployment("demo-router")["spec"]["replicas"] == 2
    status = world.md["status"]
    assert world.condition("Ready")["status"] == "True"
    assert (status["prefill"], status["decode"]) == ("1/1", "1/1")
    assert status["url"] == "http://demo.team.svc:8000/v1"


def test_a_settled_world_is_left_alone() -> None:
    """No change, no action: nothing is written for ever."""
    world = _settled()
    assert world.turn().actions == ()


@pytest.mark.parametrize("what", ["image", "replicas", "gone", "policy"])
def test_drift_is_set_back_and_said(what: str) -> None:
    """What a hand changed comes back, whatever it was."""
    world = _settled()
    deployment, before = world.deployment("demo-decode"), copy.deepcopy(world.children)
    policy = world.children["NetworkPolicy", "demo-worker"]
    if what == "image":
        deployment["spec"]["template"]["spec"]["containers"][0]["image"] = "evil"
    elif what == "replicas":
        deployment["spec"]["replicas"] = 7
    elif what == "gone":
        del world.children["NetworkPolicy", "demo-worker"]
    else:
        policy["spec"]["ingress"].append({})
    world.settle()
    assert {key: child["spec"] for key, child in world.children.items()} == {
        key: child["spec"] for key, child in before.items()
    }
    assert ("DriftRepaired" in world.events) == (what != "gone")


def test_what_others_add_stays() -> None:
    """A service mesh may put its own annotations and containers into our pods' templates."""
    world = _settled()
    template = world.deployment("demo-decode")["spec"]["template"]
    template["metadata"]["annotations"] = {"mesh": "in"}
    template["spec"]["containers"].append({"name": "sidecar", "image": "mesh"})
    assert [action for action in world.turn().actions if isinstance(action, Apply)] == []


def test_a_scaled_pool_is_followed_and_never_written() -> None:
    """The count in the WorkerPool belongs to whoever scales; the reason lands in the status."""
    world = _settled()
    pool = world.children["WorkerPool", "demo-decode"]
    pool["spec"]["replicas"] = 3
    pool["metadata"]["managedFields"] = [
        {"manager": "keda", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    ]
    world.settle()
    assert pool["spec"]["replicas"] == 3
    assert world.deployment("demo-decode")["spec"]["replicas"] == 3
    decision = world.md["status"]["scalingDecisions"][0]
    assert (decision["from"], decision["to"], decision["reason"]) == (1, 3, "3 asked for by keda")
    assert "Scaled" in world.events


def test_no_plan_ever_applies_the_count_of_a_pool() -> None:
    """Server-side apply of a field means to own it; this one is not ours."""
    world = World(model_deployment(pools={"mixed": {"replicas": 2}}))
    for _ in range(10):
        for action in world.turn().actions:
            if isinstance(action, Apply) and action.body["kind"] == "WorkerPool":
                assert "replicas" not in action.body["spec"]
        world.follow()


def test_a_count_that_changes_in_the_spec_is_passed_on_once() -> None:
    """After that the pool can be scaled away from it."""
    world = _settled(pools={"mixed": {"replicas": 2}})
    world.md["spec"]["pools"]["mixed"]["replicas"] = 4
    assert PassOn("demo-mixed", 4) in world.turn().actions
    world.children["WorkerPool", "demo-mixed"]["spec"]["replicas"] = 3
    assert [action for action in world.turn().actions if isinstance(action, PassOn)] == []
    assert world.deployment("demo-mixed")["spec"]["replicas"] == 3


def test_a_pool_is_held_within_its_bounds_and_says_so() -> None:
    """Whoever scales, more than maxReplicas never run."""
    world = _settled(pools={"mixed": {"scaling": {"maxReplicas": 2}}})
    world.children["WorkerPool", "demo-mixed"]["spec"]["replicas"] = 9
    world.settle()
    assert world.deployment("demo-mixed")["spec"]["replicas"] == 2
    status = world.children["WorkerPool", "demo-mixed"]["status"]
    assert status["desiredReplicas"] == 2
    assert status["message"] == "9 asked for, held at scaling.maxReplicas, 2"


def test_a_scaler_on_a_deployment_is_not_fought_but_named() -> None:
    """Two writers of one count would write for ever; the status says how to mend it."""
    world = _settled()
    deployment = world.deployment("demo-decode")
    deployment["spec"]["replicas"] = 5
    deployment["metadata"]["managedFields"] = [
        {
            "manager": "kube-controller-manager",
            "subresource": "scale",
            "fieldsV1": {"f:spec": {"f:replicas": {}}},
        }
    ]
    world.turn()
    world.turn()
    assert world.deployment("demo-decode")["spec"]["replicas"] == 5
    condition = world.condition("ScalingActive")
    assert (condition["status"], condition["reason"]) == ("False", "ForeignScaler")
    assert "point it at workerpool/demo-decode" in condition["message"]
    assert world.condition("Ready")["reason"] == "ForeignScaler"


def test_counts_do_not_change_the_revision_but_workers_do() -> None:
    """A revision is what workers run."""
    world = _settled(pools={"mixed": {"replicas": 1}})
    first = world.md["status"]["revision"]
    world.md["spec"]["pools"]["mixed"] |= {"replicas": 3, "scaling": {"maxReplicas": 5}}
    world.md["spec"]["router"] = {"replicas": 3}
    world.settle()
    assert world.md["status"]["revision"] == first
    world.md["spec"]["engine"] = {"pageTokens": 32}
    world.settle()
    assert world.md["status"]["revision"] != first


def test_a_change_brings_a_stack_of_its_own_and_ends_the_old_one() -> None:
    """Old and new workers are told different brokers, so they can never be paired."""
    world = _settled()
    old = world.md["status"]["revision"]
    world.md["spec"]["image"] = "registry.example/twolane:2"
    world.turn()
    brokers: dict[str, set[str]] = {}
    for (kind, _), child in world.children.items():
        args = _args(child) if kind == "Deployment" else []
        if "--broker" in args:
            revision = child["metadata"]["labels"][REVISION_LABEL]
            brokers.setdefault(revision, set()).add(args[args.index("--broker") + 1])
    assert len(brokers) == 2
    assert all(len(addresses) == 1 for addresses in brokers.values())
    assert brokers[old].isdisjoint(*(addresses for name, addresses in brokers.items() if name != old))
    world.settle()
    revisions = {child["metadata"]["labels"].get(REVISION_LABEL, "") for child in world.children.values()}
    assert revisions == {"", world.md["status"]["revision"]}
    assert world.condition("RolloutComplete")["reason"] == "UpToDate"


def test_a_broken_change_leaves_the_old_revision_serving() -> None:
    """Ready stays True, and RolloutComplete says what is wrong."""
    world = _settled()
    world.md["spec"]["image"] = "registry.example/broken:1"
    world.turn()
    revision = world.md["status"]["revision"]
    for _ in range(10):
        world.follow(ready=False, revision=revision)
        for pod in world.pods:
            if pod["metadata"]["labels"][REVISION_LABEL] == revision:
                waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
                pod["status"]["containerStatuses"] = [{"name": "twolane", "state": waiting}]
        world.turn()
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("RolloutComplete")["reason"] == "RollingOut"
    assert world.md["status"]["decode"] == "1/1"


SLEEPY = {"scaleToZero": {"holdSeconds": 90}}


def test_a_model_that_sleeps_says_so_and_keeps_its_front() -> None:
    """Ready, since a request is held and answered; the reason and the counts say that nothing runs."""
    world = _settled(scaling=SLEEPY)
    assert world.condition("Ready")["reason"] == "Serving"
    for name in ("demo-prefill", "demo-decode"):
        world.children["WorkerPool", name]["spec"]["replicas"] = 0
    world.settle()
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("True", "Asleep")
    assert "held for up to 90 s" in ready["message"]
    status = world.md["status"]
    assert (status["prefill"], status["decode"]) == ("0/0", "0/0")
    assert status["servingRevisions"] == [status["revision"]]
    assert world.condition("DecodeReady")["status"] == "False"
    assert world.deployment("demo-router")["spec"]["replicas"] == 2
    assert world.deployment("demo-decode")["spec"]["replicas"] == 0
    assert world.turn().actions == ()
    world.children["WorkerPool", "demo-prefill"]["spec"]["replicas"] = 1
    world.turn()
    world.turn()
    assert world.condition("Ready")["status"] == "False"


def test_a_model_that_may_not_sleep_keeps_its_least_count_and_is_not_ready_without_workers() -> None:
    """Without a hold a request would be refused."""
    world = _settled()
    world.children["WorkerPool", "demo-decode"]["spec"]["replicas"] = 0
    world.settle()
    assert world.deployment("demo-decode")["spec"]["replicas"] == 1
    empty = _settled(pools={"mixed": {"replicas": 0, "scaling": {"minReplicas": 0}}})
    assert (empty.condition("Ready")["status"], empty.condition("Ready")["reason"]) == (
        "False",
        "ScaledToZero",
    )


def test_a_sleeping_front_that_is_broken_is_not_ready() -> None:
    """Asleep is said only of what can wake up."""
    world = _settled(scaling=SLEEPY)
    for name in ("demo-prefill", "demo-decode"):
        world.children["WorkerPool", name]["spec"]["replicas"] = 0
    world.settle()
    world.pods = [pod for pod in world.pods if "router" not in pod["metadata"]["name"]]
    world.turn()
    assert world.condition("Ready")["status"] == "False"
    assert world.condition("Ready")["message"].startswith("RouterReady")


def test_an_end_drains_routers_then_workers_and_then_lets_go() -> None:
    """The finalizer stays until the last pod is gone."""
    world = _settled()
    world.md["metadata"]["deletionTimestamp"] = NOW.isoformat()
    scaled = [action for action in world.turn().actions if isinstance(action, Scale)]
    assert [(action.name.rsplit("-", 1)[0], action.replicas) for action in scaled] == [("demo-router", 0)]
    assert world.condition("Ready")["reason"] == "Draining"
    # Router pods are still ending their requests.
    assert [action for action in world.turn().actions if isinstance(action, Scale)] == []
    world.follow()
    scaled = [action for action in world.turn().actions if isinstance(action, Scale)]
    assert {(action.name.rsplit("-", 1)[0], action.replicas) for action in scaled} == {
        ("demo-prefill", 0),
        ("demo-decode", 0),
    }
    assert SetFinalizer(False) not in world.turn().actions
    world.follow()
    assert SetFinalizer(False) in world.turn().actions


def test_an_end_that_takes_too_long_is_left_to_the_cluster() -> None:
    """A node that never answers must not keep the object for ever."""
    world = _settled()
    world.md["metadata"]["deletionTimestamp"] = NOW.replace(year=2025).isoformat()
    actions = world.turn().actions
    assert SetFinalizer(False) in actions
    assert [action.reason for action in actions if isinstance(action, Emit)] == ["DrainTimedOut"]


def test_a_spec_of_a_newer_schema_is_refused_without_touching_what_runs() -> None:
    """An older operator must not tear down what it cannot read."""
    world = _settled()
    world.md["spec"]["rocket"] = {}
    actions = world.turn().actions
    assert all(isinstance(action, WriteStatus | Emit) for action in actions)
    assert world.condition("Ready")["reason"] == "SpecInvalid"
    assert "spec.rocket" in world.condition("Ready")["message"]


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (
            {"conditions": [_condition("PodScheduled", "Unschedulable", "0/3 nodes")]},
            "Unschedulable",
            "0/3 nodes",
        ),
        (
            {
                "initContainerStatuses": [
                    {
                        "name": "fetch-model",
                        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                        "lastState": {"terminated": {"exitCode": 1, "message": "line\nno such bucket"}},
                    }
                ]
            },
            "ModelFetchFailed",
            "exit status 1: no such bucket",
        ),
        (
            {"containerStatuses": [{"name": "twolane", "state": {"running": {}}, "started": False}]},
            "Loading",
            "is loading",
        ),
        (
            {
                "containerStatuses": [
                    {
                        "name": "twolane",
                        "state": {
                            "waiting": {
                                "reason": "CreateContainerConfigError",
                                "message": "no secret k",
                            }
                        },
                    }
                ]
            },
            "CreateContainerConfigError",
            "no secret k",
        ),
    ],
)
def test_the_status_says_why_workers_do_not_serve(status: Json, reason: str, words: str) -> None:
    """The words of scheduler, kubelet or process come through to `kubectl get md`."""
    world = World(model_deployment())
    world.turn()
    world.turn()
    world.follow(ready=False)
    for pod in world.pods:
        if "broker" in pod["metadata"]["name"]:
            pod["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
        else:
            pod["status"] = {"phase": "Pending", **status}
    world.turn()
    condition = world.condition("Ready")
    assert (condition["status"], condition["reason"]) == ("False", reason)
    assert words in condition["message"]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_from_any_half_way_the_same_end_is_reached(data: st.DataObject) -> None:
    """Level-triggered: whatever was lost or left, the world settles into the one the spec describes."""
    reference = _settled()
    world = _settled()
    if data.draw(st.booleans(), label="was another revision"):
        world.md["spec"]["logLevel"] = "DEBUG"
        for _ in range(data.draw(st.integers(0, 8), label="turns of it")):
            world.turn()
            world.follow(ready=data.draw(st.booleans(), label="ready"))
        del world.md["spec"]["logLevel"]
    for key in sorted(world.children):
        if key[0] != "WorkerPool" and data.draw(st.booleans(), label=f"lose {key}"):
            del world.children[key]
    world.settle()
    assert {key: child["spec"] for key, child in world.children.items()} == {
        key: child["spec"] for key, child in reference.children.items()
    }
    assert world.condition("Ready")["status"] == "True"


def test_the_same_observation_gives_the_same_plan() -> None:
    """Pure: no clock, no chance, and the observation is left as it was."""
    observed = World(model_deployment()).observe()
    before = copy.deepcopy(observed)
    assert plan(observed, IMAGE) == plan(observed, IMAGE)
    assert observed == before
