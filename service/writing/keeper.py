"""The squad in memory, kept at the log's head: restored, brought on, and known to be of this very log.

What was found in the log, instead of being appended, is not believed before a synchronous standby, where
there is one, has it as well (`service.writing.confirmed`).
"""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from eventstore import log, sealing
from eventstore.connection import hanging_up_after, take_lock_wait
from eventstore.errors import LogReplaced, StoreBusy
from service.history import continuity
from service.history.folding import STUCK_AFTER_SECONDS, complete, fold_page
from service.history.restore import catch_up, restore
from service.memory.squad import Squad
from service.writing.confirmed import Confirmed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from eventstore.connection import Connection
    from eventstore.events import AnyEvent
    from eventstore.recorded import Recorded
    from service.clock import DatabaseClock
    from service.writing.measures import Measures
    from service.writing.sealer import Sealing


class Keeper:
    """Keeps `squad` at the head of the log, and the clock at the database's time."""

    def __init__(
        self,
        clock: DatabaseClock,
        publish: Callable[[Sequence[Recorded], Sequence[AnyEvent]], None],
        sealing_: Sealing,
        replaced: Callable[[], None],
        measures: Measures,
    ) -> None:
        self.squad = Squad()
        self.confirmed = Confirmed()
        self._clock = clock
        self._publish = publish
        self._sealing = sealing_
        self._replaced = replaced
        self._measures = measures
        self._is_other_log = False

    async def begin(self, connection: Connection) -> None:
        """Brings the squad to the head over a new connection.

        Raises:
            StoreUnavailable, StoreBusy: not now, such as where no synchronous standby has what is there.
            LogReplaced: all that was known is forgotten, and the next call reads the log anew.
            LogNotUnderstood: the log comes from a newer version of the software.
        """
        self._sealing.start_afresh()
        self.confirmed.start_afresh()
        with hanging_up_after(STUCK_AFTER_SECONDS, connection):
            its_time = await self._ask_the_time(connection)
            if abs(its_time - self._clock.now()) > timedelta(seconds=1):
                raise StoreBusy("the clock's reading took too long to be of use")
            await self._recognise_the_log(connection)
        if self.squad.head.position == 0:
            self.squad = await restore(connection, self._sealing.keyring)
        if self._is_other_log:
            self._replaced()
            self._is_other_log = False
        await self.look(connection)
        await self.confirmed.make_sure(connection, self.squad.head.position)

    def forget(self) -> None:
        """Knows nothing any more: the log is to be read anew, on a new connection."""
        self.squad = Squad()

    async def renew_clock(self, connection: Connection) -> None:
        """Asks the database for the time, where no append has told it lately."""
        with hanging_up_after(STUCK_AFTER_SECONDS, connection):
            await self._ask_the_time(connection)

    async def look(self, connection: Connection) -> None:
        """Folds what others have appended, and brings into memory what they opened again."""
        await catch_up(connection, self.squad, self._tell_of_others, self._sealing.keyring)
        await complete(connection, self.squad)

    async def lock_the_log(self, connection: Connection) -> bool:
        """Takes the log's lock and folds what was missed; says whether anything was."""
        asked = monotonic()
        try:
            page, its_time = await log.lock_and_read(connection, self.squad.head.position)
        finally:
            self._measures.lock(take_lock_wait(connection))
        self._clock.learn(its_time, asked, monotonic())
        if page:
            await continuity.check_page(connection, self.squad.head, page)
            shown = await sealing.reveal(connection, page, self._sealing.keyring, veiled=sealing.VEILED)
            events = fold_page(self.squad, shown)
            self._tell_of_others(page, events if shown is page else ())
        if len(page) == log.PAGE_EVENTS:
            await self.look(connection)
        return bool(page)

    def check_continuity(self, head: int) -> None:
        """Looks whether the log can be the one that was read, given where it ends now.

        Raises:
            LogReplaced: it is shorter.
        """
        if head < self.squad.head.position:
            raise LogReplaced(f"it ends at {head}, and has ended at {self.squad.head.position}")

    def _tell_of_others(self, page: Sequence[Recorded], events: Sequence[AnyEvent] = ()) -> None:
        """What others have appended was folded, and keys that they destroyed are no longer used.

        Args:
            page: what they appended.
            events: what it tells, where it was folded under the lock, in order to decide. What a look has
                found is not passed on like that: other parts of the process must find it themselves, or it
                would not show (in `poll_rescues`) that no notification told them of it.
        """
        self._sealing.observe(page)
        self._publish(page, events)

    async def _recognise_the_log(self, connection: Connection) -> None:
        """Forgets all that is known where the log is another one.

        Raises:
            LogReplaced: it is.
        """
        try:
            await continuity.check_head(connection, self.squad.head)
        except LogReplaced:
            self.forget()
            self._is_other_log = True
            raise

    async def _ask_the_time(self, connection: Connection) -> datetime:
        asked = monotonic()
        its_time = await log.clock(connection)
        self._clock.learn(its_time, asked, monotonic())
        return its_time
