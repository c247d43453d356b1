"""Planning in the operator: schedules, measurements, and counts written only where they are the planner's."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from tests.operator.objects import IMAGE, World, model_deployment
from twolane.core.errors import ConfigError
from twolane.core.request import Lane
from twolane.operator.build.front import broker_template
from twolane.operator.names import PLANNER_MANAGER, REASON_ANNOTATION, owner_of
from twolane.operator.planner_keeper import WAKE_S, PlannerKeeper
from twolane.operator.planner_metrics import Growth, Snapshot
from twolane.operator.planner_schedule import Cron, floors
from twolane.operator.planner_spec import INTERVAL_S, settings_of, shares_workers, start_s
from twolane.operator.resources.model_deployment import ScheduleEntry, read_spec
from twolane.operator.revision import revision_of
from twolane.operator.scrape import Reading, Sample
from twolane.router.demand import Demand
from twolane.v1 import worker_pb2
from twolane.worker.metrics import WorkerMetrics

POOLS = {"prefill": {"shared": {"scaling": {"maxReplicas": 9}}}, "decode": {"scaling": {"maxReplicas": 9}}}


def _entry(cron: str, **more: Any) -> ScheduleEntry:
    fields = {"name": "day", "cron": cron, "pool": "decode", "minReplicas": 4, **more}
    return ScheduleEntry.model_validate(fields)


@pytest.mark.parametrize(
    ("cron", "moment", "holds"),
    [
        ("0 8 * * *", datetime(2026, 1, 5, 8, 30, tzinfo=UTC), True),
        ("0 8 * * *", datetime(2026, 1, 5, 9, 1, tzinfo=UTC), False),
        ("0 8 * * mon-fri", datetime(2026, 1, 4, 8, 30, tzinfo=UTC), False),
        ("*/20 9-17 * * 1-5", datetime(2026, 1, 5, 17, 59, tzinfo=UTC), True),
        ("0 0 1 jan *", datetime(2026, 1, 1, 0, 59, tzinfo=UTC), True),
        ("0 8 * * 7", datetime(2026, 1, 4, 8, 0, tzinfo=UTC), True),
        ("0 8 13 * 5", datetime(2026, 1, 9, 8, 10, tzinfo=UTC), True),
    ],
)
def test_a_schedule_holds_from_its_minute_for_its_duration(cron: str, moment: datetime, holds: bool) -> None:
    """Five fields; 7 is Sunday; day of month and day of week, both given, hold one or the other."""
    assert floors([_entry(cron)], moment) == ({"decode": 4} if holds else {})


def test_a_schedule_follows_its_time_zone() -> None:
    """Eight in Berlin is seven in UTC in winter."""
    entry = _entry("0 8 * * *", timeZone="Europe/Berlin")
    assert floors([entry], datetime(2026, 1, 5, 7, 10, tzinfo=UTC)) == {"decode": 4}
    assert floors([entry], datetime(2026, 1, 5, 8, 10, tzinfo=UTC)) == {}


@pytest.mark.parametrize("cron", ["60 * * * *", "a * * * *", "5-2 * * * *", "*/0 * * * *"])
def test_a_wrong_expression_is_named(cron: str) -> None:
    """With the entry that holds it."""
    with pytest.raises(ConfigError, match="schedule day"):
        floors([_entry(cron)], datetime(2026, 1, 5, tzinfo=UTC))
    with pytest.raises((ConfigError, ValueError)):
        Cron(cron)


def test_targets_and_pauses_reach_the_planner() -> None:
    """A lane's own target goes before the general one; the stricter pace holds for all."""
    spec = read_spec(
        model_deployment(
            slo={"ttftMs": 900, "short": {"ttftMs": 300, "tpotMs": 40}, "tpotMs": 60, "goal": 0.95},
            scaling={
                "ratio": {"minPrefillPerDecode": 0.5, "maxPrefillPerDecode": 2},
                "scaleToZero": {"afterIdleSeconds": 120},
                "cooldown": {"upSeconds": 5, "downSeconds": 60},
            },
        )
    )
    made = settings_of(spec, 90.0)
    assert made.ttft_s == {Lane.SHORT: 0.3, Lane.LONG: 0.9}
    assert (made.tpot_s, made.start_s, made.up_s, made.down_s, made.idle_s) == (0.04, 90.0, 5.0, 60.0, 120.0)
    assert (made.ratio_min, made.ratio_max) == (0.5, 2.0)
    assert made.goal == 0.95
    assert settings_of(read_spec(model_deployment(scaling={})), 90.0).goal == 0.99


@pytest.mark.parametrize("goal", [0.2, 1.0, "most"])
def test_a_goal_that_no_fleet_can_be_sized_for_is_refused(goal: object) -> None:
    """All requests, or less than half of them."""
    with pytest.raises(ValidationError, match="goal"):
        read_spec(model_deployment(slo={"goal": goal}))


def test_workers_are_shared_only_between_pools_that_are_alike() -> None:
    """Another device or another engine option can't be changed without a restart."""
    alike = read_spec(model_deployment(pools=POOLS, scaling={}))
    assert shares_workers(alike)
    assert not shares_workers(read_spec(model_deployment(pools=POOLS)))
    other = {**POOLS, "decode": {"gpu": {"count": 2}}}
    assert not shares_workers(read_spec(model_deployment(pools=other, scaling={})))


def test_the_broker_moves_workers_only_for_a_planned_model_and_no_worker_restarts_for_it() -> None:
    """The flag is on the broker; the revision stays."""
    plain, planned = model_deployment(pools=POOLS), model_deployment(pools=POOLS, scaling={})
    owner = owner_of(plain)
    arguments = [
        broker_template(owner, read_spec(md), IMAGE, "r")["spec"]["containers"][0]["args"]
        for md in (plain, planned)
    ]
    assert ["--role-control" in args for args in arguments] == [False, True]
    assert revision_of(owner, read_spec(plain), IMAGE) == revision_of(owner, read_spec(planned), IMAGE)


def _reading(at_s: float, **values: float) -> Reading:
    """Names with __ between name and label value: arrivals_total__long."""
    samples = []
    for key, value in values.items():
        name, _, label = key.partition("__")
        labels = dict(part.split("_is_") for part in label.split("__")) if label else {}
        samples.append(Sample(name, labels, value))
    return Reading(at_s, tuple(samples))


def _router(at_s: float, arrivals: float, held: float = 0.0) -> Reading:
    return _reading(
        at_s,
        twolane_router_arrivals_total__lane_is_long=arrivals,
        twolane_router_uncached_tokens_total__lane_is_long=arrivals * 1000.0,
        twolane_router_slo_answers_total__lane_is_long__outcome_is_met=arrivals * 0.9,
        twolane_router_slo_answers_total__lane_is_long__outcome_is_ttft=arrivals * 0.1,
        twolane_router_input_tokens_sum=arrivals * 1200.0,
        twolane_router_input_tokens_count=arrivals,
        twolane_router_output_tokens_sum=arrivals * 200.0,
        twolane_router_output_tokens_count=arrivals,
        twolane_router_held_requests=held,
    )


def _worker(at_s: float, waiting_s: float = 0.0) -> Reading:
    return _reading(
        at_s,
        twolane_worker_step_cost_seconds__part_is_prefill_constant=0.02,
        twolane_worker_step_cost_seconds__part_is_prefill_attention=1e-9,
        twolane_worker_step_cost_seconds__part_is_prefill_token=1e-4,
        twolane_worker_step_cost_seconds__part_is_decode_constant=0.02,
        twolane_worker_step_cost_seconds__part_is_decode_held_token=1e-7,
        twolane_worker_capacity_tokens=200_000.0,
        twolane_worker_waiting_seconds__lane_is_long=waiting_s,
    )


def test_counters_are_compared_pod_by_pod() -> None:
    """A router that began anew counts from nothing; a new one in full; a silent one makes it incomplete."""
    before = Snapshot(0.0, {"a": _router(0.0, 100.0), "b": _router(0.0, 50.0)})
    after = Snapshot(15.0, {"a": _router(15.0, 130.0), "b": _router(15.0, 5.0), "c": _router(15.0, 7.0)})
    long = Growth(before, after).lanes()[Lane.LONG]
    assert long.requests == pytest.approx(30.0 + 5.0 + 7.0)
    assert long.met == pytest.approx(0.9 * 42.0)
    assert long.judged == pytest.approx(42.0)
    assert long.prompt_tokens == pytest.approx(42.0 * 1200.0)
    assert Growth(before, after).complete
    silent = Snapshot(15.0, {"a": _router(15.0, 130.0)}, silent=frozenset({"b"}))
    assert not Growth(before, silent).complete


def test_costs_come_from_workers_that_measured_enough() -> None:
    """None until one has."""
    assert Snapshot(0.0, workers={"w": _reading(0.0)}).cost() is None
    cost = Snapshot(0.0, workers={"w": _worker(0.0), "new": _reading(0.0)}).cost()
    assert cost is not None
    assert cost.prefill.token_s == pytest.approx(1e-4)
    assert cost.capacity_tokens == 200_000


def test_the_names_are_those_that_workers_and_routers_use() -> None:
    """What a real worker and a real router expose is what is read."""
    registry = CollectorRegistry()
    costs = worker_pb2.StepCosts(
        prefill_constant_s=0.02, prefill_token_s=1e-4, decode_constant_s=0.03, decode_row_s=1e-5
    )
    load = worker_pb2.Load(total_pages=100, held_tokens=70, waiting_long_s=4.0, running=3, costs=costs)
    WorkerMetrics(registry).observe_load(load, 0, 16)
    demand = Demand(registry)
    demand.arrived(Lane.LONG, 500)
    demand.ended(Lane.LONG, "met")
    families = text_string_to_metric_families(generate_latest(registry).decode())
    samples = tuple(Sample(s.name, s.labels, s.value) for family in families for s in family.samples)
    seen = Snapshot(15.0, {"r": Reading(15.0, samples)}, {"w": Reading(15.0, samples)})
    cost = seen.cost()
    assert cost is not None
    assert cost.capacity_tokens == 1600
    assert cost.prefill.constant_s == pytest.approx(0.02)
    assert seen.waiting_s()[Lane.LONG] == pytest.approx(4.0)
    growth = Growth(Snapshot(0.0), seen)
    long = growth.lanes()[Lane.LONG]
    assert (long.requests, long.uncached_tokens, long.judged, long.met) == (1.0, 500.0, 1.0, 1.0)
    assert (growth.decode().running, growth.decode().held_tokens) == (3.0, 70.0)


class _Cluster:
    """Takes applies as the API server would: the field has a new owner."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.applied: list[tuple[str, int]] = []

    async def apply(self, body: dict[str, Any], manager: str) -> dict[str, Any]:
        """Server-side apply of a WorkerPool's count."""
        assert manager == PLANNER_MANAGER
        assert set(body["spec"]) == {"replicas"}
        name, count = body["metadata"]["name"], body["spec"]["replicas"]
        self.applied.append((name, count))
        pool = self._world.children["WorkerPool", name]
        pool["spec"]["replicas"] = count
        pool["metadata"].setdefault("annotations", {}).update(body["metadata"]["annotations"])
        pool["metadata"]["managedFields"] = [_owns_replicas(manager)]
        return pool


def _owns_replicas(manager: str, **more: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"f:spec": {"f:replicas": {}}}
    return {"manager": manager, "time": "2026-01-01T00:00:00Z", "fieldsV1": fields, **more}


class _Scraper:
    """Answers for every pod, but for those that are silent."""

    def __init__(self) -> None:
        self.arrivals = self.at_s = self.held = self.waiting_s = 0.0
        self.silent = False

    async def read(self, pods: Any) -> dict[str, Reading]:
        """Readings by pod name."""
        found = {}
        for pod in [] if self.silent else pods:
            name = pod["metadata"]["name"]
            router = "router" in name
            made = (
                _router(self.at_s, self.arrivals, self.held) if router else _worker(self.at_s, self.waiting_s)
            )
            found[name] = made
        return found


class _Stage:
    """A settled model, and time that passes for its keeper."""

    def __init__(self, **scaling: Any) -> None:
        spec = {"pools": POOLS, "router": {"replicas": 1}, "scaling": scaling}
        self.world = World(model_deployment(**spec))
        self.world.settle()
        self.scraper = _Scraper()
        self.cluster = _Cluster(self.world)
        self.keeper = PlannerKeeper(self.cluster, self.scraper)  # type: ignore[arg-type]
        self.now_s = 0.0

    def run(self, prompts_per_s: float, intervals: int) -> Any:
        """Lets the load last; pods follow the counts at once."""
        said = None
        for _ in range(intervals):
            self.now_s += INTERVAL_S
            self.scraper.at_s = self.now_s
            self.scraper.arrivals += prompts_per_s * INTERVAL_S
            said = asyncio.run(self.keeper.keep(self.world.observe(), self.now_s))
            self.world.settle()
        return said

    def count(self, pool: str) -> int:
        """What the WorkerPool asks for."""
        count = self.world.children["WorkerPool", f"demo-{pool}"]["spec"]["replicas"]
        assert isinstance(count, int)
        return count


def test_a_load_raises_the_pools_and_the_status_says_why() -> None:
    """The count is written under the planner's own name, with its reason."""
    stage = _Stage()
    assert (stage.count("prefill"), stage.count("decode")) == (1, 1)
    stage.run(30.0, 12)
    assert stage.count("prefill") >= 3
    assert stage.count("decode") >= 2
    pool = stage.world.children["WorkerPool", "demo-prefill"]
    assert "work for" in pool["metadata"]["annotations"][REASON_ANNOTATION]
    decisions = stage.world.md["status"]["scalingDecisions"]
    assert any("work for" in decision["reason"] for decision in decisions)


def test_a_pool_that_another_scaler_owns_is_left_to_it() -> None:
    """The other pool is still planned; the condition names the scaler."""
    stage = _Stage()
    pool = stage.world.children["WorkerPool", "demo-prefill"]
    pool["metadata"]["managedFields"] = [_owns_replicas("kube-controller-manager", subresource="scale")]
    said = stage.run(30.0, 12)
    assert {name for name, _ in stage.cluster.applied} == {"demo-decode"}
    assert "prefill is scaled by a HorizontalPodAutoscaler" in said.condition.message


def test_a_count_set_by_hand_is_where_the_planner_goes_on_from() -> None:
    """A person with kubectl does not freeze it."""
    stage = _Stage(cooldown={"downSeconds": 0})
    pool = stage.world.children["WorkerPool", "demo-prefill"]
    pool["spec"]["replicas"] = 6
    pool["metadata"]["managedFields"] = [_owns_replicas("kubectl-scale", subresource="scale")]
    stage.run(1.0, 12)
    assert stage.count("prefill") < 6


def test_silence_never_removes_a_worker() -> None:
    """Metrics that can't be read look like no load."""
    stage = _Stage(cooldown={"downSeconds": 0})
    stage.run(30.0, 12)
    before = (stage.count("prefill"), stage.count("decode"))
    stage.scraper.silent = True
    stage.run(0.0, 20)
    assert (stage.count("prefill"), stage.count("decode")) == before


def test_an_idle_model_sleeps_and_wakes_for_a_held_request() -> None:
    """All pools to none and back, in one look each."""
    stage = _Stage(scaleToZero={"afterIdleSeconds": 60}, cooldown={"downSeconds": 0})
    stage.run(5.0, 4)
    stage.run(0.0, 8)
    assert (stage.count("prefill"), stage.count("decode")) == (0, 0)
    stage.scraper.held = 1.0
    # A sleeping model is looked at more often: somebody is waiting.
    stage.now_s += WAKE_S - INTERVAL_S
    said = stage.run(0.0, 1)
    assert (stage.count("prefill"), stage.count("decode")) == (1, 1)
    assert said.look_again_s == INTERVAL_S


def test_maxima_hold_whatever_arrives() -> None:
    """Nine at most were declared."""
    stage = _Stage()
    stage.run(500.0, 20)
    assert (stage.count("prefill"), stage.count("decode")) == (9, 9)


def test_without_scaling_nothing_is_planned_or_asked() -> None:
    """Counts are whoever's scales them."""
    world = World(model_deployment(pools=POOLS))
    world.settle()
    keeper = PlannerKeeper(_Cluster(world), _Scraper())  # type: ignore[arg-type]
    assert asyncio.run(keeper.keep(world.observe(), 0.0)) is None


def test_a_start_takes_the_median_of_those_that_were_seen() -> None:
    """Two minutes until one was."""
    stage = _Stage()
    observed = stage.world.observe()
    names = [pod["metadata"]["name"] for pod in observed.pods]
    assert start_s(observed, names) == 120.0
    for pod in observed.pods:
        pod["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        for condition in pod["status"]["conditions"]:
            condition["lastTransitionTime"] = "2026-01-01T00:01:10Z"
    assert start_s(observed, names) == 70.0
