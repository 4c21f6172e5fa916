"""Budget days: when they begin and end, also when clocks change, days move, or the time zone is unknown."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, cast
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st
from msgspec import structs

from eventstore import codec
from eventstore.events import PolicySet
from projections.budgets import BUDGET_DAYS
from service.clock import DatabaseClock
from service.commands import PassTime, RecordUsage, SetPolicy
from service.decide.day import Day, budget_day, budget_day_without_zone
from service.scheduling.timekeeper import watch_time
from tests.support.wait import eventually
from tests.unit.stories import START, Story, given

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.memory.squad import Squad
    from service.writing.writer import Writer

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "Africa/Cairo",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Pacific/Kiritimati",
    "Pacific/Honolulu",
    "Asia/Kathmandu",
    "America/Nuuk",
)
"""Clocks that change at two, at midnight, in the evening, by half an hour, and by a day."""


def noon(day: str, zone: str) -> datetime:
    return datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=ZoneInfo(zone))


def hours(day: Day) -> float:
    return (day.ends_at - day.starts_at) / timedelta(hours=1)


@pytest.mark.parametrize(
    ("day", "zone", "expected"),
    [
        ("2026-03-28", "Europe/Berlin", 24),
        ("2026-03-29", "Europe/Berlin", 23),
        ("2026-10-25", "Europe/Berlin", 25),
        ("2026-03-08", "America/New_York", 23),
        ("2026-11-01", "America/New_York", 25),
        ("2026-10-04", "Australia/Lord_Howe", 23.5),
        ("2026-04-05", "Australia/Lord_Howe", 24.5),
        # The clocks go from 00:00 to 01:00, and from 01:00 back to 00:00.
        ("2026-03-08", "America/Havana", 23),
        ("2026-11-01", "America/Havana", 25),
        # The clocks go from 00:00 to 01:00, and from 24:00 back to 23:00.
        ("2026-04-24", "Africa/Cairo", 23),
        ("2026-10-29", "Africa/Cairo", 25),
    ],
)
def test_day_is_shorter_or_longer_when_the_clocks_change(day: str, zone: str, expected: float) -> None:
    found = budget_day(0, zone, noon(day, zone))
    assert found.name == date.fromisoformat(day)
    assert hours(found) == expected


def test_day_begins_at_the_reset_hour_in_local_time() -> None:
    zone = ZoneInfo("Europe/Berlin")
    for day in ("2026-03-28", "2026-03-29", "2026-07-01", "2026-10-25", "2026-12-31"):
        found = budget_day(6, "Europe/Berlin", noon(day, "Europe/Berlin"))
        assert found.starts_at.astimezone(zone).replace(tzinfo=None) == datetime.fromisoformat(
            f"{day}T06:00"
        )


def test_previous_day_lasts_until_the_reset_hour() -> None:
    now = datetime(2026, 3, 2, 5, 59, tzinfo=UTC)
    assert budget_day(6, "UTC", now).name == date(2026, 3, 1)
    assert budget_day(6, "UTC", now + timedelta(minutes=1)).name == date(2026, 3, 2)


def test_reset_hour_that_the_clocks_skip_is_the_moment_of_the_change() -> None:
    found = budget_day(2, "Europe/Berlin", noon("2026-03-29", "Europe/Berlin"))
    assert found == Day(
        date(2026, 3, 29), datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 3, 30, 0, tzinfo=UTC)
    )


def test_reset_hour_that_comes_twice_counts_the_first_time() -> None:
    found = budget_day(2, "Europe/Berlin", noon("2026-10-25", "Europe/Berlin"))
    assert found.starts_at == datetime(2026, 10, 25, 0, tzinfo=UTC)
    between = datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    assert budget_day(2, "Europe/Berlin", between) == found


@pytest.mark.parametrize("reset_hour", [0, 5, 23])
@pytest.mark.parametrize(
    ("zone", "skipped"),
    [("Pacific/Apia", date(2011, 12, 30)), ("Pacific/Kiritimati", date(1994, 12, 31))],
)
def test_date_that_a_country_skipped_is_no_budget_day(zone: str, skipped: date, reset_hour: int) -> None:
    before = datetime(skipped.year, skipped.month, skipped.day, tzinfo=UTC) - timedelta(days=4)
    days = list(_days_from(budget_day(reset_hour, zone, before), reset_hour, zone, 8))
    assert skipped not in {day.name for day in days}
    assert {hours(day) for day in days} == {24}


@for_all(
    zone=st.sampled_from(ZONES),
    reset_hour=st.integers(0, 23),
    now=st.datetimes(datetime(1990, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_days_follow_one_another_without_gap_or_overlap(zone: str, reset_hour: int, now: datetime) -> None:
    today = budget_day(reset_hour, zone, now)
    assert today.starts_at <= now < today.ends_at
    assert budget_day(reset_hour, zone, today.starts_at) == today
    assert budget_day(reset_hour, zone, today.ends_at - timedelta(microseconds=1)) == today
    for day, following in pairwise(_days_from(today, reset_hour, zone, 4)):
        assert following.starts_at == day.ends_at
        assert following.name > day.name
        assert 22 <= hours(following) <= 26


def _days_from(day: Day, reset_hour: int, zone: str, number: int) -> Iterator[Day]:
    for _ in range(number):
        yield day
        day = budget_day(reset_hour, zone, day.ends_at)


class TestDayWithoutZone:
    """The last day ended at six, so it is not a day in UTC."""

    ENDS_AT = datetime(2026, 3, 3, 6, tzinfo=UTC)
    LAST = Day(date(2026, 3, 2), ENDS_AT - timedelta(hours=25), ENDS_AT)

    def test_last_day_goes_on_until_its_end(self) -> None:
        assert budget_day_without_zone(self.LAST, self.ENDS_AT - timedelta(microseconds=1)) == self.LAST

    @pytest.mark.parametrize("days", [0, 1, 4])
    def test_days_after_the_last_one_have_24_hours(self, days: int) -> None:
        begun = self.ENDS_AT + timedelta(days=days)
        day = Day(date(2026, 3, 3 + days), begun, begun + timedelta(days=1))
        assert budget_day_without_zone(self.LAST, begun) == day
        assert budget_day_without_zone(self.LAST, day.ends_at - timedelta(microseconds=1)) == day

    def test_day_is_in_utc_when_there_is_no_last_one(self) -> None:
        midnight = datetime(2026, 3, 2, tzinfo=UTC)
        assert budget_day_without_zone(None, START) == Day(
            START.date(), midnight, midnight + timedelta(days=1)
        )


class TestUnknownTimezone:
    """As in an imported log, or one written by a process with newer time zone data."""

    @pytest.fixture
    def story(self) -> Story:
        story = given(RecordUsage(agent="ann", tokens=10))
        policy = structs.replace(_policy_of(story), timezone="Mars/Olympus", day=START.date())
        return story.given(policy)

    def test_commands_are_accepted_and_the_day_goes_on_to_its_end(self, story: Story) -> None:
        today = story.squad.day
        story.when(RecordUsage(agent="ann", tokens=1), at=12 * 3600 - 1)
        assert "budget_day_reset" not in [recorded.type for recorded in story.recorded]
        assert story.outcome.refusal is None
        assert today
        assert story.squad.day
        assert (story.squad.day.ends_at, story.squad.day.used) == (today.ends_at, 11)

    def test_following_days_have_24_hours(self, story: Story) -> None:
        for days in (1, 2, 5):
            story.when(RecordUsage(agent="ann", tokens=1), at=days * 24 * 3600)
            assert story.outcome.refusal is None
            today = story.squad.day
            assert today
            assert today.day == START.date() + timedelta(days=days)
            assert today.starts_at == datetime(2026, 3, 2 + days, tzinfo=UTC)
            assert (today.used, today.ends_at - today.starts_at) == (1, timedelta(days=1))

    def test_policy_can_be_replaced(self, story: Story) -> None:
        story.when(SetPolicy(reset_hour=6)).when(SetPolicy(timezone="Europe/Berlin"))
        assert story.outcome.refusal is None
        assert story.squad.day
        assert story.squad.day.ends_at == datetime(2026, 3, 3, 5, tzinfo=UTC)

    def test_squad_without_a_day_gets_one_in_utc(self) -> None:
        policy = structs.replace(_policy_of(given()), timezone="Mars/Olympus", day=None)
        story = Story().given(policy).when(RecordUsage(agent="ann", tokens=1))
        assert story.outcome.refusal is None
        assert story.squad.day
        assert story.squad.day.day == START.date()

    async def test_unknown_timezone_is_logged_once(
        self, story: Story, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.scheduling.timekeeper.CLOCK_STEP", timedelta(0))
        reads = 0

        class StubWriter:
            ready = True

            @property
            def squad(self) -> Squad:
                nonlocal reads
                reads += 1
                return story.squad

        watching = asyncio.create_task(watch_time(cast("Writer", StubWriter()), _StoppedClock()))
        await eventually(lambda: reads > 10)
        watching.cancel()
        messages = [record.getMessage() for record in caplog.records]
        assert messages == [
            "budget days last 24 hours until this is fixed: the time zone 'Mars/Olympus' is not known here"
        ]


class _StoppedClock(DatabaseClock):
    def now(self) -> datetime:
        return START


def _policy_of(story: Story) -> PolicySet:
    return next(event for event in map(codec.decode, story.log) if isinstance(event, PolicySet))


@for_all(
    moves=st.lists(
        st.tuples(st.integers(0, 40 * 3600), st.sampled_from(ZONES), st.integers(0, 23)), max_size=8
    )
)
def test_squad_never_returns_to_a_past_day_however_the_day_is_moved(
    moves: list[tuple[int, str, int]],
) -> None:
    story = given()
    past, last = set[date](), START.date()
    for seconds, zone, reset_hour in moves:
        story.when(PassTime(), at=story.now + timedelta(seconds=seconds))
        story.when(SetPolicy(timezone=zone, reset_hour=reset_hour))
        story.when(RecordUsage(agent="ann", tokens=1))
        open_days = [day for day in story.squad.all(BUDGET_DAYS) if day.closed_at is None]
        assert len(open_days) == 1
        today = open_days[0]
        assert today.starts_at <= story.now < today.ends_at
        assert today.used > 0
        assert today.day not in past
        if today.day != last:
            past.add(last)
            last = today.day
