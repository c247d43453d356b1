"""What a planner is told once: targets, bounds over pools, pauses, and how careful it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from twolane.core.errors import ConfigError
from twolane.core.request import Lane


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """Settings of the planner.

    Attributes:
        goal: share of requests that should keep their targets.
        ttft_s: seconds to the first token, by lane.
        tpot_s: seconds per further token.
        start_s: seconds until a new pod serves.
        interval_s: seconds between two views.
        up_s: pause between two raises of one pool.
        down_s: a pool is lowered only to what sufficed for so long.
        idle_s: seconds without requests before all pools go to none; None: never.
        ratio_min: prefill workers for each decode worker at least.
        ratio_max: prefill workers for each decode worker at most; None: no limit.
        shared: workers can change between pools without a restart, so pools share their headroom.
        hysteresis: a removal leaves this share of the workers unneeded.
        drain_s: seconds in which a backlog should be gone.
        care_most: care that missed targets may bring; above 1 one bad quarter of an hour is paid for all day.
        care_least: care that kept targets may bring.
        fullness: share of a prefill worker that work may fill.
        least_room: workers are kept for this factor over the present and the expected work.
    """

    goal: float = 0.99
    ttft_s: Mapping[Lane, float] = field(default_factory=lambda: {Lane.SHORT: 0.4, Lane.LONG: 2.0})
    tpot_s: float = 0.1
    start_s: float = 120.0
    interval_s: float = 15.0
    up_s: float = 30.0
    down_s: float = 300.0
    idle_s: float | None = None
    ratio_min: float = 0.0
    ratio_max: float | None = None
    shared: bool = True
    hysteresis: float = 0.05
    drain_s: float = 60.0
    care_most: float = 1.0
    care_least: float = 0.05
    fullness: float = 0.9
    least_room: float = 1.05

    def __post_init__(self) -> None:
        """Refuses what can't be kept.

        Raises:
            ConfigError: the goal is no share, or the ratio bounds exclude each other.
        """
        if not 0.0 < self.goal < 1.0:
            raise ConfigError(f"goal must be between 0 and 1, not {self.goal}", param="goal")
        if self.ratio_max is not None and self.ratio_max < self.ratio_min:
            raise ConfigError("ratio_max must not be below ratio_min", param="ratio_max")
        if not (self.start_s > 0.0 and self.interval_s > 0.0 and self.drain_s > 0.0):
            raise ConfigError("start_s, interval_s and drain_s must be above 0")
