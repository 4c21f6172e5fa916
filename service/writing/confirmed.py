"""Track how much of the log is known to be on a synchronous standby too, so that it survives its server.

A commit of our own waits for the standby. An answer without a commit, such as "that happened already",
rests on events that were only read: they are confirmed here first (`eventstore.standby`).
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from eventstore import standby
from eventstore.connection import closing_after
from eventstore.errors import StoreBusy, StoreUnavailable
from service.history.folding import STUCK_AFTER_SECONDS

if TYPE_CHECKING:
    from eventstore.connection import Connection


_LOCKED = (
    "another session holds the log's lock, perhaps a commit that waits for a standby; nothing is confirmed"
)


class ConfirmedPosition:
    """How much of the log one connection's server has confirmed to be on its synchronous standby."""

    def __init__(self) -> None:
        self._upto = 0

    def reset(self) -> None:
        """Forget what was confirmed: a new connection may lead to another server."""
        self._upto = 0

    def record_append(self, position: int) -> None:
        """Note that our own commit returned, which confirms everything up to its last position."""
        self._upto = position

    async def ensure(self, connection: Connection, position: int) -> None:
        """Wait until the log up to `position`, which was read on this connection, is confirmed.

        Raises:
            StoreBusy: no standby confirms it in time.
            StoreUnavailable: the connection broke.
        """
        if position <= self._upto:
            return
        began = monotonic()
        try:
            with closing_after(STUCK_AFTER_SECONDS, connection):
                await standby.confirm(connection)
        except StoreBusy as busy:
            raise StoreBusy(_LOCKED) from busy
        except StoreUnavailable as cut:
            if monotonic() - began < STUCK_AFTER_SECONDS:
                raise
            raise StoreBusy("no synchronous standby confirms what the log holds") from cut
        self._upto = position
