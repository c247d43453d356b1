"""How much work will arrive when a pod asked for now is ready, and how often it will be more than that.

The level follows by Holt's method with a damped trend: it needs no season and no fitting, and it is
right within a minute of a step. How far arrivals were above the forecast made one horizon before is
remembered, the newest counting most, and gives the share of work that would arrive while so many workers
are too few. planner.py keeps one forecast per kind of work.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace

# Below so much work (worker-seconds a second) ratios mean nothing.
LEAST_DEMAND = 0.02
# The first intervals may lie before the load has settled: forecasts made in them are not judged.
SETTLE = 8
# Errors that are assumed before any is known, in shares of `first_spread`.
FIRST = (-1.0, -2.0 / 3.0, -1.0 / 3.0, 0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0)
# A tail is read at a little less and a little more work, so that one error makes no step of it.
SOFT = (0.95, 1.0, 1.05)


@dataclass(frozen=True, slots=True)
class ForecastSettings:
    """Settings of a forecast; intervals are those between views.

    Attributes:
        horizon: intervals until a pod asked for now serves.
        level_weight: weight of the newest interval in the level.
        trend_weight: weight of the newest change in the trend.
        damping: share of the trend that is left after one interval.
        history: intervals that are remembered.
        half_life: intervals after which an error counts half: bursts come in groups.
        first_errors: how many errors those count like that are assumed before any is known.
        first_spread: how far from the forecast those reach, as a share of it.
        most_error: errors beyond this factor count as this: after a lull any work is many times the forecast.
    """

    horizon: int = 8
    level_weight: float = 0.35
    trend_weight: float = 0.1
    damping: float = 0.85
    history: int = 240
    half_life: float = 60.0
    first_errors: float = 20.0
    first_spread: float = 0.3
    most_error: float = 1.7


@dataclass(frozen=True, slots=True)
class Tail:
    """How often work exceeds the forecast.

    Attributes:
        expected: work per second expected.
        factors: work over the forecast made for it, ascending.
        above: share of the work that came in intervals from each factor on.
    """

    expected: float
    factors: tuple[float, ...]
    above: tuple[float, ...]

    def late(self, work: float) -> float:
        """Share of the work that will arrive while its rate is more than `work` per second."""
        if self.expected <= LEAST_DEMAND:
            return 0.0
        return sum(self._above(part * work / self.expected) for part in SOFT) / len(SOFT)

    def _above(self, factor: float) -> float:
        place = bisect_right(self.factors, factor)
        return self.above[place] if place < len(self.above) else 0.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """The state of one forecast.

    Attributes:
        level: work per second now, smoothed.
        trend: its change per interval.
        made: forecasts of the last intervals, oldest first, at most `horizon`.
        errors: work over the forecast made for it, oldest first, at most `history`.
        seen: intervals observed.
    """

    level: float = 0.0
    trend: float = 0.0
    made: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    seen: int = 0
    settings: ForecastSettings = field(default_factory=ForecastSettings)

    def observe(self, demand: float) -> Forecast:
        """With the work per second of one more interval."""
        settings = self.settings
        if self.seen == 0:
            return replace(self, level=demand, seen=1, made=(0.0,))
        before = self.level + settings.damping * self.trend
        level = before + settings.level_weight * (demand - before)
        trend = settings.damping * self.trend
        trend += settings.trend_weight * (level - self.level - trend)
        made, errors = self.made, self.errors
        if len(made) >= settings.horizon:
            if made[0] > LEAST_DEMAND:
                errors = (*errors, demand / made[0])[-settings.history :]
            made = made[1:]
        following = replace(self, level=level, trend=trend, errors=errors, seen=self.seen + 1)
        forecast = following.expected if following.seen > SETTLE else 0.0
        return replace(following, made=(*made, forecast))

    @property
    def expected(self) -> float:
        """Work per second one horizon from now; never below half the level."""
        settings = self.settings
        damping = settings.damping
        reach = damping * (1.0 - damping**settings.horizon) / (1.0 - damping)
        return max(0.5 * self.level, self.level + reach * self.trend)

    def tail(self) -> Tail:
        """How much of the coming work any number of workers would be too few for."""
        settings = self.settings
        fade = 0.5 ** (1.0 / settings.half_life)
        weighed = [(1.0 + settings.first_spread * rank, settings.first_errors / len(FIRST)) for rank in FIRST]
        weight = 1.0
        for error in reversed(self.errors):
            weighed.append((min(settings.most_error, error), weight))
            weight *= fade
        weighed.sort()
        total = sum(factor * weight for factor, weight in weighed)
        above, left = [], total
        for factor, weight in weighed:
            above.append(left / total)
            left -= factor * weight
        return Tail(self.expected, tuple(factor for factor, _ in weighed), tuple(above))
