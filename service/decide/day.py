"""When a budget day begins and ends: at the reset hour in local time, across daylight saving changes."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_DAY = timedelta(days=1)


class Day(NamedTuple):
    """A budget day, named by its local start date; 23 or 25 hours long when the clocks change."""

    name: date
    starts_at: datetime
    ends_at: datetime


def starts_at(day: date, reset_hour: int, zone: ZoneInfo) -> datetime:
    """Return the moment at which a day begins, in UTC.

    A skipped hour counts as the moment of the shift, a repeated one as its first occurrence (PEP 495:
    fold=0 reads a skipped time with the offset before the shift).
    """
    return datetime(day.year, day.month, day.day, reset_hour, tzinfo=zone, fold=0).astimezone(UTC)


def budget_day(reset_hour: int, timezone: str, now: datetime) -> Day:
    """Return the budget day that `now` falls into.

    Args:
        reset_hour: 0 to 23, in local time.
        timezone: an IANA name.
        now: the moment, in any zone.

    Raises:
        ValueError: this process does not know the time zone, or there is no such hour.
    """
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, OSError) as error:
        raise ValueError(f"the time zone {timezone!r} is not known here") from error
    today = now.astimezone(zone).date()
    # A zone that crosses the date line skips or repeats a date; two days on each side cover every case.
    dates = [today + offset * _DAY for offset in range(-2, 4)]
    begins = [(starts_at(day, reset_hour, zone), day) for day in dates]
    current = max(begin for begin in begins if begin[0] <= now)
    following = min(begin for begin, _ in begins if begin > current[0])
    return Day(current[1], current[0], following)


def budget_day_without_zone(last: Day | None, now: datetime) -> Day:
    """Return the budget day that `now` falls into when the time zone is unknown: days of 24 hours.

    Args:
        last: the latest open day, which the days continue; None for days in UTC.
        now: the moment, in any zone.
    """
    if last is None:
        return budget_day(0, "UTC", now)
    if now < last.ends_at:
        return last
    more = (now - last.ends_at) // _DAY
    current = last.ends_at + more * _DAY
    return Day(last.name + (more + 1) * _DAY, current, current + _DAY)
