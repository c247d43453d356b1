"""Which least counts a schedule asks for at a moment: cron expressions of five fields, in their time zones.

The planner's settings are made with it; it has no clock of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from twolane.core.errors import ConfigError
from twolane.operator.resources.model_deployment import ScheduleEntry

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# Least and most value of each field, and names that stand for values.
_FIELDS: tuple[tuple[int, int, tuple[str, ...]], ...] = (
    (0, 59, ()),
    (0, 23, ()),
    (1, 31, ()),
    (1, 12, _MONTHS),
    (0, 7, _DAYS),
)
LONGEST_S = 7 * 86_400
"""An entry that begins once a week can last until it begins again; longer ones hold for so long."""


class Cron:
    """One expression: minute, hour, day of the month, month, day of the week.

    Raises:
        ConfigError: it is no such expression; the message names the field.
    """

    def __init__(self, text: str) -> None:
        parts = text.lower().split()
        if len(parts) != len(_FIELDS):
            raise ConfigError(f"cron {text!r} must have five fields", param="cron")
        self._minutes, self._hours, self._days, self._months, weekdays = (
            _values(part, *bounds) for part, bounds in zip(parts, _FIELDS, strict=True)
        )
        # 7 is Sunday as 0 is.
        self._weekdays = {day % 7 for day in weekdays}
        self._any_day, self._any_weekday = parts[2] == "*", parts[4] == "*"

    def begins(self, minute: datetime) -> bool:
        """Whether it begins in this minute. Days of month and week, both given, hold one or the other."""
        by_day = minute.day in self._days
        by_weekday = (minute.weekday() + 1) % 7 in self._weekdays
        both = self._any_day or self._any_weekday
        return (
            (by_day and by_weekday if both else by_day or by_weekday)
            and minute.month in self._months
            and minute.hour in self._hours
            and minute.minute in self._minutes
        )


def floors(schedule: Iterable[ScheduleEntry], now: datetime) -> dict[str, int]:
    """Least counts by pool of the entries that hold at `now`.

    Raises:
        ConfigError: an entry has no valid expression or names no time zone; the message names it.
    """
    found: dict[str, int] = {}
    for entry in schedule:
        try:
            holds = _holds(entry, now)
        except (ConfigError, ZoneInfoNotFoundError, ValueError) as error:
            raise ConfigError(f"scaling.schedule {entry.name}: {error}", param="schedule") from error
        if holds:
            found[entry.pool] = max(found.get(entry.pool, 0), entry.min_replicas)
    return found


def _holds(entry: ScheduleEntry, now: datetime) -> bool:
    cron, zone = Cron(entry.cron), ZoneInfo(entry.time_zone)
    # Steps are taken in UTC, so that a clock that is set back can't hide or double a minute.
    minute = now.replace(second=0, microsecond=0)
    earliest = now - timedelta(seconds=min(entry.duration_seconds, LONGEST_S))
    while minute > earliest:
        if cron.begins(minute.astimezone(zone)):
            return True
        minute -= timedelta(minutes=1)
    return False


def _values(part: str, low: int, high: int, names: tuple[str, ...]) -> set[int]:
    found: set[int] = set()
    for item in part.split(","):
        span, _, step_text = item.partition("/")
        step = int(step_text) if step_text else 1
        if span == "*":
            first, last = low, high
        else:
            begin, dash, end = span.partition("-")
            first = _value(begin, low, names)
            last = _value(end, low, names) if dash else (high if step_text else first)
        if step < 1 or not low <= first <= last <= high:
            raise ConfigError(f"cron field {part!r} must lie within {low} and {high}", param="cron")
        found.update(range(first, last + 1, step))
    return found


def _value(text: str, low: int, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text) + low
    if not text.isdigit():
        raise ConfigError(f"cron field {text!r} is no number", param="cron")
    return int(text)
