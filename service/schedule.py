"""When a job ticks. Pure: a schedule and a moment in, the next tick out.

Cron has five fields, with names, ranges and steps, in a time zone. Where clocks change it does as Debian's
cron does: a job at a time that the day skips runs at the shift, one at a time that the day shows twice runs
the first time, and one that runs by the hour or the minute simply goes on.

An interval ticks at whole multiples of itself since 1970, so that all processes mean the same moments.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from projections.jobs import run_id

if TYPE_CHECKING:
    from projections.jobs import JobRow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIELDS = 5


class Schedule(NamedTuple):
    """Either `cron` with its `timezone`, or `every_seconds`."""

    cron: str | None
    every_seconds: float | None
    timezone: str


def schedule_of(job: JobRow) -> Schedule:
    """A job's schedule."""
    return Schedule(job.cron, job.every_seconds, job.timezone)


@lru_cache(maxsize=10_000)
def next_tick(schedule: Schedule, after: datetime) -> datetime | None:
    """The first tick after a moment, in UTC; None where there is none any more.

    Raises:
        ValueError: the schedule makes no sense.
    """
    if schedule.every_seconds is not None:
        step = timedelta(seconds=schedule.every_seconds)
        return _EPOCH + ((after - _EPOCH) // step + 1) * step
    ticks = cron_ticks(schedule.cron or "", schedule.timezone, after)
    try:
        # From within the hour that is shown twice, the first answer may lie before the question.
        return next(tick for tick in ticks if tick > after)
    except StopIteration:
        return None


def cron_ticks(cron: str, timezone: str, after: datetime) -> map[datetime]:
    """All ticks around and after a moment, in UTC.

    Raises:
        ValueError: the expression or the time zone makes no sense.
    """
    if len(cron.split()) != _FIELDS:
        raise ValueError("cron must have five fields: minute, hour, day of month, month, day of week")
    try:
        ticks = CronSim(cron, after.astimezone(ZoneInfo(timezone)))
    except CronSimError as error:
        raise ValueError(f"cron is not valid: {str(error).lower()}") from error
    return map(_utc, ticks)


def next_ticks(schedule: Schedule, after: datetime, count: int) -> list[datetime]:
    """The next few ticks."""
    ticks: list[datetime] = []
    while len(ticks) < count and (tick := next_tick(schedule, ticks[-1] if ticks else after)):
        ticks.append(tick)
    return ticks


def due_at(job: JobRow, tick: datetime) -> datetime:
    """When a tick is to start: the tick, and a share of the job's jitter that is the same for everybody."""
    if not job.jitter_seconds:
        return tick
    share = int(run_id(job.name, tick).replace("-", "")[-8:], 16) / 0xFFFF_FFFF
    return tick + timedelta(seconds=job.jitter_seconds * share)


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)
