"""This process's estimate of the database's clock, the only clock that decisions use.

Every round trip bounds the difference between the database's clock and our monotonic one: the database read
its clock after we asked and before we got the answer. The estimate changes only when it is outside of those
bounds, so it is steady, and processes agree to about one round trip, whatever their own wall clocks say.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import monotonic

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class DatabaseClock:
    """Estimates the database's time between round trips. Until the first one, it uses the system clock."""

    def __init__(self) -> None:
        self._offset_seconds = (datetime.now(UTC) - _EPOCH).total_seconds() - monotonic()

    def now(self) -> datetime:
        """Return the estimated time of the database's clock, in UTC."""
        return _EPOCH + timedelta(seconds=monotonic() + self._offset_seconds)

    def adjust(self, reading: datetime, sent_at: float, received_at: float) -> None:
        """Adjust the estimate to one reading.

        Args:
            reading: the reading of the database's clock.
            sent_at: monotonic seconds just before the request was sent.
            received_at: monotonic seconds just after the answer arrived.
        """
        seconds = (reading - _EPOCH).total_seconds()
        self._offset_seconds = min(max(self._offset_seconds, seconds - received_at), seconds - sent_at)
