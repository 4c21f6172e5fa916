"""Takes snapshots while the service runs: at the head every so many events, and where the past has none.

At the head it costs the writer a copy of some dictionaries, about a millisecond for thousands of rows; what
follows takes turns with everything else. Then it walks through stretches of the log that have no snapshots,
because they were imported, or written before this version of the code: slowly, a few slices at a time.

Of several processes one does it, by a session lock on a connection that is there only while there is
something to do. If two did, they would only store the same thing twice.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import psycopg

from eventstore import log
from eventstore.asking import one_value
from eventstore.connection import connect
from eventstore.describing import describe
from eventstore.errors import EventStoreError
from eventstore.listener import wait_for_hint
from service.history import snapshots
from service.history.folding import complete, folding
from service.memory.squad import Squad

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from service.writing.writer import Writer

AGAIN_AFTER_SECONDS = 60.0
"""How long after a failure it is tried again."""

RESTS = 4.0
"""How long it rests in the past after each slice, as a multiple of what that took."""

_TRY_LOCK = "SELECT pg_try_advisory_lock('snapshots'::regclass::oid::integer, 3)"
_log = logging.getLogger(__name__)


class Snapshotter:
    """Keeps a squad's snapshots until cancelled."""

    def __init__(self, dsn: str, schema: str, writer: Writer) -> None:
        self._dsn = dsn
        self._schema = schema
        self._writer = writer
        self._due = asyncio.Event()
        self._last = 0
        """Of which position the last one at the head is, as far as this process knows."""
        self._next = 0
        """At which position the next one is due, if the squad does not grow until then."""

    def observe(self, recorded: Sequence[Recorded]) -> None:
        """Hears of every event that was committed."""
        if (position := recorded[-1].position) >= self._next:
            # A squad that grows is due later, and is not looked at in vain with every event until then.
            self._reckon()
            if position >= self._next:
                self._due.set()

    def _reckon(self) -> None:
        self._next = self._last + snapshots.distance(self._writer.squad)

    def look_again(self) -> None:
        """The log was replaced: what was due, and when, is another matter."""
        self._due.set()

    async def keep(self, squad: Squad, known: int) -> None:
        """Puts a squad away that somebody has folded (see `service.history.folding.Keep`)."""
        try:
            async with self._connection() as connection:
                await snapshots.store(connection, squad, known)
        except Exception as error:  # noqa: BLE001 - whoever looks back needs no snapshot of it
            _log.warning(
                "a snapshot at position %d was not stored: %s", squad.head.position, describe(error)
            )

    async def run(self) -> None:
        """Runs until cancelled."""
        while not self._writer.ready:
            await wait_for_hint(self._writer.moved.ticket())
        self._due.set()
        while True:
            await self._due.wait()
            try:
                await self._take_what_is_due()
            except (EventStoreError, psycopg.Error, OSError) as error:
                _log.warning("snapshots cannot be taken for the moment: %s", describe(error))
                await asyncio.sleep(AGAIN_AFTER_SECONDS)
            except Exception:  # noqa: BLE001 - nobody would start this task again; all works without snapshots
                _log.exception("taking snapshots failed")
                await asyncio.sleep(AGAIN_AFTER_SECONDS)

    async def _take_what_is_due(self) -> None:
        async with self._connection() as connection:
            if not await one_value(connection, _TRY_LOCK):
                # Somebody else is at it; there will be a next time.
                self._wait_for_more()
                return
            await snapshots.prune(connection)
            await self._at_the_head(connection)
            await self._in_the_past(connection)

    def _wait_for_more(self) -> None:
        self._last = self._writer.squad.head.position
        self._reckon()
        self._due.clear()

    async def _at_the_head(self, connection: Connection) -> None:
        taken = await snapshots.positions(connection)
        squad = self._writer.squad
        self._last = max((position for position in taken if position <= squad.head.position), default=0)
        self._reckon()
        self._due.clear()
        if squad.head.position >= self._next:
            copy = squad.copy()
            self._wait_for_more()
            await complete(connection, copy)
            await snapshots.store(connection, copy, copy.head.position)

    async def _in_the_past(self, connection: Connection) -> None:
        """Walks through the stretches without snapshots, the oldest first."""
        for last, following in pairwise([0, *await snapshots.positions(connection)]):
            if following - last < 2 * snapshots.distance(self._writer.squad):
                continue
            await self._walk(connection, last, following)

    async def _walk(self, connection: Connection, last: int, following: int) -> None:
        known = await log.head_position(connection)
        squad = await snapshots.nearest(connection, last) or Squad()
        kept = squad.head.position

        async def after_page() -> None:
            nonlocal kept
            if self._due.is_set():
                await self._at_the_head(connection)
            if squad.head.position - kept >= snapshots.distance(squad):
                kept = squad.head.position
                await complete(connection, squad)
                await snapshots.store(connection, squad, known)

        await folding(connection, squad, following, after_page, rest=RESTS)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        connection = await connect(self._dsn, self._schema, name="squad snapshots")
        try:
            yield connection
        finally:
            connection.pgconn.finish()
