"""How much work will arrive when a pod asked for now is ready, and how often it will be more than that.

Three ways of forecasting run side by side, from one that follows a step within a minute to one that
averages many minutes: which suits depends on whether a load drifts or bursts. Each remembers how far
arrivals were above its forecast made one horizon before, the newest counting most; the one that would have
needed the least room is believed. planner.py keeps one forecast per kind of work.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace

# Forecasts of less work (worker-seconds a second) are not judged.
LEAST_DEMAND = 0.02
# The first intervals may lie before the load has settled: forecasts made in them are not judged.
SETTLE = 8
# Errors that are assumed before any is known, in shares of `first_spread`.
FIRST = (-1.0, -2.0 / 3.0, -1.0 / 3.0, 0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0)
# A tail is read at a little less and a little more work, so that one error makes no step of it.
SOFT = (0.95, 1.0, 1.05)
# (weight of the newest interval in the level, weight of the newest change in the trend), fastest first.
WAYS = ((0.35, 0.1), (0.1, 0.03), (0.03, 0.0))


@dataclass(frozen=True, slots=True)
class ForecastSettings:
    """Settings of a forecast; intervals are those between views.

    Attributes:
        horizon: intervals until a pod asked for now serves.
        damping: share of the trend that is left after one interval.
        history: intervals that are remembered.
        half_life: intervals after which an error counts half: bursts come in groups.
        first_errors: how many errors those count like that are assumed before any is known.
        first_spread: how far from the forecast those reach, as a share of it.
        most_beyond: work beyond the forecast counts as this share of it at most, whatever a former peak was.
    """

    horizon: int = 8
    damping: float = 0.85
    history: int = 240
    half_life: float = 60.0
    first_errors: float = 20.0
    first_spread: float = 0.3
    most_beyond: float = 1.0


@dataclass(frozen=True, slots=True)
class Tail:
    """How often work exceeds the forecast.

    Attributes:
        expected: work per second expected.
        beyond: work per second over the forecast made for it, ascending.
        above: share of the work that came in intervals from each on.
    """

    expected: float
    beyond: tuple[float, ...]
    above: tuple[float, ...]

    def late(self, work: float) -> float:
        """Share of the work that will arrive while its rate is more than `work` per second."""
        if self.expected <= LEAST_DEMAND:
            return 0.0
        return sum(self._above(part * work - self.expected) for part in SOFT) / len(SOFT)

    def room(self, late: float) -> float:
        """Work per second over the forecast that no more than a share `late` of the work exceeds."""
        for beyond, above in zip(self.beyond, (*self.above[1:], 0.0), strict=True):
            if above <= late:
                return beyond
        return self.beyond[-1]

    def capped(self, most: float) -> Tail:
        """With work beyond the forecast counted as `most` times the forecast at most."""
        return replace(self, beyond=tuple(min(most * self.expected, beyond) for beyond in self.beyond))

    def _above(self, beyond: float) -> float:
        place = bisect_right(self.beyond, beyond)
        return self.above[place] if place < len(self.above) else 0.0


@dataclass(frozen=True, slots=True)
class Way:
    """One way of forecasting: Holt's method with a damped trend, and how far it was off.

    Attributes:
        level_weight: weight of the newest interval in the level.
        trend_weight: weight of the newest change in the trend.
        level: work per second now, smoothed.
        trend: its change per interval.
        made: forecasts of the last intervals, oldest first, at most `horizon`.
        errors: work beyond the forecast made for it, and the work, oldest first, at most `history`.
        above_all: sum of how much forecasts were above what came, the newest counting most, of `judged`.
        judged: forecasts in that sum, faded alike.
        seen: intervals observed.
    """

    level_weight: float
    trend_weight: float
    level: float = 0.0
    trend: float = 0.0
    made: tuple[float, ...] = ()
    errors: tuple[tuple[float, float], ...] = ()
    above_all: float = 0.0
    judged: float = 0.0
    seen: int = 0

    def observe(self, demand: float, settings: ForecastSettings) -> Way:
        """With the work per second of one more interval."""
        if self.seen == 0:
            return replace(self, level=demand, seen=1, made=(0.0,))
        # The first intervals count alike, so that the first of all does not linger.
        weight = max(self.level_weight, 1.0 / (self.seen + 1))
        before = self.level + settings.damping * self.trend
        level = before + weight * (demand - before)
        trend = settings.damping * self.trend
        trend += self.trend_weight * (level - self.level - trend)
        following = replace(self._judged(demand, settings), level=level, trend=trend, seen=self.seen + 1)
        forecast = following.expected(settings) if following.seen > SETTLE else 0.0
        return replace(following, made=(*following.made, forecast))

    def _judged(self, demand: float, settings: ForecastSettings) -> Way:
        """With the oldest forecast held against what came."""
        if len(self.made) < settings.horizon:
            return self
        made, rest = self.made[0], self.made[1:]
        if made <= LEAST_DEMAND:
            return replace(self, made=rest)
        fade = 0.5 ** (1.0 / settings.half_life)
        return replace(
            self,
            made=rest,
            errors=(*self.errors, (demand - made, demand))[-settings.history :],
            judged=self.judged * fade + 1.0,
            above_all=self.above_all * fade + made - demand,
        )

    def expected(self, settings: ForecastSettings) -> float:
        """Work per second one horizon from now; never below half the level."""
        damping = settings.damping
        reach = damping * (1.0 - damping**settings.horizon) / (1.0 - damping)
        return max(0.5 * self.level, self.level + reach * self.trend)

    @property
    def bias(self) -> float:
        """How much forecasts are above what comes, on average."""
        return self.above_all / self.judged if self.judged > 0.0 else 0.0

    def tail(self, settings: ForecastSettings) -> Tail:
        """How much of the coming work any number of workers would be too few for."""
        fade = 0.5 ** (1.0 / settings.half_life)
        expected = self.expected(settings)
        each = settings.first_errors / len(FIRST)
        # (work beyond the forecast, weight, work)
        weighed = [
            (settings.first_spread * rank * expected, each, (1.0 + settings.first_spread * rank) * expected)
            for rank in FIRST
        ]
        weight = 1.0
        for beyond, came in reversed(self.errors):
            weighed.append((beyond, weight, came))
            weight *= fade
        weighed.sort()
        total = sum(weight * came for _, weight, came in weighed)
        above, left = [], total
        for _, weight, came in weighed:
            above.append(left / max(1e-9, total))
            left -= weight * came
        return Tail(expected, tuple(beyond for beyond, _, _ in weighed), tuple(above))


@dataclass(frozen=True, slots=True)
class Forecast:
    """All ways together."""

    ways: tuple[Way, ...] = tuple(Way(*weights) for weights in WAYS)
    settings: ForecastSettings = field(default_factory=ForecastSettings)

    def observe(self, demand: float) -> Forecast:
        """With the work per second of one more interval."""
        return replace(self, ways=tuple(way.observe(demand, self.settings) for way in self.ways))

    @property
    def level(self) -> float:
        """Work per second now, as the fastest way has it."""
        return self.ways[0].level

    @property
    def expected(self) -> float:
        """Work per second one horizon from now, as the fastest way has it."""
        return self.ways[0].expected(self.settings)

    def believed(self, late: float) -> tuple[Way, Tail]:
        """The way that needs the least room for all but a share `late` of the work, and its tail."""
        tails = [(way, way.tail(self.settings)) for way in self.ways]
        way, tail = min(tails, key=lambda item: item[0].bias + item[1].room(late))
        return way, tail.capped(self.settings.most_beyond)
