"""The database's clock, carried by this process: the only clock that decisions know.

Every round trip bounds the difference between the database's clock and our monotonic one: the database read
its clock after we asked and before we heard. The estimate moves only when it leaves those bounds, so it is
steady, and processes agree to about the time of a round trip, whatever their own wall clocks say.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import monotonic

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class DatabaseClock:
    """Tells the database's time between round trips. Until the first one it tells the system's."""

    def __init__(self) -> None:
        self._offset_seconds = (datetime.now(UTC) - _EPOCH).total_seconds() - monotonic()

    def now(self) -> datetime:
        """The database's clock, as far as we know, in UTC."""
        return _EPOCH + timedelta(seconds=monotonic() + self._offset_seconds)

    def learn(self, told: datetime, asked: float, heard: float) -> None:
        """Takes in one reading.

        Args:
            told: what the database's clock said.
            asked: monotonic seconds just before the question left.
            heard: monotonic seconds just after the answer came.
        """
        seconds = (told - _EPOCH).total_seconds()
        self._offset_seconds = min(max(self._offset_seconds, seconds - heard), seconds - asked)
