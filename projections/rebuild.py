"""Rebuilds read tables from the log beside the live ones, and then replaces the live rows.

The log is folded into temporary tables (`projections.refold`) while the service runs: nobody waits for it,
and nobody sees it. Then, in one transaction, the projector is blocked, the last events are folded, and each
live row that differs from the log is replaced, removed or added (`projections.swap`). Readers keep
reading the old rows until that transaction commits, and read the new ones from then on, in whatever
snapshot, view or prepared statement: the tables themselves stay, with their grants and dependent objects.
Rows that are already correct are not rewritten.

Only the read tables and `projections` are written, so nothing is sent or called again. A replay that is
killed at any moment leaves the live tables as they were, and nothing else behind.

If rows differed although the same code had folded them, somebody may have changed them, and a process that
read them when it started may have stored a snapshot of what it read. So all snapshots are deleted as well.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from psycopg import sql

from eventstore import log
from eventstore.definitions import differing_tables
from eventstore.errors import StoreBusy, TableMismatch
from eventstore.queries import one_value
from eventstore.translation import translating
from projections import PROJECTIONS
from projections.indexes import Index, missing_indexes, recreate
from projections.refold import refolding
from projections.swap import find_differences, folded_rows, replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import AsyncCursor

    from eventstore.connection import Connection
    from projections.projection import Projection
    from projections.refold import Progress, Refold
    from projections.swap import Differences

CLOSE_EVENTS = 500
"""How close to the log's head the fold must be before the rest is folded while the projector waits."""

LOCK_TIMEOUT_SECONDS = 5.0
"""How long a replay waits for another one to end, such as one that has just been killed."""

ATTEMPTS = 10
"""How often the swap is tried if somebody holds a lock that it needs."""

_LOCK_MILLISECONDS = 2_000
_LOCK_POLL_SECONDS = 0.1
_TRY_LOCK = "SELECT pg_try_advisory_lock('projections'::regclass::oid::integer, 3)"

_LOCK = "LOCK TABLE {projections} IN SHARE ROW EXCLUSIVE MODE"
_MAX_POSITION = """
    SELECT greatest((SELECT max(position) FROM {projections} WHERE name = ANY (%s)),
                    (SELECT coalesce(max(position), 0) FROM {events}))
"""
_INSERT = """
    INSERT INTO {projections} (name, fold_version, position) VALUES (%s, %s, %s)
    ON CONFLICT (name) DO UPDATE
    SET fold_version = EXCLUDED.fold_version, position = EXCLUDED.position,
        failed_position = NULL, error = NULL, updated_at = clock_timestamp()
"""
_FOLD_VERSIONS = "SELECT name, fold_version FROM {projections}"
_DELETE_SNAPSHOTS = "DELETE FROM {snapshots}"
_NEXT_GENERATION = "UPDATE {projections} SET generation = (SELECT max(generation) + 1 FROM {projections})"

Changes = dict[str, tuple[int, int]]
"""By table, how many rows were written, and how many removed."""


class Replaced(NamedTuple):
    """The result for a table: how many rows it has, and how many had to be written or removed."""

    table: str
    rows: int
    written: int
    removed: int


class Rebuilt(NamedTuple):
    """The position of the rebuilt projections, and the result for their tables."""

    position: int
    tables: tuple[Replaced, ...]
    lost: tuple[Index, ...]
    """Missing indexes that the role may not recreate."""
    were_wrong: bool
    """Whether rows that the same code had folded differed: they were changed, or not up to date yet."""


async def rebuild(
    dsn: str,
    schema: str,
    projections: Sequence[Projection] = PROJECTIONS,
    *,
    progress: Progress | None = None,
) -> Rebuilt:
    """Make the tables of these projections match the log, while others read, write and append.

    Args:
        dsn: libpq connection string or URI of a primary server; the role must be the service's or the
            owner's, and able to create temporary tables. Only the owner can recreate a table that was
            dropped, its key or another index.
        schema: the squad's Postgres schema.
        projections: whose tables to rebuild; by default all of them.
        progress: called after each page with the position reached and the target position.

    Raises:
        UnknownEventType, UnreadableEvent, LogNotUnderstood, LogBroken: the log cannot be folded; the tables
            are unchanged.
        StoreBusy: another replay is in progress, or somebody has locked the tables; they are unchanged. Or
            the rows were replaced, and counting them or recreating an index was cancelled.
        TableMismatch: the rows would not fit into a table; the tables are unchanged.
        WritesRefused: the server is not a primary; the tables are unchanged.
        StoreUnavailable: the connection broke; the tables are unchanged or completely replaced.
    """
    async with refolding(dsn, schema, projections, name="squad replay", progress=progress) as refold:
        await _check_tables(refold, schema)
        await _take_replay_lock(refold.connection)
        await _catch_up(refold)
        await refold.analyze()
        with translating():
            found = await find_differences(refold.connection, schema, refold.tables())
        attempts = 1
        while True:
            await _catch_up(refold)
            try:
                position, changes, were_wrong = await _swap(refold, schema, found)
            except StoreBusy:
                attempts += 1
                if attempts > ATTEMPTS:
                    raise
            else:
                rows = await _count_rows(refold, schema, changes)
                lost = await _recreate_lost_indexes(refold, schema)
                return Rebuilt(position, rows, lost, were_wrong)


async def _check_tables(refold: Refold, schema: str) -> None:
    """Refuse tables that the rows would not fit into. One that does not exist is created later."""
    names = [table.name for table in refold.tables()]
    with translating():
        others = await differing_tables(refold.reader, schema, [*names, "projections"])
    if await one_value(refold.reader, "SELECT to_regclass('projections') IS NULL"):
        raise TableMismatch("projections does not exist")
    for name, why in others.items():
        hint = "; once its owner has dropped it, a replay recreates it" if name in names else ""
        raise TableMismatch(f"{name} {why}{hint}")


async def _take_replay_lock(connection: Connection) -> None:
    """Take the lock that allows one replay at a time, for the rest of the session."""
    deadline = monotonic() + LOCK_TIMEOUT_SECONDS
    while True:
        if await one_value(connection, _TRY_LOCK):
            return
        if monotonic() > deadline:
            raise StoreBusy("another replay is in progress")
        await asyncio.sleep(_LOCK_POLL_SECONDS)


async def _catch_up(refold: Refold) -> None:
    """Fold up to the log's head, repeatedly, as long as that gets closer to it."""
    distance: int | None = None
    while True:
        head = await log.head_position(refold.connection)
        left = head - min(refold.positions.values())
        if left <= CLOSE_EVENTS or (distance is not None and left >= distance):
            return
        await refold.fold_to(dict.fromkeys(refold.projections, head))
        distance = left


async def _swap(refold: Refold, schema: str, found: Differences) -> tuple[int, Changes, bool]:
    """Replace the live rows with the folded ones. If it fails, nothing changed.

    Returns:
        Their position, what was changed, and whether rows of the same fold were.
    """
    connection = refold.connection
    with refold.rollback_on_failure(), translating():
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}")
            # The projector writes to it first as well, so that the two cannot deadlock over rows.
            await _execute(connection, _LOCK, schema)
            position = await _fold_to_head(refold, schema)
            changes = {
                table.name: await replace(connection, schema, table, found) for table in refold.tables()
            }
            cursor = await _execute(connection, _FOLD_VERSIONS, schema)
            folded_alike = set(await cursor.fetchall())
            were_wrong = any(
                any(changes[table.name])
                for projection in refold.projections.values()
                if (projection.name, projection.fold_version) in folded_alike
                for table in projection.tables
            )
            if were_wrong:
                await _execute(connection, _DELETE_SNAPSHOTS, schema)
            for projection in refold.projections.values():
                await _execute(
                    connection, _INSERT, schema, (projection.name, projection.fold_version, position)
                )
            await _execute(connection, _NEXT_GENERATION, schema)
            # The first wakes readers that wait for the tables, the second an idle projector.
            for channel in ("projections", "events"):
                await connection.execute("SELECT pg_notify(%s, %s)", (f"{schema}.{channel}", str(position)))
    return position, changes, were_wrong


async def _count_rows(refold: Refold, schema: str, changes: Changes) -> tuple[Replaced, ...]:
    """Return the result for each table. The swap is done: if this fails, it must not be repeated."""
    with translating():
        return tuple(
            [
                Replaced(
                    table.name, await folded_rows(refold.connection, schema, table), *changes[table.name]
                )
                for table in refold.tables()
            ]
        )


async def _recreate_lost_indexes(refold: Refold, schema: str) -> tuple[Index, ...]:
    """Recreate missing indexes; return those that the role may not create."""
    names = {table.name for table in refold.tables()}
    lost = await missing_indexes(refold.reader, schema, names)
    return tuple([index for index in lost if not await recreate(refold.connection, schema, index)])


async def _fold_to_head(refold: Refold, schema: str) -> int:
    """Fold up to the head, and at least as far as the live tables are; return the position."""
    cursor = await _execute(refold.connection, _MAX_POSITION, schema, (list(refold.projections),))
    row = await cursor.fetchone()
    assert row is not None
    position: int = max(row[0], *refold.positions.values())
    await refold.fold_to(dict.fromkeys(refold.projections, position))
    return position


async def _execute(
    connection: Connection, statement: LiteralString, schema: str, parameters: Sequence[Any] = ()
) -> AsyncCursor[Any]:
    query = sql.SQL(statement).format(
        projections=sql.Identifier(schema, "projections"),
        events=sql.Identifier(schema, "events"),
        snapshots=sql.Identifier(schema, "snapshots"),
    )
    return await connection.execute(query, parameters)
