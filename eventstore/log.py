"""The log itself: lock it, append at its head, and read on from a position (`lookup` finds events)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString

from psycopg import AsyncClientCursor, AsyncCursor

from eventstore.chain import IS_ON_A_CLOCK
from eventstore.connection import record_lock_wait, recording_failed_lock_wait, reusable_cursor
from eventstore.errors import ClockDrifted, HeadMoved, LogReplaced
from eventstore.queries import one_value
from eventstore.recorded import EMPTY_LOG, Head, MalformedRow, Recorded, malformed_row_of, recorded_of
from eventstore.standby import requiring_standby_confirmation
from eventstore.translation import translating

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from psycopg.rows import RowMaker

    from eventstore.connection import Connection

PAGE_EVENTS = 5_000
"""How many events a reader takes at once: enough to be fast, few enough to stay below a few MB."""

CHUNK_EVENTS = 100
"""How many events a streamed query fetches at once: never more than fit into memory."""

COLUMNS: LiteralString = (
    "position, id::text AS id, stream, version, type, schema_version, data::text AS data, actor, caused_by,"
    " correlation_id, idempotency_key, recorded_at, hash"
)
"""The columns of `events` that make a `Recorded`."""

# A malformed row is read as far as possible, with its time as text.
_IS_MALFORMED: LiteralString = (
    "((id, stream, version, type, schema_version, data::text, actor, correlation_id, hash) IS NOT NULL"
    f" AND {IS_ON_A_CLOCK}) IS NOT TRUE"
)
_ANY_ROW: LiteralString = (
    COLUMNS.replace("recorded_at", f"CASE WHEN {IS_ON_A_CLOCK} THEN recorded_at END AS recorded_at")
    + f", {_IS_MALFORMED}, recorded_at::text"
)
_LAST_POSITION = 2**63 - 1
_SEPARATOR = "\x1f"
_APPEND = f"SELECT appended, head, clock, waited FROM append_events({', '.join(['%s'] * 15)})"
# Behind a pooler, consecutive statements can reach different servers, with different logs.
_EXPECTED_STILL = "CASE WHEN (SELECT hash FROM events WHERE position = %s) = %s THEN %s ELSE -1 END"
_APPEND_IF_SAME = _APPEND.replace("%s", _EXPECTED_STILL, 1)
_READ_AFTER = f"SELECT {COLUMNS} FROM events WHERE position > %s ORDER BY position LIMIT %s"
_CLOCK = "SELECT clock_timestamp()"
_HEAD_POSITION = "SELECT coalesce(max(position), 0) FROM events"
_LAST = f"SELECT {COLUMNS} FROM events ORDER BY position DESC LIMIT 1"

# Each of these is sent as one message: a process that is suspended in the middle of sending cannot leave
# the server waiting with the lock held, which none of its timeouts would end (with a pipeline it could).
# statement_timestamp() is when the message arrived, so the difference is the wait for the lock.
_LOCK_WAIT = "SELECT extract(epoch FROM clock_timestamp() - statement_timestamp())::double precision"
_LOCK_AND_READ = f"BEGIN; SELECT lock_log(); {_LOCK_WAIT}; {_READ_AFTER}; {_CLOCK}"


async def append(
    connection: Connection,
    batch: Sequence[Recorded],
    decided_at: datetime,
    *,
    commit: bool = False,
    after: Head = EMPTY_LOG,
) -> datetime:
    """Append a batch that was decided at the head just before it, durably, in one round trip.

    Args:
        connection: in autocommit mode, or in the transaction that `lock_and_read` began.
        batch: consecutive events with one `recorded_at`; the first one's position minus one is the head
            that they were decided at.
        decided_at: the database's clock as the decisions assumed it.
        commit: whether to commit the transaction that `lock_and_read` began.
        after: the head, if the connection may have reached a different server; nothing is appended to a
            different log.

    Returns:
        The database's clock.

    Raises:
        HeadMoved: another writer appended in between; nothing was stored.
        ClockDrifted: `decided_at` is more than a second off; nothing was stored.
        LogReplaced: the log ends there, but with a different event; nothing was stored.
        StoreUnavailable: the connection broke, or no standby has confirmed the commit; whether the batch is
            in the log, and stays there, is unknown.
        StoreRefused, StoreBusy: nothing was stored.
    """
    expected = batch[0].position - 1
    parameters = (expected, decided_at, batch[0].recorded_at, len(batch), *_column_texts(batch))
    query: LiteralString = _APPEND
    if after.position:
        query, parameters = _APPEND_IF_SAME, (after.position, after.hash, *parameters)
    with translating(), requiring_standby_confirmation(connection), recording_failed_lock_wait(connection):
        if commit:
            cursor: AsyncCursor[Any] = AsyncClientCursor(connection)
            await cursor.execute(f"{query}; COMMIT", parameters)
        else:
            cursor = reusable_cursor(connection)
            await cursor.execute(query, parameters, prepare=True, binary=True)
        row = await cursor.fetchone()
    assert row is not None
    appended, head, clock, waited = row
    if not commit:
        record_lock_wait(connection, waited)
    if not appended:
        if head != expected:
            raise HeadMoved(head)
        if after.position and abs(clock - decided_at) <= timedelta(seconds=1):
            raise LogReplaced(f"it has a different event at position {head}")
        raise ClockDrifted(f"decided at {decided_at.isoformat()}, the database says {clock.isoformat()}")
    return clock  # type: ignore[no-any-return]


def _column_texts(batch: Sequence[Recorded]) -> tuple[str | bytes, ...]:
    """Return the columns of a batch as `append_events` takes them."""
    columns = list(zip(*batch, strict=True))
    _, ids, streams, versions, types, schemas, datas, actors, causes, correlations, keys, _, hashes = (
        columns
    )
    return (
        _SEPARATOR.join(ids),
        _SEPARATOR.join(streams),
        _SEPARATOR.join(map(str, versions)),
        _SEPARATOR.join(types),
        _SEPARATOR.join(map(str, schemas)),
        _SEPARATOR.join(datas),
        _SEPARATOR.join(actors),
        _SEPARATOR.join(["" if cause is None else str(cause) for cause in causes]),
        _SEPARATOR.join(correlations),
        _SEPARATOR.join([key or "" for key in keys]),
        b"".join(hashes),
    )


async def lock(connection: Connection) -> None:
    """Take the log's lock for the rest of the transaction. Read the head only afterwards."""
    with translating():
        await connection.execute("SELECT lock_log()", prepare=True)


async def lock_and_read(connection: Connection, position: int) -> tuple[list[Recorded], datetime]:
    """Begin a transaction that holds the log's lock, in one round trip.

    The statements are sent together, but the server runs them one after another, so the page shows the log
    as it is under the lock.

    Returns:
        The first page after `position`, and the database's clock.
    """
    with translating(), recording_failed_lock_wait(connection):
        cursor = AsyncClientCursor(connection)
        await cursor.execute(_LOCK_AND_READ, (position, PAGE_EVENTS))
        for _ in ("BEGIN", "lock_log"):
            cursor.nextset()
        waited = await cursor.fetchone()
        cursor.nextset()
        page = [recorded_of(row) for row in await cursor.fetchall()]
        cursor.nextset()
        row = await cursor.fetchone()
    assert row is not None
    assert waited is not None
    record_lock_wait(connection, waited[0])
    return page, row[0]


async def clock(connection: Connection) -> datetime:
    """Return the current time of the database's clock."""
    return await one_value(connection, _CLOCK, prepare=True)  # type: ignore[no-any-return]


async def head(connection: Connection) -> Head:
    """Return the head of the log."""
    rows = await select(connection, _LAST, ())
    return Head(rows[0].position, rows[0].hash, rows[0].recorded_at) if rows else EMPTY_LOG


async def head_position(connection: Connection) -> int:
    """Return the position of the last event; 0 for an empty log."""
    return await one_value(connection, _HEAD_POSITION, prepare=True)  # type: ignore[no-any-return]


async def read_after(connection: Connection, position: int, limit: int = PAGE_EVENTS) -> list[Recorded]:
    """Return the next events after `position`, at most `limit`, in order."""
    return await select(connection, _READ_AFTER, (position, limit))


async def iterate_rows(
    connection: Connection, after: int, upto: int | None
) -> AsyncGenerator[Recorded | MalformedRow, None]:
    """Yield the log row by row, as of the first read, in bounded memory.

    Args:
        connection: to read on, and for nothing else meanwhile; without timeouts.
        after: the position to start after.
        upto: the last position wanted; None for all.
    """
    query = f"SELECT {_ANY_ROW} FROM events WHERE position > %s AND position <= %s ORDER BY position"
    last = _LAST_POSITION if upto is None else upto
    with translating():
        async with AsyncCursor(connection) as cursor:
            async for *values, is_malformed, time in cursor.stream(
                query, (after, last), binary=True, size=CHUNK_EVENTS
            ):
                yield (
                    malformed_row_of([*values[:-2], time, values[-1]])
                    if is_malformed
                    else recorded_of(values)
                )


async def select(
    connection: Connection, query: LiteralString, parameters: Sequence[Any] | Mapping[str, Any]
) -> list[Recorded]:
    """Return the events that a query of `COLUMNS` finds, in its order."""
    with translating():
        async with AsyncCursor(connection, row_factory=_recorded_row) as cursor:
            await cursor.execute(query, parameters, prepare=True, binary=True)
            return await cursor.fetchall()


def _recorded_row(_: AsyncCursor[Any]) -> RowMaker[Recorded]:
    return recorded_of
