"""Take snapshots while the service runs: regularly at the head, and in the past where they are missing.

At the head, it costs the writer a copy of some dictionaries, about a millisecond for thousands of rows; the
rest is interleaved with other work. Then it fills in stretches of the log that have no snapshots, because
they were imported or written before this version of the code: slowly, a few slices at a time.

One of several processes does it at a time, holding a session lock on a connection that is open only while
there is something to do. If two did, they would merely store the same snapshot twice.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import psycopg

from eventstore import log
from eventstore.connection import connect
from eventstore.errors import EventStoreError
from eventstore.listener import wait_for_hint
from eventstore.queries import one_value
from eventstore.redaction import describe
from service.history import snapshots
from service.history.folding import fold_pages, load_open
from service.memory.squad import Squad

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from service.writing.writer import Writer

RETRY_SECONDS = 60.0
"""How long to wait after a failure before retrying."""

PAUSE_FACTOR = 4.0
"""How long to rest after each slice when filling in the past, as a multiple of the slice's duration."""

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
        """The position of the last snapshot at the head that this process knows."""
        self._next = 0
        """The position at which the next one is due, unless the squad grows until then."""

    def observe(self, recorded: Sequence[Recorded]) -> None:
        """Note that events were committed; wake up when a snapshot is due."""
        if (position := recorded[-1].position) >= self._next:
            # A squad that has grown is due later; do not wake up for every event until then.
            self._schedule_next()
            if position >= self._next:
                self._due.set()

    def _schedule_next(self) -> None:
        self._next = self._last + snapshots.distance(self._writer.squad)

    def reschedule(self) -> None:
        """Check again what is due, after the log was replaced."""
        self._due.set()

    async def store(self, squad: Squad, known: int) -> None:
        """Store a snapshot of a squad that was folded elsewhere; see `history.folding.StoreSnapshot`."""
        try:
            async with self._connection() as connection:
                await snapshots.store(connection, squad, known)
        except Exception as error:  # noqa: BLE001 - the caller does not depend on the snapshot
            _log.warning(
                "a snapshot at position %d was not stored: %s", squad.head.position, describe(error)
            )

    async def run(self) -> None:
        """Take snapshots until cancelled."""
        while not self._writer.ready:
            await wait_for_hint(self._writer.advanced.waiter())
        self._due.set()
        while True:
            await self._due.wait()
            try:
                await self._take_due()
            except (EventStoreError, psycopg.Error, OSError) as error:
                _log.warning("snapshots cannot be taken for now: %s", describe(error))
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:  # noqa: BLE001 - the task must go on; everything else works without snapshots
                _log.exception("taking snapshots failed")
                await asyncio.sleep(RETRY_SECONDS)

    async def _take_due(self) -> None:
        async with self._connection() as connection:
            if not await one_value(connection, _TRY_LOCK):
                # Another process is taking snapshots.
                self._restart_interval()
                return
            await snapshots.prune(connection)
            await self._at_the_head(connection)
            await self._fill_gaps(connection)

    def _restart_interval(self) -> None:
        self._last = self._writer.squad.head.position
        self._schedule_next()
        self._due.clear()

    async def _at_the_head(self, connection: Connection) -> None:
        taken = await snapshots.positions(connection)
        squad = self._writer.squad
        self._last = max((position for position in taken if position <= squad.head.position), default=0)
        self._schedule_next()
        self._due.clear()
        if squad.head.position >= self._next:
            copy = squad.copy()
            self._restart_interval()
            await load_open(connection, copy)
            await snapshots.store(connection, copy, copy.head.position)

    async def _fill_gaps(self, connection: Connection) -> None:
        """Take snapshots in the stretches without any, oldest first."""
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
                await load_open(connection, squad)
                await snapshots.store(connection, squad, known)

        await fold_pages(connection, squad, following, after_page, rest=PAUSE_FACTOR)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        connection = await connect(self._dsn, self._schema, name="squad snapshots")
        try:
            yield connection
        finally:
            connection.pgconn.finish()
