"""Plans the pools of ModelDeployments that declare `spec.scaling`, and writes their counts.

The leader's reconciler asks it before it plans, so that a decision is carried out at the next look. What
it writes is WorkerPool.spec.replicas with its reason, by server-side apply under its own field manager;
a pool that another scaler owns is left to it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from twolane.core.errors import ConfigError
from twolane.operator.build.workers import PoolPlan, pools_of
from twolane.operator.cluster import Cluster
from twolane.operator.conditions import Condition
from twolane.operator.names import (
    API_VERSION,
    COMPONENT_LABEL,
    PLANNER_MANAGER,
    REASON_ANNOTATION,
    WORKER_POOL,
)
from twolane.operator.observed import Observed, Planned, is_ready, label
from twolane.operator.planner_metrics import Growth, Snapshot
from twolane.operator.planner_schedule import floors
from twolane.operator.planner_spec import INTERVAL_S, settings_of, start_s
from twolane.operator.resources.model_deployment import ModelDeploymentSpec, read_spec
from twolane.operator.resources.shape import Json
from twolane.operator.resources.worker_pool import read_pool
from twolane.operator.scaling import other_scalers, scaler_words
from twolane.operator.scrape import Scraper
from twolane.policies.cost import DecodeCost, PrefillCost
from twolane.policies.planner import Planner
from twolane.policies.planner_view import PlannerView, PoolKind, PoolState, ScalePlan, WorkerCost

log = logging.getLogger(__name__)

KIND = "ScalingActive"
# How soon a model that sleeps is looked at again, in seconds: a request may be held.
WAKE_S = 5.0
# Only asked for when a model wakes that no worker has served yet.
FIRST_COST = WorkerCost(PrefillCost(), DecodeCost(), capacity_tokens=100_000)


@dataclass(slots=True)
class _Book:
    """What is remembered of one ModelDeployment between two plans."""

    snapshot: Snapshot
    memory: Any = None
    cost: WorkerCost | None = None
    said: Planned = field(default_factory=lambda: Planned(Condition(KIND, "True", "Measuring", "")))


class PlannerKeeper:
    """Plans of all ModelDeployments that ask for them."""

    def __init__(self, cluster: Cluster, scraper: Scraper) -> None:
        self._cluster = cluster
        self._scraper = scraper
        self._books: dict[str, _Book] = {}

    async def keep(self, observed: Observed, now_s: float) -> Planned | None:
        """Plans one ModelDeployment if it is time; None for one that asks for no planning.

        Args:
            observed: a fresh observation.
            now_s: the event loop's clock.

        Raises:
            ClusterError: the API server refused a count or did not answer.
        """
        uid = observed.model_deployment["metadata"]["uid"]
        try:
            spec = read_spec(observed.model_deployment)
        except ValidationError:
            # The plan says what is wrong; counts stay.
            return None
        if observed.deleting or spec.scaling is None:
            self._books.pop(uid, None)
            return None
        book = self._books.get(uid)
        asleep = not any(_wanted(pool) for pool in observed.pools().values())
        if book is not None and now_s - book.snapshot.at_s < (WAKE_S if asleep else INTERVAL_S):
            return book.said
        snapshot = await self._look(observed, now_s)
        if book is None:
            words = f"the load is measured; the first plan follows in {INTERVAL_S:.0f} s"
            said = Planned(Condition(KIND, "True", "Measuring", words), look_again_s=INTERVAL_S)
            self._books[uid] = _Book(snapshot, cost=snapshot.cost(), said=said)
            return said
        growth, book.snapshot = Growth(book.snapshot, snapshot), snapshot
        book.cost = snapshot.cost() or book.cost
        book.said = await self._plan(observed, spec, book, growth)
        return book.said

    async def _look(self, observed: Observed, now_s: float) -> Snapshot:
        """Asks every router and worker that serves."""
        pods = {pod["metadata"]["name"]: pod for pod in observed.pods if is_ready(pod)}
        components = {name: label(pod, COMPONENT_LABEL) for name, pod in pods.items()}
        asked = {name: pod for name, pod in pods.items() if components[name] in ("router", "worker")}
        readings = await self._scraper.read(asked.values())
        return Snapshot(
            now_s,
            {name: reading for name, reading in readings.items() if components[name] == "router"},
            {name: reading for name, reading in readings.items() if components[name] == "worker"},
            frozenset(asked.keys() - readings.keys()),
        )

    async def _plan(
        self, observed: Observed, spec: ModelDeploymentSpec, book: _Book, growth: Growth
    ) -> Planned:
        assert spec.scaling is not None
        if len(observed.revisions()) != 1:
            return _waits("Rollout", "counts stay as they are until one revision runs alone")
        [state] = observed.revisions().values()
        pools = [pool for pool in pools_of(spec) if pool.name in observed.pools()]
        asleep = not any(_wanted(observed.pools()[pool.name]) for pool in pools)
        if book.cost is None and not asleep and not growth.after.held:
            return _waits("NoCosts", "no worker has measured its steps yet, so counts stay as they are")
        try:
            least = floors(spec.scaling.schedule, observed.now)
            ready = {
                pool.name: state.pools[pool.name].ready if pool.name in state.pools else 0 for pool in pools
            }
            settings = settings_of(spec, start_s(observed, growth.after.workers))
        except ConfigError as error:
            return Planned(Condition(KIND, "False", "SpecInvalid", error.message), look_again_s=INTERVAL_S)
        view = PlannerView(
            span_s=growth.span_s,
            lanes=growth.lanes(),
            waiting_s=growth.after.waiting_s(),
            decode=growth.decode(),
            pools={
                PoolKind(pool.name): _state(pool, observed.pools()[pool.name], ready[pool.name], least)
                for pool in pools
            },
            cost=book.cost or FIRST_COST,
            held=growth.after.held,
            complete=growth.complete and bool(growth.after.routers),
            memory=book.memory,
        )
        plan = Planner(settings).plan(growth.after.at_s, view)
        book.memory = plan.memory
        return await self._write(observed, pools, plan)

    async def _write(self, observed: Observed, pools: list[PoolPlan], plan: ScalePlan) -> Planned:
        others = other_scalers({pool.name: observed.pools()[pool.name] for pool in pools})
        for pool in pools:
            child, target = observed.pools()[pool.name], plan.pools[PoolKind(pool.name)]
            if pool.name not in others and target.workers != _wanted(child):
                log.info(
                    "scaled",
                    extra={"pool": child["metadata"]["name"], "to": target.workers, "why": target.reason},
                )
                await self._cluster.apply(_count(child, target.workers, target.reason), PLANNER_MANAGER)
        # Numbers change at every look; they are in the decisions, so that the status is not written anew.
        words = "the planner decides how many workers each pool has; scalingDecisions says why"
        if others:
            words = f"{scaler_words(others)}, and left to it until kubectl scale takes it back; {words}"
        reason = "Planned" if len(others) < len(pools) else "OtherScaler"
        asleep = not any(target.workers for target in plan.pools.values())
        return Planned(Condition(KIND, "True", reason, words), WAKE_S if asleep else INTERVAL_S)


def _state(pool: PoolPlan, child: Json, ready: int, least: Mapping[str, int]) -> PoolState:
    wanted, bounds = _wanted(child), pool.declared.scaling
    return PoolState(
        wanted=wanted,
        ready=min(ready, wanted),
        pending=max(0, wanted - ready),
        minimum=bounds.min_replicas,
        maximum=bounds.max_replicas,
        floor=least.get(pool.name, 0),
    )


def _wanted(child: Json) -> int:
    return read_pool(child).replicas or 0


def _count(child: Json, workers: int, reason: str) -> Json:
    """Only what the planner owns: the count and why."""
    metadata = child["metadata"]
    return {
        "apiVersion": API_VERSION,
        "kind": WORKER_POOL,
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "annotations": {REASON_ANNOTATION: reason},
        },
        "spec": {"replicas": workers},
    }


def _waits(reason: str, words: str) -> Planned:
    return Planned(Condition(KIND, "True", reason, words), look_again_s=INTERVAL_S)
