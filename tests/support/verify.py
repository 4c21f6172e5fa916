"""Checks that the log is sound and that the tables are a fold of it.

Both checks read one snapshot, so they can run at any time, also under load.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from psycopg import sql

from eventstore import chain, codec, log, sealing
from eventstore.connection import connect
from eventstore.recorded import GENESIS_HASH
from projections import PROJECTIONS, storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from projections.projection import K, Projection, R, Rows, Table


async def assert_log_is_sound(dsn: str, schema: str = "squad") -> list[Recorded]:
    """Fail unless positions, versions, times, ids and hashes are valid; return the log, decrypted."""
    async with _snapshot(dsn, schema) as connection:
        events = await _log_up_to(connection, None)
        decrypted = await sealing.reveal(connection, events)
    assert [event.position for event in events] == list(range(1, len(events) + 1)), "positions have gaps"
    versions: dict[str, int] = {}
    for event in events:
        expected = versions.get(event.stream, 0) + 1
        assert event.version == expected, f"{event.stream} has no version {expected}: {event}"
        versions[event.stream] = event.version
    for earlier, later in pairwise(events):
        assert earlier.recorded_at <= later.recorded_at, f"time goes backwards at {later.position}"
    assert len({event.id for event in events}) == len(events), "an event is in the log twice"
    chain.verify(GENESIS_HASH, events)
    return decrypted


async def assert_tables_equal_fold(dsn: str, schema: str = "squad") -> int:
    """Fail unless every read table equals, row for row, the fold of the log by its projection.

    Each table is compared as of its own position. To expect it to be up to date, wait for
    `projected_to_head` first.

    Returns:
        The number of rows compared.
    """
    async with _snapshot(dsn, schema) as connection:
        positions = await _positions(connection)
        stored = await _log_up_to(connection, max(positions.values(), default=0))
        events = await sealing.reveal(connection, stored)
        compared = 0
        for projection in PROJECTIONS:
            folded = fold(projection, events[: positions.get(projection.name, 0)])
            for table in projection.tables:
                rows = await storage.select(connection, table, sql.SQL(""), {})
                compared += _assert_same_rows(table, rows, folded[table.name])
    return compared


async def projected_to_head(dsn: str, schema: str = "squad") -> bool:
    """Whether every projection has applied the log's last event; for `eventually`."""
    async with _snapshot(dsn, schema) as connection:
        positions = await _positions(connection)
        head = await log.head_position(connection)
    return set(positions) == {projection.name for projection in PROJECTIONS} and all(
        position == head for position in positions.values()
    )


def fold(projection: Projection, events: Iterable[Recorded]) -> dict[str, dict[Any, Any]]:
    """The fold of events by a projection: its tables' rows by key."""
    view = _Memory(projection.tables)
    for recorded in events:
        projection.apply(view, codec.decode(recorded), recorded)
    return view.tables


class _Memory:
    """A view with all rows in dictionaries."""

    def __init__(self, tables: Iterable[Table[Any, Any]]) -> None:
        self.tables: dict[str, dict[Any, Any]] = {table.name: {} for table in tables}

    def rows(self, table: Table[K, R], /) -> Rows[K, R]:
        return MemoryRows(self.tables[table.name])


class MemoryRows:
    """A table's rows in a dictionary, for a projection."""

    def __init__(self, rows: dict[Any, Any]) -> None:
        self._rows = rows

    def get(self, key: Any, /) -> Any:
        return self._rows.get(key)

    def put(self, key: Any, row: Any, /) -> None:
        self._rows[key] = row


def _assert_same_rows(table: Table[Any, Any], stored: list[Any], folded: dict[Any, Any]) -> int:
    by_key = {table.key_of(row): row for row in stored}
    assert by_key.keys() == folded.keys(), f"{table.name} has missing or extra rows"
    for key, row in folded.items():
        assert by_key[key] == row, f"{table.name} differs at {key!r}"
    return len(folded)


@asynccontextmanager
async def _snapshot(dsn: str, schema: str) -> AsyncIterator[Connection]:
    async with await connect(dsn, schema, name="squad verification") as connection:
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield connection
        await connection.execute("ROLLBACK")


async def _positions(connection: Connection) -> dict[str, int]:
    return dict(await (await connection.execute("SELECT name, position FROM projections")).fetchall())


async def _log_up_to(connection: Connection, last: int | None) -> list[Recorded]:
    events: list[Recorded] = []
    while page := await log.read_after(connection, events[-1].position if events else 0):
        events += page
        if last is not None and len(events) >= last:
            return events[:last]
    return events
