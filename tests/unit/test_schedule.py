"""When jobs tick. Expected times are in UTC and were computed by hand.

The clock changes of 2026 (tz database), with the offsets from UTC before and after:

    Europe/Berlin        29 March    02:00 -> 03:00  (+1 -> +2)       at 01:00 UTC
                         25 October  03:00 -> 02:00  (+2 -> +1)       at 01:00 UTC
    America/New_York      8 March    02:00 -> 03:00  (-5 -> -4)       at 07:00 UTC
                          1 November 02:00 -> 01:00  (-4 -> -5)       at 06:00 UTC
    Australia/Lord_Howe   5 April    02:00 -> 01:30  (+11 -> +10:30)  at 15:00 UTC on the 4th
                          4 October  02:00 -> 02:30  (+10:30 -> +11)  at 15:30 UTC on the 3rd
    America/Havana        8 March    00:00 -> 01:00  (-5 -> -4)       at 05:00 UTC
                          1 November 01:00 -> 00:00  (-4 -> -5)       at 05:00 UTC
    Africa/Cairo         24 April    00:00 -> 01:00  (+2 -> +3)       at 22:00 UTC on the 23rd
                         29 October  24:00 -> 23:00  (+3 -> +2)       at 21:00 UTC
    Africa/Johannesburg  none        always +2
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import pytest

from service import schedule
from service.schedule import Schedule, next_tick, next_ticks

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ticks(cron: str, zone: str, after: str, count: int) -> list[str]:
    """The next ticks, as text without the year."""
    found = next_ticks(Schedule(cron, None, zone), utc(after), count)
    return [f"{tick:%m-%d %H:%M}" for tick in found]


class Case(NamedTuple):
    """When a job ticks around a clock change."""

    zone: str
    cron: str
    after: str
    expected: str


class TestFixedTime:
    @pytest.mark.parametrize(
        "case",
        [
            # 02:30 is 01:30Z the day before and 00:30Z the day after; on the day, the change is at 01:00Z.
            Case(
                "Europe/Berlin", "30 2 * * *", "2026-03-27T12:00", "03-28 01:30, 03-29 01:00, 03-30 00:30"
            ),
            Case(
                "America/New_York",
                "30 2 * * *",
                "2026-03-06T12:00",
                "03-07 07:30, 03-08 07:00, 03-09 06:30",
            ),
            # 02:15 is 15:45Z of the day before at +10:30, and 15:15Z at +11; the change is at 15:30Z.
            Case(
                "Australia/Lord_Howe",
                "15 2 * * *",
                "2026-10-01T16:00",
                "10-02 15:45, 10-03 15:30, 10-04 15:15",
            ),
            # 00:30 is 05:30Z at -5 and 04:30Z at -4.
            Case(
                "America/Havana", "30 0 * * *", "2026-03-06T12:00", "03-07 05:30, 03-08 05:00, 03-09 04:30"
            ),
            # 00:30 is 22:30Z of the day before at +2, and 21:30Z at +3.
            Case("Africa/Cairo", "30 0 * * *", "2026-04-21T23:00", "04-22 22:30, 04-23 22:00, 04-24 21:30"),
            # The clocks never change: 02:30 is 00:30Z.
            Case(
                "Africa/Johannesburg",
                "30 2 * * *",
                "2026-03-27T12:00",
                "03-28 00:30, 03-29 00:30, 03-30 00:30",
            ),
        ],
        ids=lambda case: case.zone,
    )
    def test_job_at_a_skipped_time_ticks_once_at_the_clock_change(self, case: Case) -> None:
        assert ", ".join(ticks(case.cron, case.zone, case.after, 3)) == case.expected

    @pytest.mark.parametrize(
        "case",
        [
            # The first 02:30 of the day is at +2, 00:30Z; the next day has +1.
            Case(
                "Europe/Berlin", "30 2 * * *", "2026-10-23T12:00", "10-24 00:30, 10-25 00:30, 10-26 01:30"
            ),
            # 01:30 is repeated: first at -4, 05:30Z, then at -5.
            Case(
                "America/New_York",
                "30 1 * * *",
                "2026-10-30T12:00",
                "10-31 05:30, 11-01 05:30, 11-02 06:30",
            ),
            # 01:45 is first at +11, 14:45Z of the day before, then at +10:30.
            Case(
                "Australia/Lord_Howe",
                "45 1 * * *",
                "2026-04-02T16:00",
                "04-03 14:45, 04-04 14:45, 04-05 15:15",
            ),
            Case(
                "America/Havana", "30 0 * * *", "2026-10-30T12:00", "10-31 04:30, 11-01 04:30, 11-02 05:30"
            ),
            # 23:30 is repeated on the 29th: first at +3, 20:30Z, then at +2.
            Case(
                "Africa/Cairo", "30 23 * * *", "2026-10-28T12:00", "10-28 20:30, 10-29 20:30, 10-30 21:30"
            ),
        ],
        ids=lambda case: case.zone,
    )
    def test_job_at_a_repeated_time_ticks_the_first_time(self, case: Case) -> None:
        assert ", ".join(ticks(case.cron, case.zone, case.after, 3)) == case.expected

    @pytest.mark.parametrize("minutes", range(0, 121, 10))
    def test_job_does_not_tick_again_within_the_repeated_hour(self, minutes: int) -> None:
        """In Berlin, the first 02:30 is at 00:30Z, and the second at 01:30Z."""
        after = utc("2026-10-25T00:30") + timedelta(minutes=minutes)
        assert next_tick(Schedule("30 2 * * *", None, "Europe/Berlin"), after) == utc("2026-10-26T01:30")

    @pytest.mark.parametrize("after", ["2026-03-29T00:00", "2026-03-29T00:59:59.999999"])
    def test_job_at_a_skipped_time_ticks_at_a_clock_change_that_is_imminent(self, after: str) -> None:
        schedule = Schedule("30 2 * * *", None, "Europe/Berlin")
        assert next_tick(schedule, utc(after)) == utc("2026-03-29T01:00")
        assert next_tick(schedule, utc("2026-03-29T01:00")) == utc("2026-03-30T00:30")

    def test_job_ticks_once_for_several_skipped_times(self) -> None:
        """02:00 and 02:30 move to the clock change, which is also 03:00: one moment, one tick."""
        assert ticks("0,30 2,3 * * *", "Europe/Berlin", "2026-03-28T12:00", 3) == [
            "03-29 01:00",
            "03-29 01:30",
            "03-30 00:00",
        ]


class TestHourlyAndMinutely:
    @pytest.mark.parametrize(
        "case",
        [
            Case("Europe/Berlin", "30 * * * *", "2026-03-28T23:59", "00:30, 01:30, 02:30"),
            Case("Europe/Berlin", "30 * * * *", "2026-10-24T23:59", "00:30, 01:30, 02:30"),
            Case("America/New_York", "0 * * * *", "2026-11-01T04:59", "05:00, 06:00, 07:00"),
            Case("America/Havana", "0 * * * *", "2026-11-01T03:59", "04:00, 05:00, 06:00"),
            Case("Africa/Cairo", "0 * * * *", "2026-10-29T19:59", "20:00, 21:00, 22:00"),
            Case("Europe/Berlin", "*/15 * * * *", "2026-03-29T00:40", "00:45, 01:00, 01:15"),
            Case("Europe/Berlin", "*/15 * * * *", "2026-10-25T00:40", "00:45, 01:00, 01:15"),
            Case("Africa/Johannesburg", "*/15 * * * *", "2026-10-25T00:40", "00:45, 01:00, 01:15"),
        ],
        ids=lambda case: f"{case.zone} {case.cron} {case.after}",
    )
    def test_job_ticks_in_even_steps_across_a_clock_change(self, case: Case) -> None:
        found = ticks(case.cron, case.zone, case.after, 3)
        assert ", ".join(tick[-5:] for tick in found) == case.expected

    def test_hourly_job_ticks_again_when_half_an_hour_is_repeated(self) -> None:
        """01:30 is at 14:30Z and again at 15:00Z; 02:30 is at 16:00Z."""
        found = ticks("30 * * * *", "Australia/Lord_Howe", "2026-04-04T14:00", 3)
        assert found == ["04-04 14:30", "04-04 15:00", "04-04 16:00"]

    def test_hourly_job_does_not_tick_in_a_skipped_half_hour(self) -> None:
        """01:00 is at 14:30Z, 02:00 is skipped, 03:00 is at 16:00Z."""
        found = ticks("0 * * * *", "Australia/Lord_Howe", "2026-10-03T14:00", 3)
        assert found == ["10-03 14:30", "10-03 16:00", "10-03 17:00"]

    @pytest.mark.parametrize("minute", range(0, 60, 7))
    def test_next_tick_is_right_from_any_moment_of_the_repeated_half_hour(self, minute: int) -> None:
        """Until 15:00Z, the clocks of Lord Howe show 01:30 to 02:00 for the first time."""
        after = utc("2026-04-04T14:00") + timedelta(minutes=minute)
        expected = "2026-04-04T14:30" if minute < 30 else "2026-04-04T15:00"
        assert next_tick(Schedule("30 * * * *", None, "Australia/Lord_Howe"), after) == utc(expected)

    def test_job_of_one_hour_does_not_tick_when_that_hour_is_skipped(self) -> None:
        assert ticks("*/30 2 * * *", "Europe/Berlin", "2026-03-29T00:00", 1) == ["03-30 00:00"]

    def test_job_of_one_hour_ticks_in_both_when_that_hour_is_repeated(self) -> None:
        found = ticks("*/30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 5)
        assert found == ["10-25 00:00", "10-25 00:30", "10-25 01:00", "10-25 01:30", "10-26 01:00"]


class TestDays:
    @pytest.mark.parametrize(
        ("cron", "expected"),
        [
            # March 2026 begins on a Sunday, as February did: Fridays are the 6th, 13th, 20th and 27th.
            ("0 0 13 * FRI", "03-06, 03-13, 03-20, 03-27, 04-03"),
            ("0 0 1,15 * mon", "03-02, 03-09, 03-15, 03-16, 03-23"),
            # If one of the two begins with a star, both must hold: odd days that are Fridays.
            ("0 0 */2 * FRI", "03-13, 03-27, 04-03, 04-17, 05-01"),
            ("0 0 13 * *", "03-13, 04-13, 05-13, 06-13, 07-13"),
            ("0 0 * * FRI", "03-06, 03-13, 03-20, 03-27, 04-03"),
            ("0 0 * * MON-FRI", "03-02, 03-03, 03-04, 03-05, 03-06"),
            ("0 0 * * 0", "03-08, 03-15, 03-22, 03-29, 04-05"),
            ("0 0 * * 7", "03-08, 03-15, 03-22, 03-29, 04-05"),
            ("0 0 * * 6-7", "03-07, 03-08, 03-14, 03-15, 03-21"),
            ("0 0 1 jan,JUL *", "07-01, 01-01, 07-01, 01-01, 07-01"),
            ("0 0 1 6-12/3 *", "06-01, 09-01, 12-01, 06-01, 09-01"),
            ("0 0 10-20/5 * *", "03-10, 03-15, 03-20, 04-10, 04-15"),
            ("0 0 25/5 * *", "03-25, 03-30, 04-25, 04-30, 05-25"),
            ("0 0 31 * *", "03-31, 05-31, 07-31, 08-31, 10-31"),
            ("0 0 L * *", "03-31, 04-30, 05-31, 06-30, 07-31"),
            ("0 0 L 2 *", "02-28, 02-29, 02-28, 02-28, 02-28"),
            ("0 0 31 12 *", "12-31, 12-31, 12-31, 12-31, 12-31"),
        ],
    )
    def test_days_of_an_expression_are_found(self, cron: str, expected: str) -> None:
        found = ticks(cron, "UTC", "2026-03-01T12:00", 5)
        assert ", ".join(tick[:5] for tick in found) == expected

    def test_29_february_comes_every_four_years(self) -> None:
        found = next_ticks(Schedule("0 12 29 2 *", None, "Africa/Johannesburg"), utc("2026-01-01T00:00"), 3)
        assert found == [utc("2028-02-29T10:00"), utc("2032-02-29T10:00"), utc("2036-02-29T10:00")]

    def test_29_february_does_not_come_in_2100(self) -> None:
        schedule = Schedule("0 0 29 2 *", None, "UTC")
        assert next_tick(schedule, utc("2096-03-01T00:00")) == utc("2104-02-29T00:00")

    def test_days_begin_at_midnight_of_the_jobs_time_zone(self) -> None:
        """In Lord Howe, at +11, the first of the month begins at 13:00Z of the day before."""
        assert ticks("0 0 1 * *", "Australia/Lord_Howe", "2026-01-10T00:00", 2) == [
            "01-31 13:00",
            "02-28 13:00",
        ]

    def test_ticks_continue_into_the_next_year(self) -> None:
        assert ticks("59 23 * * *", "UTC", "2026-12-31T23:58:30", 2) == ["12-31 23:59", "01-01 23:59"]
        assert next_tick(Schedule("* * * * *", None, "UTC"), utc("2026-12-31T23:59:00")) == utc(
            "2027-01-01T00:00"
        )


class TestTimes:
    @pytest.mark.parametrize(
        ("cron", "expected"),
        [
            ("*/20 * * * *", "12:20, 12:40, 13:00, 13:20"),
            ("5-59/20 * * * *", "12:05, 12:25, 12:45, 13:05"),
            ("0 9-17/4 * * *", "13:00, 17:00, 09:00, 13:00"),
            ("0,30 12 * * *", "12:30, 12:00, 12:30, 12:00"),
        ],
    )
    def test_times_of_an_expression_are_found(self, cron: str, expected: str) -> None:
        assert ", ".join(tick[6:] for tick in ticks(cron, "UTC", "2026-03-01T12:00", 4)) == expected

    def test_next_tick_is_never_the_moment_itself(self) -> None:
        noon, schedule = utc("2026-03-01T12:00"), Schedule("0 12 * * *", None, "UTC")
        assert next_tick(schedule, noon - timedelta.resolution) == noon
        assert next_tick(schedule, noon) == noon + timedelta(days=1)
        assert next_tick(schedule, noon + timedelta.resolution) == noon + timedelta(days=1)


class TestInvalidAndEmptySchedules:
    @pytest.mark.parametrize(
        "cron",
        [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * 32 * *",
            "* * * 13 *",
            "* * * * 8",
            "*/0 * * * *",
            "5-1 * * * *",
            "a * * * *",
            "* * * foo *",
            "-1 * * * *",
            "1, * * * *",
            "0 0 31 4 *",
            "@daily",
        ],
    )
    def test_invalid_expression_is_rejected(self, cron: str) -> None:
        with pytest.raises(ValueError, match=r"must have five fields|is not a cron expression"):
            next_tick(Schedule(cron, None, "UTC"), utc("2026-03-01T00:00"))

    def test_day_that_never_comes_has_no_tick(self) -> None:
        assert next_tick(Schedule("0 0 */31 2 MON#5", None, "UTC"), utc("2026-03-01T00:00")) is None
        assert next_ticks(Schedule("0 0 */31 2 MON#5", None, "UTC"), utc("2026-03-01T00:00"), 5) == []

    def test_search_for_a_time_that_is_always_skipped_ends_after_50_years(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When 29 March is a Sunday, the clocks of Berlin skip from 02:00 to 03:00 on that day."""
        checked_at: list[int] = []
        moments = schedule._moments

        def counted(wall: datetime, zone: ZoneInfo) -> list[datetime]:
            checked_at.append(wall.year)
            return moments(wall, zone)

        monkeypatch.setattr(schedule, "_moments", counted)
        always_skipped = Schedule("*/5 2 29 3 */7", None, "Europe/Berlin")
        assert next_tick(always_skipped, utc("2026-03-01T00:00")) is None
        assert checked_at
        assert max(checked_at) <= 2026 + 50


class TestInterval:
    @pytest.mark.parametrize(
        ("seconds", "after", "expected"),
        [
            # 1970 began at midnight, so an interval that divides a day ticks at midnight.
            (3_600, "2026-03-01T12:00:00", "2026-03-01T13:00:00"),
            (3_600, "2026-03-01T12:34:56.789", "2026-03-01T13:00:00"),
            (2, "2026-03-01T12:00:01", "2026-03-01T12:00:02"),
            (0.5, "2026-03-01T12:00:00.2", "2026-03-01T12:00:00.5"),
            # This noon is 20,513 days and 43,200 seconds after 1970 began: 1,772,366,400 = 7 * 253,195,200.
            (7, "2026-03-01T11:59:59", "2026-03-01T12:00:00"),
            (7, "2026-03-01T12:00:00", "2026-03-01T12:00:07"),
            (86_400, "2026-03-29T00:30:00", "2026-03-30T00:00:00"),
        ],
    )
    def test_interval_ticks_at_its_multiples_since_1970(
        self, seconds: float, after: str, expected: str
    ) -> None:
        assert next_tick(Schedule(None, seconds, "Europe/Berlin"), utc(after)) == utc(expected)
