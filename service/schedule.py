"""When a job ticks. Pure: a schedule and a moment in, the next tick out.

Cron expressions have five fields, with names, ranges and steps, in a time zone. When clocks change, they
behave as in Debian's cron. A job at fixed times runs once for each: at the shift if the time is skipped,
the first time if it is repeated. A job whose minute or hour begins with a star follows the wall clock: it
does not run at skipped times, and runs twice at repeated ones.

An interval ticks at whole multiples of itself since 1970, so that all processes compute the same moments.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from projections.runs import run_id

if TYPE_CHECKING:
    from eventstore.events import JobDefinition
    from projections.jobs import JobRow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIELDS = 5
_MINUTE = timedelta(minutes=1)
_MAX_SEARCH_YEARS = 50
"""How far ahead to search for a time that exists on the wall clock; cronsim searches as far for a date."""
_NO_TIME = timedelta(0)


class Schedule(NamedTuple):
    """Either `cron` with its `timezone`, or `every_seconds`."""

    cron: str | None
    every_seconds: float | None
    timezone: str


def schedule_of(job: JobRow | JobDefinition) -> Schedule:
    """Return a job's schedule."""
    return Schedule(job.cron, job.every_seconds, job.timezone)


@lru_cache(maxsize=10_000)
def next_tick(schedule: Schedule, after: datetime) -> datetime | None:
    """Return the first tick after a moment, in UTC; None if there is none.

    Raises:
        ValueError: the schedule is invalid, or this process does not know its time zone.
    """
    try:
        return _next_tick(schedule, after)
    except (ZoneInfoNotFoundError, OSError) as error:
        raise ValueError(f"the time zone {schedule.timezone!r} is not known here") from error
    except ArithmeticError as error:
        raise ValueError("has no tick that a calendar could hold") from error


def _next_tick(schedule: Schedule, after: datetime) -> datetime | None:
    if schedule.every_seconds is not None:
        step = timedelta(seconds=schedule.every_seconds)
        return _EPOCH + ((after - _EPOCH) // step + 1) * step
    cron, zone = schedule.cron or "", ZoneInfo(schedule.timezone)
    fields = cron.split()
    if len(fields) != _FIELDS:
        raise ValueError("must have five fields: minute, hour, day of month, month, day of week")
    minute, hour, *_ = fields
    if minute.startswith("*") or hour.startswith("*"):
        return _next_wall_clock_match(cron, zone, after)
    return _next_fixed_time(cron, zone, after)


def next_ticks(schedule: Schedule, after: datetime, count: int) -> list[datetime]:
    """Return up to `count` next ticks; fewer if no more can be computed."""
    ticks: list[datetime] = []
    with suppress(ValueError):
        while len(ticks) < count and (tick := next_tick(schedule, ticks[-1] if ticks else after)):
            ticks.append(tick)
    return ticks


def upcoming_ticks(job: JobRow, now: datetime, count: int) -> list[datetime]:
    """Return up to `count` of a job's ticks that are still to come; fewer if no more can be computed."""
    schedule, after = schedule_of(job), job.ticked_until
    with suppress(ValueError):
        # The scheduler asks for this tick as well, so it and those after it are usually cached.
        first = next_tick(schedule, after)
        if first and first <= now:
            after = now
    return next_ticks(schedule, after, count)


def due_at(job: JobRow, tick: datetime) -> datetime:
    """Return when a tick is due: the tick plus a share of the job's jitter that all processes agree on.

    It is always before the next tick, so that ticks become due in order.
    """
    if not job.jitter_seconds:
        return tick
    seconds = job.jitter_seconds
    if following := next_tick(schedule_of(job), tick):
        seconds = min(seconds, (following - tick).total_seconds())
    share = int(run_id(job.name, tick).replace("-", "")[-8:], 16) / 2**32
    return tick + timedelta(seconds=seconds) * share


# Cron, on the wall clock --------------------------------------------------------------------------------


def _next_fixed_time(cron: str, zone: ZoneInfo, after: datetime) -> datetime | None:
    """Return the next tick if each wall-clock time counts once."""
    for wall in _wall_times(cron, after.astimezone(zone).replace(tzinfo=None)):
        shown = wall
        while not (moments := _moments(shown, zone)):
            shown += _MINUTE
        # Within a repeated hour, the first occurrence may be in the past.
        if moments[0] > after:
            return moments[0]
    return None


def _next_wall_clock_match(cron: str, zone: ZoneInfo, after: datetime) -> datetime | None:
    """Return the next tick if each moment counts at which the wall clock shows a matching time."""
    local = after.astimezone(zone).replace(tzinfo=None)
    first, second = (_offset(local, zone, fold) for fold in (0, 1))
    # If this time is repeated, so are times a little earlier, whose second occurrence is still to come.
    start = local - max(first - second, _NO_TIME)
    earliest: datetime | None = None
    for wall in _wall_times(cron, start):
        if wall.year > start.year + _MAX_SEARCH_YEARS:
            break
        moments = _moments(wall, zone)
        if later := [moment for moment in moments if moment > after]:
            earliest = min(later[0], earliest or later[0])
        if moments and moments[0] > after:
            break
    return earliest


def _wall_times(cron: str, after: datetime) -> CronSim:
    """Iterate over all matching times after one, without a zone."""
    try:
        return CronSim(cron, after)
    except CronSimError as error:
        raise ValueError(f"is not a cron expression: {str(error).lower()}") from error


def _moments(wall: datetime, zone: ZoneInfo) -> list[datetime]:
    """Return the moments when a clock shows a time: usually one, two if it is repeated, none if skipped."""
    moments = [(wall - _offset(wall, zone, fold)).replace(tzinfo=UTC) for fold in (0, 1)]
    shown = [moment for moment in moments if moment.astimezone(zone).replace(tzinfo=None) == wall]
    return shown[:1] if moments[0] == moments[1] else shown


def _offset(wall: datetime, zone: ZoneInfo, fold: int) -> timedelta:
    offset = wall.replace(tzinfo=zone, fold=fold).utcoffset()
    assert offset is not None
    return offset
