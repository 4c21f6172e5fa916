"""Rebuilds read tables from the log beside the live ones, and puts the result in their place.

The log is folded into temporary tables (`projections.refold`) while the service runs: nobody waits for it,
and nobody sees it. Then, in one transaction, the projector is held up, the last events are folded, and each
live row that is not what the log says is replaced, removed or added (`projections.replacing`). Readers go
on reading the old rows until that transaction commits, and read the new ones from then on, in whatever
snapshot, view or prepared statement: the tables themselves stay, with all that was granted on them or hangs
on them. Rows that are right already are not written again.

Only the read tables and `projections` are written, so nothing is sent or called again. Whoever is killed at
any moment leaves the live tables as they were, and nothing else behind.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from psycopg import sql

from eventstore import log
from eventstore.asking import one_value
from eventstore.definitions import unlike
from eventstore.errors import StoreBusy, TableUnlike
from eventstore.translation import translating
from projections import PROJECTIONS
from projections.indexes import Index, lost_indexes, make_again
from projections.refold import refolding
from projections.replacing import folded_rows, replace, survey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import AsyncCursor

    from eventstore.connection import Connection
    from projections.projection import Projection
    from projections.refold import Progress, Refold
    from projections.replacing import Survey

CLOSE_EVENTS = 500
"""So near to the log's head the rest may be folded while the projector waits."""

ALONE_WITHIN_SECONDS = 5.0
"""How long a replay waits for another one to end, such as one that was just killed."""

ATTEMPTS = 10
"""How often the swap is tried where somebody holds what it needs."""

_LOCK_MILLISECONDS = 2_000
_ASK_AGAIN_SECONDS = 0.1
_TRY_LOCK = "SELECT pg_try_advisory_lock('projections'::regclass::oid::integer, 3)"

_LOCK = "LOCK TABLE {projections} IN SHARE ROW EXCLUSIVE MODE"
_FURTHEST = """
    SELECT greatest((SELECT max(position) FROM {projections} WHERE name = ANY (%s)),
                    (SELECT coalesce(max(position), 0) FROM {events}))
"""
_ENTER = """
    INSERT INTO {projections} (name, fold_version, position) VALUES (%s, %s, %s)
    ON CONFLICT (name) DO UPDATE
    SET fold_version = EXCLUDED.fold_version, position = EXCLUDED.position,
        failed_position = NULL, error = NULL, updated_at = clock_timestamp()
"""
_NEXT_GENERATION = "UPDATE {projections} SET generation = (SELECT max(generation) + 1 FROM {projections})"


Changes = dict[str, tuple[int, int]]
"""How many rows of a table were written, and how many removed."""


class Replaced(NamedTuple):
    """What became of a table: how many rows it has, and how many of them had to be written or removed."""

    table: str
    rows: int
    written: int
    removed: int


class Rebuilt(NamedTuple):
    """Where the rebuilt projections are now, and what became of their tables."""

    position: int
    tables: tuple[Replaced, ...]
    lost: tuple[Index, ...]
    """Indexes that are not there, and that the role may not make again."""


async def rebuild(
    dsn: str,
    schema: str,
    projections: Sequence[Projection] = PROJECTIONS,
    *,
    progress: Progress | None = None,
) -> Rebuilt:
    """Makes the tables of these projections what the log says, while others read, write and append.

    Args:
        dsn: libpq connection string or URI of a primary server; the role must be the service's or the
            owner's, and may make temporary tables. A table that was dropped, its key or another index only
            the owner can make again.
        schema: the squad's Postgres schema.
        projections: whose tables; all of them, unless some are named.
        progress: told the position reached and the one to be reached, page by page.

    Raises:
        UnknownEventType, UnreadableEvent, LogNotUnderstood, LogBroken: the log cannot be folded; the tables
            are as they were.
        StoreBusy: another replay is under way, or somebody holds the tables; they are as they were. Or they
            were replaced, and it was the counting of their rows that somebody cancelled, or the making of
            an index that was lost.
        TableUnlike: the rows would not fit into a table; the tables are as they were.
        WritesRefused: it is no primary server; the tables are as they were.
        StoreUnavailable: the connection broke; the tables are as they were, or wholly replaced.
    """
    async with refolding(dsn, schema, projections, name="squad replay", progress=progress) as refold:
        await _check_tables(refold, schema)
        await _alone(refold.connection)
        await _approach(refold)
        await refold.analyze()
        with translating():
            found = await survey(refold.connection, schema, refold.tables())
        attempts = 1
        while True:
            await _approach(refold)
            try:
                position, changes = await _swap(refold, schema, found)
            except StoreBusy:
                attempts += 1
                if attempts > ATTEMPTS:
                    raise
            else:
                rows = await _counted(refold, schema, changes)
                return Rebuilt(position, rows, await _make_lost_indexes(refold, schema))


async def _check_tables(refold: Refold, schema: str) -> None:
    """Refuses tables that the rows would not fit into. One that is not there is made."""
    names = [table.name for table in refold.tables()]
    with translating():
        others = await unlike(refold.reader, schema, [*names, "projections"])
    if await one_value(refold.reader, "SELECT to_regclass('projections') IS NULL"):
        raise TableUnlike("projections is not there")
    for name, why in others.items():
        hint = "; once its owner has dropped it, a replay makes it anew" if name in names else ""
        raise TableUnlike(f"{name} {why}{hint}")


async def _alone(connection: Connection) -> None:
    """Takes the place of the one replay at a time, for the rest of the session."""
    deadline = monotonic() + ALONE_WITHIN_SECONDS
    while True:
        if await one_value(connection, _TRY_LOCK):
            return
        if monotonic() > deadline:
            raise StoreBusy("another replay is under way")
        await asyncio.sleep(_ASK_AGAIN_SECONDS)


async def _approach(refold: Refold) -> None:
    """Folds up to the log's head, again and again for as long as that comes closer to it."""
    distance: int | None = None
    while True:
        head = await log.head_position(refold.connection)
        left = head - min(refold.positions.values())
        if left <= CLOSE_EVENTS or (distance is not None and left >= distance):
            return
        await refold.to(dict.fromkeys(refold.projections, head))
        distance = left


async def _swap(refold: Refold, schema: str, found: Survey) -> tuple[int, Changes]:
    """Puts the folded rows in the live ones' place; says up to where. If it fails, nothing has happened."""
    connection = refold.connection
    with refold.undone_where_it_fails(), translating():
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}")
            # The projector begins with it as well, so that neither waits for rows that the other has.
            await _execute(connection, _LOCK, schema)
            position = await _fold_the_rest(refold, schema)
            changes = {
                table.name: await replace(connection, schema, table, found) for table in refold.tables()
            }
            for projection in refold.projections.values():
                await _execute(
                    connection, _ENTER, schema, (projection.name, projection.fold_version, position)
                )
            await _execute(connection, _NEXT_GENERATION, schema)
            # The first wakes whoever waits for the tables, the second a projector that has nothing to do.
            for channel in ("projections", "events"):
                await connection.execute("SELECT pg_notify(%s, %s)", (f"{schema}.{channel}", str(position)))
    return position, changes


async def _counted(refold: Refold, schema: str, changes: Changes) -> tuple[Replaced, ...]:
    """What became of each table. The swap has happened: if this fails, it must not be made again."""
    with translating():
        return tuple(
            [
                Replaced(
                    table.name, await folded_rows(refold.connection, schema, table), *changes[table.name]
                )
                for table in refold.tables()
            ]
        )


async def _make_lost_indexes(refold: Refold, schema: str) -> tuple[Index, ...]:
    """Makes those again that somebody dropped; says which ones the role may not make."""
    names = {table.name for table in refold.tables()}
    lost = await lost_indexes(refold.reader, schema, names)
    return tuple([index for index in lost if not await make_again(refold.connection, schema, index)])


async def _fold_the_rest(refold: Refold, schema: str) -> int:
    """Folds up to the head, and never less far than the live tables are; returns the position."""
    cursor = await _execute(refold.connection, _FURTHEST, schema, (list(refold.projections),))
    row = await cursor.fetchone()
    assert row is not None
    position: int = max(row[0], *refold.positions.values())
    await refold.to(dict.fromkeys(refold.projections, position))
    return position


async def _execute(
    connection: Connection, statement: LiteralString, schema: str, parameters: Sequence[Any] = ()
) -> AsyncCursor[Any]:
    query = sql.SQL(statement).format(
        projections=sql.Identifier(schema, "projections"), events=sql.Identifier(schema, "events")
    )
    return await connection.execute(query, parameters)
