"""For any expression, zone and moment, the next tick is the one that a naive simulation finds.

The simulation interprets cron fields in the simplest way, and checks the wall clock at every minute.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

from hypothesis import example
from hypothesis import given as for_all
from hypothesis import strategies as st

from projections.runs import run_id
from service.schedule import Schedule, due_at, next_tick, next_ticks
from tests.support.randomized import examples
from tests.unit.job_stories import job_row

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SIMULATED = timedelta(days=2)

CLOCK_CHANGES = {
    "Europe/Berlin": ("2026-03-29T01:00", "2026-10-25T01:00"),
    "America/New_York": ("2026-03-08T07:00", "2026-11-01T06:00"),
    "Australia/Lord_Howe": ("2026-04-04T15:00", "2026-10-03T15:30"),
    "America/Havana": ("2026-03-08T05:00", "2026-11-01T05:00"),
    "Africa/Cairo": ("2026-04-23T22:00", "2026-10-29T21:00"),
    "Africa/Johannesburg": ("2026-02-28T22:00",),
    # A whole day, the 30th, was skipped when Samoa crossed the date line.
    "Pacific/Apia": ("2011-12-30T10:00",),
    "UTC": ("2027-12-31T23:59",),
}
"""Moments around which something may go wrong, in UTC."""


class Question(NamedTuple):
    """A schedule, and the moment after which its next tick is wanted."""

    schedule: Schedule
    after: datetime


def around(zone: str, change: str, cron: str, seconds: float) -> Question:
    after = datetime.fromisoformat(change).replace(tzinfo=UTC) + timedelta(seconds=seconds)
    return Question(Schedule(cron, None, zone), after)


minutes = st.sampled_from(("*", "*/15", "0", "15", "30", "45", "59", "0,30", "10-50/20", "*/40"))
hours = st.sampled_from(("*", "*/2", "0", "1", "2", "3", "23", "0-3", "1,2", "22,23,0", "2-23/7"))
days = st.sampled_from(("*", "*", "*", "1", "29", "30-31", "*/2", "4-8,25"))
weekdays = st.sampled_from(("*", "*", "*", "0", "7", "1-5", "*/3", "6,0"))
crons = st.tuples(minutes, hours, days, st.sampled_from(("*", "*", "2-11", "3,4,10,11")), weekdays).map(
    " ".join
)
questions = st.sampled_from(
    [(zone, change) for zone, changes in CLOCK_CHANGES.items() for change in changes]
).flatmap(
    lambda place: st.builds(
        around,
        st.just(place[0]),
        st.just(place[1]),
        crons,
        st.integers(-96, 96).map(lambda quarters: quarters * 900) | st.floats(-100_000, 100_000),
    )
)


@cache
def expand(field: str, lowest: int, highest: int) -> frozenset[int]:
    """The numbers that a field names."""
    numbers: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        low, _, high = span.partition("-")
        first = lowest if low == "*" else int(low)
        last = highest if low == "*" else int(high or low)
        numbers.update(range(first, last + 1, int(step or 1)))
    return frozenset(numbers)


def matches(cron: str, wall: datetime) -> bool:
    """Whether an expression includes a time of the wall clock."""
    minute, hour, day, month, weekday = cron.split()
    by_day = wall.day in expand(day, 1, 31)
    by_weekday = wall.isoweekday() % 7 in {number % 7 for number in expand(weekday, 0, 7)}
    either = not (day.startswith("*") or weekday.startswith("*"))
    return (
        wall.minute in expand(minute, 0, 59)
        and wall.hour in expand(hour, 0, 23)
        and wall.month in expand(month, 1, 12)
        and ((by_day or by_weekday) if either else (by_day and by_weekday))
    )


def simulate(question: Question) -> datetime | None:
    """The next tick within `SIMULATED`, found by checking the clock at every minute."""
    schedule, after = question
    assert schedule.cron
    zone, cron = ZoneInfo(schedule.timezone), schedule.cron
    follows_the_clock = any(field.startswith("*") for field in cron.split()[:2])
    moment = after.replace(second=0, microsecond=0)
    before = moment.astimezone(zone)
    while moment <= after + SIMULATED:
        moment += MINUTE
        now = moment.astimezone(zone)
        skipped_time = now.replace(tzinfo=None) - before.replace(tzinfo=None) - MINUTE
        if follows_the_clock:
            ticks = matches(cron, now)
        else:
            skipped = (now - MINUTE * back for back in range(1, skipped_time // MINUTE + 1))
            ticks = (now.fold == 0 and matches(cron, now)) or any(matches(cron, time) for time in skipped)
        if ticks:
            return moment
        before = now
    return None


@examples(100)
@for_all(question=questions)
@example(around("Pacific/Apia", "2011-12-30T10:00", "30 12 30 * *", -3_600))
@example(around("Australia/Lord_Howe", "2026-04-04T15:00", "30 * * * *", -900))
@example(around("Africa/Cairo", "2026-10-29T21:00", "59 23 29 * *", 1_800))
def test_next_tick_is_the_one_that_the_simulation_finds(question: Question) -> None:
    found, expected = next_tick(*question), simulate(question)
    if expected:
        assert found == expected
    else:
        assert found is None or found > question.after + SIMULATED


@examples(50)
@for_all(question=questions)
def test_ticks_are_whole_minutes_in_strictly_ascending_order(question: Question) -> None:
    ticks = next_ticks(question.schedule, question.after, 20)
    assert all(earlier < later for earlier, later in pairwise([question.after, *ticks]))
    assert all(tick.second == tick.microsecond == 0 for tick in ticks)


@examples(100)
@for_all(question=questions, share=st.floats(0, 1, exclude_max=True))
def test_next_tick_is_the_same_from_any_moment_before_it(question: Question, share: float) -> None:
    tick = next_tick(*question)
    if tick:
        between = min(question.after + (tick - question.after) * share, tick - timedelta.resolution)
        assert next_tick(question.schedule, between) == tick


moments = st.timedeltas(timedelta(days=20 * 365), timedelta(days=130 * 365)).map(
    lambda since: EPOCH + since
)


@for_all(seconds=st.floats(0.1, 366 * 86_400), after=moments)
def test_interval_ticks_at_a_multiple_of_itself_within_one_interval(
    seconds: float, after: datetime
) -> None:
    schedule, step = Schedule(None, seconds, "UTC"), timedelta(seconds=seconds)
    tick = next_tick(schedule, after)
    assert tick
    assert after < tick <= after + step
    assert (tick - EPOCH) % step == timedelta(0)


@for_all(
    cron=st.sampled_from(("* * * * *", "*/5 * * * *", "0 * * * *", "0 0 29 2 *")),
    jitter_seconds=st.sampled_from((0.0, 0.5, 10.0, 90.0, 86_400.0)),
    after=moments,
)
def test_jitter_is_bounded_and_reproducible_and_keeps_the_order_of_ticks(
    cron: str, jitter_seconds: float, after: datetime
) -> None:
    job = job_row(cron=cron, jitter_seconds=jitter_seconds)
    ticks = next_ticks(Schedule(cron, None, "UTC"), after, 5)
    starts = [due_at(job, tick) for tick in ticks]
    for tick, start in zip(ticks, starts, strict=True):
        assert tick <= start <= tick + timedelta(seconds=jitter_seconds)
        assert start == due_at(job_row(cron=cron, jitter_seconds=jitter_seconds), tick)
    assert all(start <= tick for start, tick in zip(starts, ticks[1:], strict=False))


def test_jitter_spreads_the_jobs_of_one_tick() -> None:
    tick = datetime(2026, 3, 1, 12, tzinfo=UTC)
    starts = [due_at(job_row(name=f"job {n}", jitter_seconds=30.0), tick) for n in range(100)]
    assert len(set(starts)) == 100
    assert min(starts) < tick + timedelta(seconds=10)
    assert max(starts) > tick + timedelta(seconds=20)


@for_all(job=st.text(min_size=1, max_size=100), tick=moments)
def test_run_id_is_a_uuid7_determined_by_the_job_and_the_tick(job: str, tick: datetime) -> None:
    id_ = run_id(job, tick)
    assert id_ == run_id(job, tick.astimezone(ZoneInfo("Asia/Kathmandu")))
    assert id_ not in (run_id(f"{job}x", tick), run_id(job, tick + timedelta.resolution))
    assert id_[14] == "7"
    assert id_[19] in "89ab"
    milliseconds = int(id_.replace("-", "")[:12], 16)
    assert abs(milliseconds - tick.timestamp() * 1000) < 1.001
