"""Runs the projections over the log: read a page, fold it, write rows and position in one transaction.

Among several processes one is the active projector, by a session lock on the very connection that writes:
whoever loses the connection loses the lock with it. The others stand by. Positions are compared as they are
moved, so even two projectors that both believe themselves active cannot write the same page twice.

A projection that cannot take an event stops there, says so in its row of `projections`, and leaves the
others alone. It never steps over an event. It tries again after a while, and when the next process becomes
the projector: what was in the way may be gone.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from eventstore import log
from eventstore.connection import Connection, connect, hanging_up_after
from eventstore.errors import EventStoreError, StoreBusy, StoreUnavailable
from eventstore.listener import POLL_SECONDS, Hints, wait_for_hint
from projections import PROJECTIONS
from projections.folding import PageFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.recorded import Recorded
    from projections.projection import Projection

GATHER_SECONDS = 0.001
"""How long events are gathered after a hint: a transaction for each single one would slow all down."""

STUCK_AFTER_SECONDS = 30.0
"""A round trip that takes longer is given up and its connection cut."""

RETRY_FAILED_SECONDS = 10.0
"""How long a projection that could not take an event stays away from it."""

_IDLE_MILLISECONDS = 15_000
_TRY_LOCK = "SELECT pg_try_advisory_lock('projections'::regclass::oid::integer, 2)"
_BACKOFF_SECONDS = (0.2, 5.0)
_log = logging.getLogger(__name__)


class Projector:
    """Keeps the read tables of one squad until cancelled."""

    def __init__(
        self, dsn: str, schema: str, hints: Hints, projections: Sequence[Projection] = PROJECTIONS
    ) -> None:
        self.active = False
        self.positions: dict[str, int] = {}
        self.failed: dict[str, tuple[int, str]] = {}
        self.moved = Hints()
        """Wakes when `positions` has moved on. The database's own notification may come before that."""
        self._dsn = dsn
        self._schema = schema
        self._hints = hints
        self._failed_at = 0.0
        self._projections = {projection.name: projection for projection in projections}
        self._folder = PageFolder()

    async def run(self) -> None:
        """Runs until cancelled."""
        delay = _BACKOFF_SECONDS[0]
        while True:
            try:
                connection = await connect(
                    self._dsn,
                    self._schema,
                    name="squad projector",
                    # Whoever is active looks every second; one that stands still must not keep the lock.
                    idle_session_timeout=_IDLE_MILLISECONDS,
                )
                try:
                    await self._become_active(connection)
                    delay = _BACKOFF_SECONDS[0]
                    await self._follow(connection)
                finally:
                    self.active = False
                    connection.pgconn.finish()
            except (EventStoreError, psycopg.Error, OSError) as error:
                _log.warning("projector lost its connection: %s", error)
            except Exception:  # noqa: BLE001 - nobody would start this task again: it goes on, whatever comes
                _log.exception("the projector failed and begins again")
            await asyncio.sleep(delay)
            delay = min(delay * 2, _BACKOFF_SECONDS[1])

    async def _become_active(self, connection: Connection) -> None:
        """Waits for the lock by asking: a session that blocks on it would hold back vacuum."""
        while True:
            with hanging_up_after(STUCK_AFTER_SECONDS, connection):
                row = await (await connection.execute(_TRY_LOCK)).fetchone()
            if row and row[0]:
                break
            await asyncio.sleep(POLL_SECONDS / 2)
        self.failed.clear()
        self.positions, generation = await self._prepare(connection)
        self._folder = PageFolder(generation)
        self.active = True

    async def _prepare(self, connection: Connection) -> tuple[dict[str, int], int]:
        """Enters new projections, empties those folded by another version, and forgets old failures.

        Returns:
            Where each projection is, and the generation of the tables.
        """
        async with connection.transaction():
            for projection in self._projections.values():
                await connection.execute(
                    "INSERT INTO projections (name, fold_version, generation)"
                    " SELECT %s, %s, coalesce(max(generation), 1) FROM projections ON CONFLICT DO NOTHING",
                    (projection.name, projection.fold_version),
                )
                cursor = await connection.execute(
                    "UPDATE projections SET position = 0, fold_version = %(version)s"
                    " WHERE name = %(name)s AND fold_version <> %(version)s RETURNING name",
                    {"name": projection.name, "version": projection.fold_version},
                )
                if await cursor.fetchone():
                    for table in projection.tables:
                        await connection.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(table.name)))
            await connection.execute("UPDATE projections SET failed_position = NULL, error = NULL")
            cursor = await connection.execute("SELECT name, position, generation FROM projections")
            found = {name: (position, generation) for name, position, generation in await cursor.fetchall()}
        positions = {name: found[name][0] for name in self._projections}
        return positions, max(generation for _, generation in found.values())

    async def _follow(self, connection: Connection) -> None:
        while True:
            ticket = self._hints.ticket()
            with hanging_up_after(STUCK_AFTER_SECONDS, connection):
                moved = await self._advance_the_hindmost(connection)
            if not moved:
                await wait_for_hint(ticket)
                await asyncio.sleep(GATHER_SECONDS)

    async def _advance_the_hindmost(self, connection: Connection) -> bool:
        """Takes one page for the projections that are furthest behind; False where all are at the head."""
        is_patient = monotonic() - self._failed_at < RETRY_FAILED_SECONDS
        healthy = {
            name: at for name, at in self.positions.items() if not (is_patient and name in self.failed)
        }
        if not healthy:
            return False
        behind = min(healthy.values())
        members = [self._projections[name] for name, at in healthy.items() if at == behind]
        page = await log.read_after(connection, behind)
        # Never beyond the next one's position, so that those that met there go on as one group.
        stop = min((at for at in healthy.values() if at > behind), default=None)
        if stop is not None:
            page = [recorded for recorded in page if recorded.position <= stop]
        if not page:
            return False
        await self._advance(connection, members, page)
        return True

    async def _advance(
        self, connection: Connection, members: Sequence[Projection], page: Sequence[Recorded]
    ) -> None:
        """Takes a page; where that fails, finds out by halving which projection fails at which event."""
        try:
            await self._fold_and_write(connection, members, page)
        except (StoreUnavailable, StoreBusy, psycopg.OperationalError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a handler raises stops its projection, loudly
            if len(members) > 1:
                for member in members:
                    await self._advance(connection, [member], page)
            elif len(page) > 1:
                half = len(page) // 2
                await self._advance(connection, members, page[:half])
                if members[0].name not in self.failed:
                    await self._advance(connection, members, page[half:])
            else:
                await self._fail(connection, members[0], page[0].position, error)

    async def _fold_and_write(
        self, connection: Connection, members: Sequence[Projection], page: Sequence[Recorded]
    ) -> None:
        await self._folder.advance(connection, members, page)
        after = page[-1].position
        self.positions.update(dict.fromkeys((member.name for member in members), after))
        if mended := [member.name for member in members if self.failed.pop(member.name, None)]:
            _log.warning("projections go on that had stopped: %s", ", ".join(mended))
            await connection.execute(
                "UPDATE projections SET failed_position = NULL, error = NULL WHERE name = ANY(%s)",
                (mended,),
            )
        self.moved.wake(after)

    async def _fail(
        self, connection: Connection, projection: Projection, position: int, error: Exception
    ) -> None:
        reason = f"{type(error).__name__}: {error}"
        _log.error("projection %s stopped at position %d: %s", projection.name, position, reason)
        self.failed[projection.name] = (position, reason)
        self._failed_at = monotonic()
        await connection.execute(
            "UPDATE projections SET failed_position = %s, error = %s, updated_at = clock_timestamp()"
            " WHERE name = %s",
            (position, reason, projection.name),
        )
