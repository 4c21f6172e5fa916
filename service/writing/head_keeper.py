"""Keep the squad in memory at the log's head: restore it, catch up, and check that the log is the same one.

Events that were read rather than appended here count only once a synchronous standby, if there is one,
has them too (`service.writing.confirmed`).
"""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from eventstore import log, sealing
from eventstore.connection import closing_after, pop_lock_wait
from eventstore.errors import LogReplaced, StoreBusy
from service.history import continuity
from service.history.folding import STUCK_AFTER_SECONDS, fold_page, load_open
from service.history.restore import catch_up, restore
from service.memory.squad import Squad
from service.writing.confirmed import ConfirmedPosition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from eventstore.connection import Connection
    from eventstore.events import AnyEvent
    from eventstore.recorded import Recorded
    from service.clock import DatabaseClock
    from service.writing.sealer import Sealing
    from service.writing.stats import WriterStats


class HeadKeeper:
    """Keeps `squad` at the head of the log, and the clock at the database's time."""

    def __init__(
        self,
        clock: DatabaseClock,
        publish: Callable[[Sequence[Recorded], Sequence[AnyEvent]], None],
        sealing_: Sealing,
        replaced: Callable[[], None],
        stats: WriterStats,
    ) -> None:
        self.squad = Squad()
        self.confirmed = ConfirmedPosition()
        self._clock = clock
        self._publish = publish
        self._sealing = sealing_
        self._replaced = replaced
        self._stats = stats
        self._log_was_replaced = False

    async def begin(self, connection: Connection) -> None:
        """Bring the squad to the head over a new connection.

        Raises:
            StoreUnavailable, StoreBusy: not possible now, for example because no synchronous standby
                confirms the log's end.
            LogReplaced: this is another log; the state was discarded, and the next call reads the log anew.
            LogNotUnderstood: the log comes from a newer version of the software.
        """
        self._sealing.reset()
        self.confirmed.reset()
        with closing_after(STUCK_AFTER_SECONDS, connection):
            database_time = await self._sync_clock(connection)
            if abs(database_time - self._clock.now()) > timedelta(seconds=1):
                raise StoreBusy("reading the database's clock took too long for a usable time")
            await self._check_same_log(connection)
        if self.squad.head.position == 0:
            self.squad = await restore(connection, self._sealing.keyring)
        if self._log_was_replaced:
            self._replaced()
            self._log_was_replaced = False
        await self.catch_up(connection)
        await self.confirmed.ensure(connection, self.squad.head.position)

    def discard(self) -> None:
        """Discard the state: the log must be read anew, on a new connection."""
        self.squad = Squad()

    async def renew_clock(self, connection: Connection) -> None:
        """Read the database's clock, for when no append has returned it lately."""
        with closing_after(STUCK_AFTER_SECONDS, connection):
            await self._sync_clock(connection)

    async def catch_up(self, connection: Connection) -> None:
        """Fold what other processes appended, and load what they reopened into memory."""
        await catch_up(connection, self.squad, self._publish_others, self._sealing.keyring)
        await load_open(connection, self.squad)

    async def lock_log(self, connection: Connection) -> bool:
        """Take the log's lock, fold the events that were missed, and return whether there were any."""
        sent_at = monotonic()
        try:
            page, database_time = await log.lock_and_read(connection, self.squad.head.position)
        finally:
            self._stats.lock(pop_lock_wait(connection))
        self._clock.adjust(database_time, sent_at, monotonic())
        if page:
            await continuity.check_page(connection, self.squad.head, page)
            shown = await sealing.reveal(
                connection, page, self._sealing.keyring, erased_types=sealing.UNUSED_BY_STATE
            )
            events = fold_page(self.squad, shown)
            self._publish_others(page, events if shown is page else ())
        if len(page) == log.PAGE_EVENTS:
            await self.catch_up(connection)
        return bool(page)

    def check_continuity(self, head: int) -> None:
        """Check that the log can still be the one that was read, given its current head.

        Raises:
            LogReplaced: it is shorter.
        """
        if head < self.squad.head.position:
            raise LogReplaced(f"it ends at {head}, and ended at {self.squad.head.position} before")

    def _publish_others(self, page: Sequence[Recorded], events: Sequence[AnyEvent] = ()) -> None:
        """Publish what other processes appended, after folding it, and drop the keys that they destroyed.

        Args:
            page: what they appended.
            events: its decoded events, if it was folded under the lock in order to decide. Those found by
                `catch_up` are not passed on: other parts of the process must find them themselves, or
                `poll_rescues` would not show that no notification announced them.
        """
        self._sealing.observe(page)
        self._publish(page, events)

    async def _check_same_log(self, connection: Connection) -> None:
        """Discard the state if the log is another one.

        Raises:
            LogReplaced: it is another one.
        """
        try:
            await continuity.check_head(connection, self.squad.head)
        except LogReplaced:
            self.discard()
            self._log_was_replaced = True
            raise

    async def _sync_clock(self, connection: Connection) -> datetime:
        sent_at = monotonic()
        database_time = await log.clock(connection)
        self._clock.adjust(database_time, sent_at, monotonic())
        return database_time
