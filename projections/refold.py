"""The log folded a second time, into tables of one session's own.

They are temporary tables that bear the read tables' names and come first on the session's search path, so
that the same folder fills them. Nobody else sees them, nothing of them reaches the write-ahead log, and
they end with the session, however that ends: whoever is killed in the middle leaves nothing behind. A
verification compares them with the live ones (`projections.comparison`), a replay puts their rows in the
place of the live ones' (`projections.rebuild`).
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from psycopg import sql

from eventstore import log
from eventstore.connection import connect
from eventstore.errors import LogBroken
from eventstore.translation import translating
from projections import storage
from projections.folding import PageFolder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from eventstore.connection import Connection
    from projections.projection import Projection, Table

    Progress = Callable[[int, int], None]
    """Told the position reached, and the one to be reached."""

PATIENCE_MILLISECONDS = 1_800_000
"""How long one transaction may take at most."""

_APART = "pg_temp"


class Refold:
    """A second set of tables, and how far each projection is in it."""

    def __init__(
        self, connection: Connection, projections: Sequence[Projection], progress: Progress | None = None
    ) -> None:
        self.connection = connection
        self.projections = {projection.name: projection for projection in projections}
        self.positions = dict.fromkeys(self.projections, 0)
        self._progress = progress or _tell_nobody
        self._folder = PageFolder()

    async def to(self, targets: Mapping[str, int]) -> None:
        """Folds each named projection on to its position, page by page.

        Raises:
            LogBroken: an event is missing on the way.
            UnknownEventType, UnreadableEvent, LogNotUnderstood: an event cannot be folded.
        """
        goal = max(targets.values(), default=0)
        while behind := {name: self.positions[name] for name in targets if self._is_behind(name, targets)}:
            start = min(behind.values())
            members = [self.projections[name] for name, at in behind.items() if at == start]
            # As far as they go together: to the first one's goal, or to where the next one joins them.
            stop = min(
                *(targets[member.name] for member in members),
                *(at for at in behind.values() if at > start),
                goal,
            )
            at = start
            async for page in log.scan(self.connection, start, stop):
                for recorded in page:
                    at += 1
                    if recorded.position != at:
                        raise LogBroken(f"position {at} is missing")
                await self._folder.write(self.connection, members, page)
                self.positions.update(dict.fromkeys((member.name for member in members), at))
                self._progress(at, goal)
            if at < stop:
                raise LogBroken(f"position {at + 1} is missing")

    async def analyze(self) -> None:
        """Tells the planner how large the tables are; nobody else does for temporary ones."""
        with translating():
            for table in self.tables():
                await self.connection.execute(sql.SQL("ANALYZE {}").format(apart(table)))

    def tables(self) -> list[Table[Any, Any]]:
        """The tables of all its projections."""
        return [table for projection in self.projections.values() for table in projection.tables]

    def _is_behind(self, name: str, targets: Mapping[str, int]) -> bool:
        return self.positions[name] < targets[name]


@asynccontextmanager
async def refolding(
    dsn: str,
    schema: str,
    projections: Sequence[Projection],
    *,
    name: str,
    progress: Progress | None = None,
) -> AsyncIterator[Refold]:
    """Empty tables of a session's own for these projections, for as long as the block lasts.

    Args:
        dsn: libpq connection string or URI of a primary server; the role needs the right to make temporary
            tables, which everybody has by default.
        schema: the squad's Postgres schema.
        projections: which ones.
        name: shown as `application_name` in pg_stat_activity.
        progress: told after each page.
    """
    connection = await connect(
        dsn,
        schema,
        name=name,
        search_path=f"{_APART},{schema}",
        temp_buffers="64MB",
        statement_timeout=PATIENCE_MILLISECONDS,
        transaction_timeout=PATIENCE_MILLISECONDS,
        # A client that was killed is noticed in the middle of a long statement as well.
        client_connection_check_interval=1_000,
    )
    async with connection:
        refold = Refold(connection, projections, progress)
        with translating():
            for table in refold.tables():
                await connection.execute(storage.create_statement(table, apart(table)))
        yield refold


def apart(table: Table[Any, Any]) -> sql.Identifier:
    """The session's own table."""
    return sql.Identifier(_APART, table.name)


def _tell_nobody(position: int, goal: int) -> None:
    del position, goal
