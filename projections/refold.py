"""Folds the log again, into temporary tables of one session.

They have the same names as the read tables and come first on the session's search path, so that the same
folder fills them. Nobody else sees them, they are not written to the write-ahead log, and they are dropped
with the session, however it ends: a killed process leaves nothing behind. A verification compares them with
the live tables (`projections.comparison`), a replay replaces the live rows with theirs
(`projections.rebuild`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from eventstore.connection import connect
from eventstore.errors import LogBroken, WritesRefused
from eventstore.keys import Keyring
from eventstore.pages import FOLD_INPUT, FULL_EVENT, scan
from eventstore.queries import one_value
from eventstore.sealing import needs_revealing
from eventstore.translation import translating
from projections import storage
from projections.comparison_sql import TEMP_SCHEMA, temporary_table
from projections.folding import PageFolder, decode_page, decode_readable_page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from eventstore.connection import Connection
    from eventstore.pages import RowFormat
    from eventstore.recorded import AnyRecorded
    from projections.projection import Projection, Table
    from projections.row_cache import FoldedPage

    Progress = Callable[[int, int], None]
    """Called with the position reached and the target position."""

TIMEOUT_MILLISECONDS = 1_800_000
"""Timeout of a transaction, and of each statement in it."""

MAX_PENDING_WRITES = 1
"""How many pages may still be being written when the next one is."""


class Refold:
    """A second set of tables, and the position of each projection in it.

    `connection` has the tables, `reader` reads the log: while a page is folded, the next one is already
    being read, and the rows of earlier ones are being written.
    """

    def __init__(
        self,
        connection: Connection,
        reader: Connection,
        projections: Sequence[Projection],
        progress: Progress | None,
    ) -> None:
        self.connection = connection
        self.projections = {projection.name: projection for projection in projections}
        self.positions = dict.fromkeys(self.projections, 0)
        self.reader = reader
        self._progress = progress or _no_progress
        self._folder = PageFolder(empty=True)
        self._row_format: RowFormat[Any] = FOLD_INPUT
        self._keyring = Keyring()

    async def fold_to(self, targets: Mapping[str, int]) -> None:
        """Fold each named projection up to its target position, page by page.

        Raises:
            LogBroken: an event is missing on the way.
            UnknownEventType, UnreadableEvent, LogNotUnderstood: an event cannot be folded.
        """
        goal = max(targets.values(), default=0)
        while behind := {name: self.positions[name] for name in targets if self._is_behind(name, targets)}:
            start = min(behind.values())
            members = [self.projections[name] for name, at in behind.items() if at == start]
            # As far as they go together: to the nearest target, or to where the next projection joins them.
            stop = min(
                *(targets[member.name] for member in members),
                *(at for at in behind.values() if at > start),
                goal,
            )
            await self._fold(members, start, stop, goal)
            self.positions.update(dict.fromkeys((member.name for member in members), stop))

    async def _fold(self, members: Sequence[Projection], start: int, stop: int, goal: int) -> None:
        # Each write is one statement, and a connection executes its statements in order.
        pending: deque[asyncio.Future[None]] = deque()
        at, row_format = start, None
        try:
            while at < stop and row_format is not self._row_format:
                row_format = self._row_format
                at = await self._fold_pages(members, at, stop, goal, pending)
            await _await_writes(pending)
        except asyncio.CancelledError:
            for write in pending:
                write.cancel()
            raise
        finally:
            await asyncio.gather(*pending, return_exceptions=True)
        if at < stop:
            raise LogBroken(f"position {at + 1} is missing", at + 1)

    async def _fold_pages(
        self,
        members: Sequence[Projection],
        at: int,
        stop: int,
        goal: int,
        pending: deque[asyncio.Future[None]],
    ) -> int:
        """Fold what follows a position; return the position reached: before `stop` if more must be read."""
        row_format = self._row_format
        async with aclosing(scan(self.reader, at, stop, row_format=row_format)) as pages:
            async for page in pages:
                _check_gapless(page, at)
                if row_format is FOLD_INPUT and needs_revealing(page):
                    # Decrypting sealed payloads needs columns that a fold does not.
                    self._row_format = FULL_EVENT
                    break
                at += len(page)
                events = await (
                    decode_readable_page(page)
                    if row_format is FOLD_INPUT
                    else decode_page(self.reader, page, self._keyring)
                )
                if row_keys := self._folder.keys_to_fetch(members, events):
                    await _await_writes(pending)
                    await self._folder.fetch(self.connection, row_keys)
                folded = self._folder.fold(members, page, events)
                self._folder.add_to_cache(folded)
                await _await_writes(pending, keep=MAX_PENDING_WRITES)
                pending.append(asyncio.ensure_future(self._write(folded, at, goal)))
        return at

    async def _write(self, folded: FoldedPage, position: int, goal: int) -> None:
        with translating():
            await folded.write(self.connection)
        self._progress(position, goal)

    @contextmanager
    def rollback_on_failure(self) -> Iterator[None]:
        """Wrap a transaction of the caller: what it rolls back does not count as folded."""
        before = dict(self.positions)
        try:
            yield
        except BaseException:
            self.positions = before
            self._folder = PageFolder()
            raise

    async def analyze(self) -> None:
        """Analyze the tables for the planner: autovacuum does not do it for temporary ones.

        They are joined by their keys only, so statistics on other columns are not needed.
        """
        with translating():
            for table in self.tables():
                keys = sql.SQL(", ").join(map(sql.Identifier, table.key))
                await self.connection.execute(
                    sql.SQL("ANALYZE {} ({})").format(temporary_table(table), keys)
                )

    def tables(self) -> list[Table[Any, Any]]:
        """Return the tables of all its projections."""
        return [table for projection in self.projections.values() for table in projection.tables]

    def _is_behind(self, name: str, targets: Mapping[str, int]) -> bool:
        return self.positions[name] < targets[name]


async def _await_writes(pending: deque[asyncio.Future[None]], *, keep: int = 0) -> None:
    """Wait for pending writes, the oldest first, except the last `keep`."""
    while len(pending) > keep:
        await pending.popleft()


def _check_gapless(page: Sequence[AnyRecorded], after: int) -> None:
    """Check that a page has no gaps: positions increase, so it is enough to check the last one."""
    if page[-1].position != after + len(page):
        missing = next(at for at, recorded in enumerate(page, after + 1) if recorded.position != at)
        raise LogBroken(f"position {missing} is missing", missing)


@asynccontextmanager
async def refolding(
    dsn: str,
    schema: str,
    projections: Sequence[Projection],
    *,
    name: str,
    progress: Progress | None,
) -> AsyncIterator[Refold]:
    """Provide empty temporary tables for these projections for the duration of the block.

    Args:
        dsn: libpq connection string or URI of a primary server; the role needs the right to create
            temporary tables, which everybody has by default.
        schema: the squad's Postgres schema.
        projections: which projections.
        name: shown as `application_name` in pg_stat_activity.
        progress: called after each page.

    Raises:
        WritesRefused: no temporary table can be created there.
    """
    connection = await connect(
        dsn,
        schema,
        name=name,
        search_path=f"{TEMP_SCHEMA},{schema}",
        temp_buffers="64MB",
        work_mem="64MB",
        # No query on the tables gains from more detailed statistics.
        default_statistics_target=10,
        statement_timeout=TIMEOUT_MILLISECONDS,
        transaction_timeout=TIMEOUT_MILLISECONDS,
    )
    async with connection, await connect(dsn, schema, name=name) as reader:
        with suppress(psycopg.Error):
            # Notices a killed client during a long statement as well; not every server supports it.
            await connection.execute("SET client_connection_check_interval = '1s'")
        await check_accepts_writes(connection)
        refold = Refold(connection, reader, projections, progress)
        with translating():
            for table in refold.tables():
                await connection.execute(storage.create_statement(table, temporary_table(table)))
        yield refold


async def check_accepts_writes(connection: Connection) -> None:
    """Refuse a server where temporary tables cannot be created, before any time is spent.

    Raises:
        WritesRefused: they cannot.
    """
    if await one_value(connection, "SHOW transaction_read_only") != "off":
        raise WritesRefused(
            "temporary tables are needed; ask the primary, or verify the log alone with --no-tables"
        )


def _no_progress(position: int, goal: int) -> None:
    del position, goal
