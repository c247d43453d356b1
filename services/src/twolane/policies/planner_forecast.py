"""How much work will arrive when a pod asked for now is ready: level, trend, and what bursts asked for.

The level follows by Holt's method with a damped trend: it needs no season and no fitting, and it is
right within a minute of a step. Its margin is measured, as a quantile of how far arrivals were above the
forecast made one horizon before. Bursts that come and go within a start of a pod can't be met by any
forecast: for them the level is kept under which all but a small share of the last minutes' work arrived,
so that bursty times cost workers and calm ones none. planner.py keeps one forecast per kind of work.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

# Below so much work (worker-seconds a second) ratios mean nothing.
LEAST_DEMAND = 0.02
# Intervals whose mean is what is usual.
USUAL = 120
# Intervals whose bursts are expected again: they come in groups, and room for them is idle between.
BURSTS = 40
# The first intervals may lie before the load has settled: forecasts made in them are not judged.
SETTLE = 8


@dataclass(frozen=True, slots=True)
class ForecastSettings:
    """Settings of a forecast; intervals are those between views.

    Attributes:
        horizon: intervals until a pod asked for now serves.
        level_weight: weight of the newest interval in the level.
        trend_weight: weight of the newest change in the trend.
        damping: share of the trend that is left after one interval.
        history: intervals that are remembered.
        first_errors: errors that are assumed before any is known; they count less the more are.
        first_spread: how far above the forecast those reach, as a share of it.
        least_margin: the margin at least: calm so far is no promise.
        most_margin: the margin at most.
    """

    horizon: int = 8
    level_weight: float = 0.35
    trend_weight: float = 0.1
    damping: float = 0.85
    history: int = 480
    first_errors: int = 60
    first_spread: float = 0.8
    least_margin: float = 1.2
    most_margin: float = 1.7


@dataclass(frozen=True, slots=True)
class Forecast:
    """The state of one forecast.

    Attributes:
        level: work per second now, smoothed.
        trend: its change per interval.
        made: forecasts of the last intervals, oldest first, at most `horizon`.
        errors: work over the forecast made for it, oldest first, at most `history`.
        past: work per second of the last intervals likewise.
        seen: intervals observed.
    """

    level: float = 0.0
    trend: float = 0.0
    made: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    past: tuple[float, ...] = ()
    seen: int = 0
    settings: ForecastSettings = field(default_factory=ForecastSettings)

    def observe(self, demand: float) -> Forecast:
        """With the work per second of one more interval."""
        settings = self.settings
        past = (*self.past, demand)[-settings.history :]
        if self.seen == 0:
            return replace(self, level=demand, seen=1, made=(0.0,), past=past)
        before = self.level + settings.damping * self.trend
        level = before + settings.level_weight * (demand - before)
        trend = settings.damping * self.trend
        trend += settings.trend_weight * (level - self.level - trend)
        made, errors = self.made, self.errors
        if len(made) >= settings.horizon:
            if made[0] > LEAST_DEMAND:
                errors = (*errors, demand / made[0])[-settings.history :]
            made = made[1:]
        following = replace(self, level=level, trend=trend, errors=errors, past=past, seen=self.seen + 1)
        forecast = following.expected if following.seen > SETTLE else 0.0
        return replace(following, made=(*made, forecast))

    @property
    def expected(self) -> float:
        """Work per second one horizon from now; never below half the level."""
        settings = self.settings
        damping = settings.damping
        reach = damping * (1.0 - damping**settings.horizon) / (1.0 - damping)
        return max(0.5 * self.level, self.level + reach * self.trend)

    def foreseen(self, margin_share: float, late_share: float) -> float:
        """Work per second to be ready for.

        Args:
            margin_share: share of the time that arrivals stay below forecast and margin.
            late_share: share of the work that may arrive above what bursts are met with.
        """
        # What is high already is less likely to grow by the usual share again.
        recent = self.past[-USUAL:]
        usual = min(self.expected, sum(recent) / max(1, len(recent)))
        least = self.settings.least_margin
        growth = self.expected * least + usual * (self.margin(margin_share) - least)
        return max(growth, self.burst(late_share))

    def margin(self, share: float) -> float:
        """Factor over the expected work that arrivals stayed below at this share of the time."""
        settings = self.settings
        first = settings.first_errors
        known = [*self.errors, *(1.0 + settings.first_spread * rank / first for rank in range(first))]
        known.sort()
        position = share * (len(known) - 1)
        low = int(position)
        high = min(low + 1, len(known) - 1)
        found = known[low] + (position - low) * (known[high] - known[low])
        return min(settings.most_margin, max(settings.least_margin, found))

    def burst(self, late_share: float) -> float:
        """Work per second above which only this share of the latest work arrived."""
        past = self.past[-BURSTS:]
        left = late_share * sum(past)
        for demand in sorted(past, reverse=True):
            left -= demand
            if left < 0.0:
                return demand
        return 0.0
