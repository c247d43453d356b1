"""What a ModelDeployment declares about scaling, in the planner's words.

The keeper plans with it; the broker is told by it whether to move workers between pools.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from twolane.core.request import Lane
from twolane.operator.build.workers import PoolPlan, pools_of
from twolane.operator.observed import Observed, is_ready
from twolane.operator.resources.model_deployment import Cooldown, LaneTarget, ModelDeploymentSpec, Ratio, Slo
from twolane.policies.planner_settings import PlannerSettings

INTERVAL_S = 15.0
FIRST_START_S = 120.0
SHORTEST_START_S, LONGEST_START_S = 15.0, 1800.0


def settings_of(spec: ModelDeploymentSpec, start_s: float) -> PlannerSettings:
    """The planner's settings for a spec; `start_s` is how long its pods take to serve."""
    scaling, first = spec.scaling, PlannerSettings()
    assert scaling is not None
    ratio, cooldown = scaling.ratio or Ratio(), scaling.cooldown or Cooldown()
    slo = spec.slo or Slo()
    lanes = {Lane.SHORT: slo.short or LaneTarget(), Lane.LONG: slo.long or LaneTarget()}
    ttft_s = {
        lane: target_ms / 1000.0 if (target_ms := own.ttft_ms or slo.ttft_ms) else first.ttft_s[lane]
        for lane, own in lanes.items()
    }
    # Answers of both lanes grow in the same steps, so that the stricter pace holds for all.
    paces = [pace for own in (slo, *lanes.values()) if (pace := own.tpot_ms) is not None]
    return PlannerSettings(
        goal=slo.goal,
        ttft_s=ttft_s,
        tpot_s=min(paces) / 1000.0 if paces else first.tpot_s,
        start_s=start_s,
        interval_s=INTERVAL_S,
        up_s=float(cooldown.up_seconds),
        down_s=float(cooldown.down_seconds),
        idle_s=None if scaling.scale_to_zero is None else float(scaling.scale_to_zero.after_idle_seconds),
        ratio_min=ratio.min_prefill_per_decode or 0.0,
        ratio_max=ratio.max_prefill_per_decode,
        shared=shares_workers(spec),
    )


def shares_workers(spec: ModelDeploymentSpec) -> bool:
    """Whether workers may change pools without a restart: the pools are scaled together and all alike."""
    pools = pools_of(spec)
    alike = {_make(pool) for pool in pools}
    return spec.scaling is not None and len(pools) > 1 and len(alike) == 1


def _make(pool: PoolPlan) -> str:
    """All that a pod of the pool is made of, but its count and its role."""
    return pool.declared.model_dump_json(exclude={"replicas", "scaling"})


def start_s(observed: Observed, names: Iterable[str]) -> float:
    """How long workers take from their creation until they serve: the median of those there are."""
    wanted, known = set(names), []
    for pod in observed.pods:
        if pod["metadata"]["name"] in wanted and is_ready(pod):
            ready = next(c for c in pod["status"]["conditions"] if c["type"] == "Ready")
            created, since = pod["metadata"].get("creationTimestamp"), ready.get("lastTransitionTime")
            if created and since:
                known.append((_time(since) - _time(created)).total_seconds())
    if not known:
        return FIRST_START_S
    median = sorted(known)[len(known) // 2]
    return min(LONGEST_START_S, max(SHORTEST_START_S, median))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
