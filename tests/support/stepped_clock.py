"""`squad` with wrong clocks: `python tests/support/stepped_clock.py up ...`.

At first its wall clock is an hour ahead. SIGUSR1 sets it back by two hours, which overcorrects it. SIGUSR2
makes the monotonic clock jump ahead by an hour, so that the process's estimate of the database's clock is
an hour ahead as well.
"""

from __future__ import annotations

import datetime
import signal
import sys
import time
from pathlib import Path

HOUR_SECONDS = 3_600.0

PROGRAM = (sys.executable, str(Path(__file__).resolve()))
"""The script to run in place of `squad`."""

_ahead = {"wall": HOUR_SECONDS, "monotonic": 0.0}
_time, _time_ns, _monotonic = time.time, time.time_ns, time.monotonic


class _Stepped(datetime.datetime):
    """The `datetime` of the only module that reads the wall clock."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
        """The wrong time."""
        return datetime.datetime.now(tz) + datetime.timedelta(seconds=_ahead["wall"])


def _step(clock: str, seconds: float) -> None:
    _ahead[clock] += seconds


def main() -> None:
    """Run the command line with these clocks, which are installed before the service is loaded."""
    time.time = lambda: _time() + _ahead["wall"]
    time.time_ns = lambda: _time_ns() + int(_ahead["wall"] * 1e9)
    time.monotonic = lambda: _monotonic() + _ahead["monotonic"]
    signal.signal(signal.SIGUSR1, lambda *_: _step("wall", -2 * HOUR_SECONDS))
    signal.signal(signal.SIGUSR2, lambda *_: _step("monotonic", HOUR_SECONDS))

    from service import clock

    clock.datetime = _Stepped  # type: ignore[attr-defined]
    from service.cli import main as squad

    squad()


if __name__ == "__main__":
    main()
