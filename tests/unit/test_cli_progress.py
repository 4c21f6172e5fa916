"""Progress of long reads of the log, on a terminal and without one."""

from __future__ import annotations

import pytest

from service.cli import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times that the clock has shown; append the next one."""
    times = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: times[-1])
    return times


class TestWithoutATerminal:
    def test_line_with_speed_and_time_left_is_printed_every_few_seconds(
        self, clock: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with progress.show("replaying") as report:
            for second in range(1, 6):
                clock.append(100.0 + second)
                report(second * 1_000, 9_000)
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.splitlines() == [
            "replaying: 2,000 of 9,000 events, 1,000 events/s, 7 s left",
            "replaying: 4,000 of 9,000 events, 1,000 events/s, 5 s left",
        ]

    def test_line_has_no_time_left_when_the_end_is_unknown(
        self, clock: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with progress.show("importing") as report:
            clock.append(104.0)
            report(2_000, None)
        assert capsys.readouterr().err == "importing: 2,000 events, 500 events/s\n"

    def test_end_moves_with_a_log_that_grows(
        self, clock: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with progress.show("exporting") as report:
            clock.append(104.0)
            report(4_010, 4_000)
        shown = capsys.readouterr().err
        assert shown == "exporting: 4,010 of 4,010 events, 1,002 events/s, 0 s left\n"

    def test_quiet_prints_nothing(self, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
        with progress.show("verifying", quiet=True) as report:
            clock.append(104.0)
            report(2_000, 9_000)
        assert capsys.readouterr().err == ""

    def test_short_work_prints_nothing(
        self, clock: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with progress.show("replaying") as report:
            clock.append(100.5)
            report(10, 10)
        assert capsys.readouterr().err == ""


class TestOnATerminal:
    @pytest.fixture(autouse=True)
    def _terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setenv("TERM", "xterm")

    def test_bar_shows_the_task_the_count_and_the_speed(self, capsys: pytest.CaptureFixture[str]) -> None:
        with progress.show("replaying") as report:
            report(1_000, 9_000)
            report(9_000, 8_990)
        printed = capsys.readouterr()
        assert printed.out == ""
        for part in ("replaying", "9,000 of 9,000 events", "events/s"):
            assert part in printed.err

    def test_bar_shows_the_count_when_the_end_is_unknown(self, capsys: pytest.CaptureFixture[str]) -> None:
        with progress.show("importing") as report:
            report(1_000, None)
            report(9_000, None)
        assert "9,000 events" in capsys.readouterr().err

    def test_cursor_is_shown_again_when_the_work_fails(self, capsys: pytest.CaptureFixture[str]) -> None:
        def work() -> None:
            with progress.show("replaying") as report:
                report(1_000, 9_000)
                raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            work()
        assert "\x1b[?25h" in capsys.readouterr().err
