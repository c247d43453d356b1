"""Workers of several pods: counted, started, drained and ended as one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.operator.objects import IMAGE, NOW, World, model_deployment
from twolane.operator.actions import Delete, Emit, Scale
from twolane.operator.build.workers import pools_of, worker_template
from twolane.operator.names import GROUP_LABEL, INDEX_LABEL, REVISION_LABEL, Owner
from twolane.operator.resources.model_deployment import read_spec
from twolane.operator.resources.shape import Json
from twolane.operator.revision import revision_of
from twolane.worker.config import WorkerConfig

OWNER = Owner("demo", "team", "u-1")
GANG = {"tensorParallel": {"size": 3, "podsPerWorker": 3}, "gpu": {"count": 1}}


def _world(workers: int = 2, **spec: Any) -> World:
    pools = {"prefill": {"shared": {}}, "decode": {**GANG, "replicas": workers}}
    world = World(model_deployment(**({"pools": pools, "rollout": _rollout()} | spec)))
    world.settle()
    return world


def _rollout() -> Json:
    return {"progressDeadlineSeconds": 600, "rollback": {"soakSeconds": 0}}


def _groups(world: World) -> dict[str, int]:
    """Pods asked for, by the number of the worker."""
    return {
        name.rsplit("-", 1)[1]: child["spec"]["replicas"]
        for (kind, name), child in world.children.items()
        if kind == "StatefulSet"
    }


def _ranks(world: World, number: int) -> list[Json]:
    """Pods of a worker in the order of their ranks."""
    pods = [p for p in world.pods if p["metadata"]["labels"].get(GROUP_LABEL, "").endswith(f"-{number}")]
    return sorted(pods, key=lambda pod: pod["metadata"]["name"])


def _unready(pod: Json) -> None:
    pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]


def _scale(world: World, workers: int) -> None:
    world.children["WorkerPool", "demo-decode"]["spec"]["replicas"] = workers


def test_each_worker_is_a_stateful_set_with_a_service_its_ranks_meet_by() -> None:
    """Counts are workers, wherever they stand."""
    world = _world()
    assert _groups(world) == {"0": 3, "1": 3}
    assert len(world.pods) == 2 + 1 + 1 + 6
    status = world.md["status"]
    assert (status["prefill"], status["decode"]) == ("1/1", "2/2")
    assert world.condition("ModelLoaded")["message"] == "3 of 3 workers have loaded it"
    pool = world.children["WorkerPool", "demo-decode"]["status"]
    assert (pool["replicas"], pool["readyReplicas"], pool["desiredReplicas"]) == (2, 2, 2)
    assert pool["selector"].endswith(f"{INDEX_LABEL}=0")
    revision = status["revision"]
    service = world.children["Service", f"demo-decode-{revision}-1"]["spec"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    stateful = world.children["StatefulSet", f"demo-decode-{revision}-1"]["spec"]
    assert stateful["serviceName"] == f"demo-decode-{revision}-1"
    assert stateful["podManagementPolicy"] == "Parallel"
    assert service["selector"].items() <= stateful["template"]["metadata"]["labels"].items()
    assert world.turn().actions == ()


def test_ranks_are_told_who_they_are_and_where_they_meet() -> None:
    """The worker's own parser takes the flags once the kubelet has filled in the names."""
    spec = read_spec(model_deployment(pools={"mixed": GANG}))
    [pool] = pools_of(spec)
    container = worker_template(OWNER, spec, pool, IMAGE, "b:1")["spec"]["containers"][0]
    fields = {
        e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"] if "valueFrom" in e
    }
    assert fields["RANK"] == f"metadata.labels['{INDEX_LABEL}']"
    assert fields["WORKER"] == f"metadata.labels['{GROUP_LABEL}']"
    filled = {"$(RANK)": "2", "$(WORKER)": "demo-mixed-abc-0"}
    args = list(container["args"][1:])
    for name, value in filled.items():
        args = [arg.replace(name, value) for arg in args]
    config = WorkerConfig.from_args(args)
    assert (config.tensor_parallel_size, config.tensor_parallel_rank) == (3, 2)
    assert config.tensor_parallel_address == "demo-mixed-abc-0-0.demo-mixed-abc-0.team.svc:9500"
    assert {"name": "ranks", "containerPort": 9500, "protocol": "TCP"} in container["ports"]


def test_ranks_that_share_a_pod_make_an_ordinary_worker() -> None:
    """One process starts them; devices are asked for together."""
    shared = {"tensorParallel": {"size": 4}, "gpu": {"count": 4}}
    world = World(model_deployment(pools={"mixed": shared}))
    world.settle()
    assert _groups(world) == {}
    container = world.deployment("demo-mixed")["spec"]["template"]["spec"]["containers"][0]
    config = WorkerConfig.from_args(list(container["args"][1:]))
    assert (config.tensor_parallel_size, config.tensor_parallel_rank) == (4, None)
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}


def test_how_a_worker_is_cut_is_part_of_its_revision() -> None:
    """Other ranks, other pods: workers of different cuts never serve under one name."""
    cuts: list[Json] = [
        {},
        {"tensorParallel": {"size": 2}},
        {"tensorParallel": {"size": 4}},
        {"tensorParallel": {"size": 4, "podsPerWorker": 4}},
    ]
    specs = [read_spec(model_deployment(pools={"mixed": cut})) for cut in cuts]
    assert len({revision_of(OWNER, spec, IMAGE) for spec in specs}) == len(cuts)


def test_ranks_are_kept_together_and_not_spread_like_workers() -> None:
    """A preference by the worker's own label; a user's affinity replaces it."""
    world = _world()
    pod = world.children["StatefulSet", f"demo-decode-{world.md['status']['revision']}-0"]["spec"]["template"]
    terms = pod["spec"]["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    labels = [term["podAffinityTerm"]["labelSelector"]["matchLabels"][GROUP_LABEL] for term in terms]
    assert labels == [pod["metadata"]["labels"][GROUP_LABEL]] * 2
    assert "topologySpreadConstraints" not in pod["spec"]
    assert "topologySpreadConstraints" in world.deployment("demo-prefill")["spec"]["template"]["spec"]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_worker_counts_only_when_all_its_ranks_do(rank: int) -> None:
    """Whichever is missing: all or nothing."""
    world = _world()
    _unready(_ranks(world, 1)[rank])
    world.turn()
    assert world.md["status"]["decode"] == "1/2"
    assert world.condition("Ready")["reason"] == "Degraded"
    assert world.condition("RolloutComplete")["status"] == "True"
    _unready(_ranks(world, 0)[1])
    world.turn()
    assert world.md["status"]["decode"] == "0/2"
    assert world.condition("DecodeReady")["status"] == "False"


def test_scaling_adds_and_ends_whole_workers() -> None:
    """The last ones go; their objects go when their pods have gone."""
    world = _world()
    _scale(world, 4)
    world.settle()
    assert _groups(world) == {"0": 3, "1": 3, "2": 3, "3": 3}
    _scale(world, 1)
    made = world.turn()
    scaled = {a.name.rsplit("-", 1)[1]: a.replicas for a in made.actions if isinstance(a, Scale)}
    assert scaled == {"1": 0, "2": 0, "3": 0}
    # The pods are still ending their requests.
    assert not any(isinstance(action, Delete) for action in world.turn().actions)
    world.follow()
    world.settle()
    assert _groups(world) == {"0": 3}
    names = [name for kind, name in world.children if kind == "Service"]
    assert sum(name.startswith("demo-decode-") for name in names) == 1
    assert world.md["status"]["decode"] == "1/1"


def test_a_pool_scaled_to_nothing_is_remembered_as_empty() -> None:
    """Its first worker's objects stay, so that nobody takes the rest for a whole revision."""
    world = _world(scaling={"scaleToZero": {}})
    for name in ("demo-prefill", "demo-decode"):
        world.children["WorkerPool", name]["spec"]["replicas"] = 0
    world.settle()
    assert _groups(world) == {"0": 0}
    [state] = world.observe().revisions().values()
    assert not state.alive
    assert world.condition("Ready")["reason"] == "Asleep"
    _scale(world, 1)
    world.settle()
    assert _groups(world) == {"0": 3}


def test_a_change_replaces_workers_one_whole_worker_at_a_time() -> None:
    """Old and new together never hold more than the count and one of each pool."""
    world = _world(workers=3)
    old = world.md["status"]["revision"]
    world.md["spec"]["engine"] = {"pageTokens": 32}
    seen = set()
    for _ in range(60):
        made = world.turn()
        asked = {r: s.pools["decode"].asked for r, s in world.observe().revisions().items()}
        seen.add(tuple(asked.values()))
        assert sum(asked.values()) <= 4
        world.follow()
        if not made.actions and made.look_again_s is None:
            break
        world.now += timedelta(seconds=made.look_again_s or 0)
    assert len(seen) > 3
    assert world.md["status"]["revision"] != old
    assert world.md["status"]["servingRevisions"] == [world.md["status"]["revision"]]
    assert {c["metadata"]["labels"].get(REVISION_LABEL) for c in world.children.values()} - {None} == {
        world.md["status"]["revision"]
    }


def test_a_change_that_fails_brings_whole_workers_back() -> None:
    """Old StatefulSets are scaled to nothing by a rollout, not deleted, until it has ended."""
    world = _world(workers=3)
    old = world.md["status"]["revision"]
    world.md["spec"]["engine"] = {"pageTokens": 32}
    world.md["metadata"]["generation"] += 1
    for _ in range(6):
        world.turn()
        world.follow()
    new = world.md["status"]["revision"]
    for pod in world.pods:
        if pod["metadata"]["labels"][REVISION_LABEL] == new:
            _unready(pod)
    for _ in range(4):
        world.turn()
        world.now += timedelta(seconds=400)
    assert world.condition("RolloutComplete")["reason"] == "RolledBack"
    world.settle()
    assert world.md["status"]["servingRevisions"] == [old]
    assert _groups(world) == {"0": 3, "1": 3, "2": 3}


def test_an_end_drains_all_ranks() -> None:
    """Routers first, then whole workers."""
    world = _world()
    world.md["metadata"]["deletionTimestamp"] = NOW.isoformat()
    world.turn()
    world.follow()
    world.turn()
    assert _groups(world) == {"0": 0, "1": 0}
    world.follow()
    world.turn()
    assert world.md["metadata"]["finalizers"] == []


def _life(pod: Json, started: int, ended: int | None = None) -> None:
    """When the process of a pod started, and when the one before it ended, in seconds from now on."""
    container: Json = {"name": "twolane", "state": {"running": {"startedAt": _at(started)}}}
    if ended is not None:
        container["lastState"] = {"terminated": {"finishedAt": _at(ended), "exitCode": 1}}
    pod["status"]["containerStatuses"] = [container]


def _at(seconds: int) -> str:
    return (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_rank_that_does_not_notice_the_end_of_another_is_restarted_with_all_others() -> None:
    """After a while in which it should have ended by itself; an Event says what happened."""
    world = _world()
    ranks = _ranks(world, 1)
    for number, rank in enumerate(ranks):
        _life(rank, started=1000 if number == 2 else 0, ended=998 if number == 2 else None)
        _unready(rank)
    world.now = NOW + timedelta(seconds=1010)
    early = world.turn()
    assert not any(isinstance(action, Delete) for action in early.actions)
    assert early.look_again_s is not None
    world.now = NOW + timedelta(seconds=1100)
    late = world.turn().actions
    gone = [action.name for action in late if isinstance(action, Delete)]
    assert gone == [rank["metadata"]["name"] for rank in ranks]
    [event] = [action for action in late if isinstance(action, Emit) and action.reason == "WorkerRestarted"]
    assert f"{ranks[0]['metadata']['name']}, {ranks[1]['metadata']['name']} went on" in event.message
    world.settle()
    assert world.md["status"]["decode"] == "2/2"


@pytest.mark.parametrize(
    ("lives", "ready"),
    [
        # All ended together, the last a moment after the first had started again.
        ([(1001, 1000), (1005, 1003), (1010, 1008)], False),
        # One had to wait longer for its start.
        ([(1001, 1000), (1002, 1001), (1300, 1001)], False),
        # None ever ended: they still load.
        ([(0, None), (5, None), (300, None)], False),
        # They get along, whatever happened before.
        ([(0, None), (0, None), (1000, 998)], True),
    ],
)
def test_ranks_that_live_together_are_left_alone(lives: list[tuple[int, int | None]], ready: bool) -> None:
    """Restarting what restarts by itself would never end."""
    world = _world()
    for rank, (started, ended) in zip(_ranks(world, 0), lives, strict=True):
        _life(rank, started, ended)
        if not ready:
            _unready(rank)
    world.now = NOW + timedelta(seconds=5000)
    assert not any(isinstance(action, Delete) for action in world.turn().actions)


@given(
    name=st.from_regex(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True),
    pool=st.sampled_from(["prefill", "prefill-short", "decode", "mixed"]),
    number=st.integers(0, 9999),
)
def test_names_of_workers_leave_room_for_what_kubernetes_adds(name: str, pool: str, number: int) -> None:
    """The hash of a StatefulSet's revision is appended to its name in a label of 63 characters."""
    made = Owner(name, "team", "u").group(pool, "0123abcd", number)
    assert len(made) <= 52
    assert made != Owner(f"{name[:-1]}x" if not name.endswith("x") else f"{name[:-1]}y", "team", "u").group(
        pool, "0123abcd", number
    )
