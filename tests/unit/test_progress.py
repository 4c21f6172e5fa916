"""How far a long reading of the log is, for a person and for a file."""

from __future__ import annotations

import pytest

from service.cli import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that passes, one moment a look."""
    moments = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: moments[-1])
    return moments


class TestWithoutATerminal:
    def test_there_is_a_line_every_few_seconds_with_speed_and_time_left(
        self, clock: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with progress.shown("replaying") as tell:
            for second in range(1, 6):
                clock.append(100.0 + second)
                tell(second * 1_000, 9_000)
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.splitlines() == [
            "replaying: 2,000 of 9,000 events, 1,000 events/s, 7 s left",
            "replaying: 4,000 of 9,000 events, 1,000 events/s, 5 s left",
        ]

    def test_what_is_done_at_once_is_not_talked_about(
        self, clock: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with progress.shown("replaying") as tell:
            clock.append(100.5)
            tell(10, 10)
        assert capsys.readouterr().err == ""


class TestOnATerminal:
    @pytest.fixture(autouse=True)
    def _terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setenv("TERM", "xterm")

    def test_there_is_a_bar_with_how_much_how_fast_and_how_long(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with progress.shown("replaying") as tell:
            tell(1_000, 9_000)
            tell(9_000, 9_000)
        printed = capsys.readouterr()
        assert printed.out == ""
        for part in ("replaying", "9,000 of 9,000 events", "events/s"):
            assert part in printed.err

    def test_the_cursor_comes_back_where_the_work_fails(self, capsys: pytest.CaptureFixture[str]) -> None:
        def work() -> None:
            with progress.shown("replaying") as tell:
                tell(1_000, 9_000)
                raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            work()
        assert "\x1b[?25h" in capsys.readouterr().err
