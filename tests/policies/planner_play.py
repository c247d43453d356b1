"""Plays a planner against a load that is given per interval, with pods that need time to start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from twolane.core.request import Lane
from twolane.policies.cost import DecodeCost, PrefillCost
from twolane.policies.planner import Planner
from twolane.policies.planner_view import (
    DecodeLoad,
    LaneTraffic,
    PlannerView,
    PoolKind,
    PoolState,
    ScalePlan,
    WorkerCost,
)

INTERVAL_S = 15.0
COST = WorkerCost(
    PrefillCost.known(0.02, 1e-9, 1e-4, 1e-7), DecodeCost.known(0.02, 1e-7, 1e-5), capacity_tokens=200_000
)
PAIR = (PoolKind.PREFILL, PoolKind.DECODE)


def traffic(prompts_per_s: float, tokens: float = 1000.0) -> dict[Lane, LaneTraffic]:
    """What arrives in one interval: long prompts of one length, all served in time."""
    requests = prompts_per_s * INTERVAL_S
    long = LaneTraffic(requests, requests * tokens, requests * tokens, judged=requests, met=requests)
    return {Lane.SHORT: LaneTraffic(), Lane.LONG: long}


def view(
    lanes: Mapping[Lane, LaneTraffic], pools: Mapping[PoolKind, PoolState], **more: object
) -> PlannerView:
    """A view with the parts given, and nothing that waits."""
    parts: dict[str, object] = {"waiting_s": dict.fromkeys(Lane, 0.0), "decode": DecodeLoad(), **more}
    return PlannerView(INTERVAL_S, lanes, pools=pools, cost=COST, **parts)  # type: ignore[arg-type]


@dataclass
class Play:
    """A planner and its pools; pods serve `start_s` after they were asked for."""

    planner: Planner
    start_s: float = 120.0
    bounds: Mapping[PoolKind, Mapping[str, int]] = field(default_factory=dict)
    wanted: dict[PoolKind, int] = field(default_factory=lambda: dict.fromkeys(PAIR, 2))
    now_s: float = 0.0
    plans: list[ScalePlan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._starting: dict[PoolKind, list[float]] = {kind: [] for kind in self.wanted}
        self.counts: dict[PoolKind, list[int]] = {kind: [] for kind in self.wanted}
        self._memory: object = None

    def run(self, load: Callable[[int], float], intervals: int, **more: object) -> None:
        """Plays so many intervals at the prompts per second that `load` gives for each."""
        for number in range(intervals):
            rate = load(number)
            answers = DecodeLoad(
                running=rate * 6.0,
                held_tokens=rate * 6.0 * 1100.0,
                ended=rate * INTERVAL_S,
                output_tokens=rate * INTERVAL_S * 200.0,
            )
            self.step(traffic(rate), **{"decode": answers, **more})

    def step(self, lanes: Mapping[Lane, LaneTraffic], **more: object) -> ScalePlan:
        """One interval."""
        self.now_s += INTERVAL_S
        pools = {}
        for kind, wanted in self.wanted.items():
            left = [at_s for at_s in self._starting[kind] if at_s > self.now_s]
            self._starting[kind] = left
            ready = wanted - len(left)
            pools[kind] = PoolState(wanted, ready, len(left), **self.bounds.get(kind, {}))
        plan = self.planner.plan(self.now_s, view(lanes, pools, memory=self._memory, **more))
        self._memory = plan.memory
        self.plans.append(plan)
        for kind, target in plan.pools.items():
            more_pods = target.workers - self.wanted[kind]
            self._starting[kind] += [self.now_s + self.start_s] * max(0, more_pods)
            if more_pods < 0:
                # Pods that have not started end first.
                self._starting[kind] = self._starting[kind][: max(0, len(self._starting[kind]) + more_pods)]
            self.wanted[kind] = target.workers
            self.counts[kind].append(target.workers)
        return plan
