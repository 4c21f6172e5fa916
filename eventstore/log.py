"""The log itself: lock it, append at its head, read it by position, by stream, by type and time."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from psycopg import AsyncClientCursor, AsyncCursor

from eventstore.connection import kept_cursor, note_lock_wait, noting_a_vain_wait
from eventstore.errors import ClockDrifted, HeadMoved, LogReplaced
from eventstore.recorded import EMPTY_LOG, Head, Recorded, recorded_of
from eventstore.standby import waiting_to_the_end
from eventstore.translation import translating

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from psycopg.rows import RowMaker

    from eventstore.connection import Connection

PAGE_EVENTS = 5_000
"""How many events a reader takes at once: large enough to be fast, small enough to stay below a few MB."""

CHUNK_EVENTS = 100
"""How many events travel at once where a statement is read on and on: never more than fit into memory."""

COLUMNS: LiteralString = (
    "position, id::text AS id, stream, version, type, schema_version, data::text AS data, actor, caused_by,"
    " correlation_id, idempotency_key, recorded_at, hash"
)
"""What is selected of `events` to make a `Recorded` of it."""

_LAST_POSITION = 2**63 - 1
_SEPARATOR = "\x1f"
_APPEND = f"SELECT appended, head, clock, waited FROM append_events({', '.join(['%s'] * 15)})"
# Behind a pooler the server can be another one from one statement to the next, with another log.
_EXPECTED_STILL = "CASE WHEN (SELECT hash FROM events WHERE position = %s) = %s THEN %s ELSE -1 END"
_APPEND_IF_SAME = _APPEND.replace("%s", _EXPECTED_STILL, 1)
_READ_AFTER = f"SELECT {COLUMNS} FROM events WHERE position > %s ORDER BY position LIMIT %s"
_READ_STREAMS = f"SELECT {COLUMNS} FROM events WHERE stream = ANY(%s) ORDER BY position"
# Each from its end: a stream can be as long as the log.
_LAST_VERSIONS = """
    SELECT asked.stream, last.version FROM unnest(%s::text[]) AS asked (stream) CROSS JOIN LATERAL (
        SELECT version FROM events e WHERE e.stream = asked.stream AND position <= %s
        ORDER BY version DESC LIMIT 1
    ) AS last
"""
_CLOCK = "SELECT clock_timestamp()"
_LAST = f"SELECT {COLUMNS} FROM events ORDER BY position DESC LIMIT 1"

# Each of these travels as one message, so that a process which stands still in the middle of sending cannot
# leave the server waiting with the lock held, where none of its timeouts would end that (a pipeline could).
# The time of a message is that of its arrival, so what has passed since then is what the lock took.
_WAITED = "SELECT extract(epoch FROM clock_timestamp() - statement_timestamp())::double precision"
_LOCK_AND_READ = f"BEGIN; SELECT lock_log(); {_WAITED}; {_READ_AFTER}; {_CLOCK}"


class Filter(NamedTuple):
    """Which events a reader wants. None: any. Times are bounds on `recorded_at`, `until` exclusive."""

    type: str | None = None
    stream: str | None = None
    agent: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def append(
    connection: Connection,
    batch: Sequence[Recorded],
    decided_at: datetime,
    *,
    commit: bool = False,
    after: Head = EMPTY_LOG,
) -> datetime:
    """Appends a batch that was decided at the head just before it, durably, in one round trip.

    Args:
        connection: in autocommit mode, or in the transaction that `lock_and_read` began.
        batch: consecutive events with one `recorded_at`; the first one's position minus one is the head
            that they were decided at.
        decided_at: the database's clock as the decisions believed it to be.
        commit: ends the transaction that `lock_and_read` began.
        after: the head, where the server may be another one by now; nothing is appended to another log.

    Returns:
        The database's clock.

    Raises:
        HeadMoved: somebody appended in between; nothing was stored.
        ClockDrifted: `decided_at` is more than a second off; nothing was stored.
        LogReplaced: the log ends there, but not with that event; nothing was stored.
        StoreUnavailable: the connection broke, or no standby has confirmed the commit; whether the batch is
            in the log, and stays there, is unknown.
        StoreRefused, StoreBusy: nothing was stored.
    """
    expected = batch[0].position - 1
    parameters = (expected, decided_at, batch[0].recorded_at, len(batch), *_joined(batch))
    query: LiteralString = _APPEND
    if after.position:
        query, parameters = _APPEND_IF_SAME, (after.position, after.hash, *parameters)
    with translating(), waiting_to_the_end(connection), noting_a_vain_wait(connection):
        if commit:
            cursor: AsyncCursor[Any] = AsyncClientCursor(connection)
            await cursor.execute(f"{query}; COMMIT", parameters)
        else:
            cursor = kept_cursor(connection)
            await cursor.execute(query, parameters, prepare=True, binary=True)
        row = await cursor.fetchone()
    assert row is not None
    appended, head, clock, waited = row
    if not commit:
        note_lock_wait(connection, waited)
    if not appended:
        if head != expected:
            raise HeadMoved(head)
        if after.position and abs(clock - decided_at) <= timedelta(seconds=1):
            raise LogReplaced(f"it has another event at position {head}")
        raise ClockDrifted(f"decided at {decided_at.isoformat()}, the database says {clock.isoformat()}")
    return clock  # type: ignore[no-any-return]


def _joined(batch: Sequence[Recorded]) -> tuple[str | bytes, ...]:
    """The columns of a batch as `append_events` takes them."""
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
    """Takes the log's lock for the rest of the transaction. Read the head only after it."""
    with translating():
        await connection.execute("SELECT lock_log()", prepare=True)


async def lock_and_read(connection: Connection, position: int) -> tuple[list[Recorded], datetime]:
    """Begins a transaction that holds the log's lock, in one round trip.

    The statements go out together but are read one after another by the server, so the page shows the log
    as it is under the lock.

    Returns:
        The first page after `position`, and the database's clock.
    """
    with translating(), noting_a_vain_wait(connection):
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
    note_lock_wait(connection, waited[0])
    return page, row[0]


async def clock(connection: Connection) -> datetime:
    """The database's clock, now."""
    with translating():
        row = await (await connection.execute(_CLOCK, prepare=True)).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


async def head(connection: Connection) -> Head:
    """Where the log ends."""
    rows = await _recorded(connection, _LAST, ())
    return Head(rows[0].position, rows[0].hash, rows[0].recorded_at) if rows else EMPTY_LOG


async def head_position(connection: Connection) -> int:
    """The position of the last event; 0 in an empty log."""
    with translating():
        row = await (
            await connection.execute("SELECT coalesce(max(position), 0) FROM events", prepare=True)
        ).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


async def read_after(connection: Connection, position: int, limit: int = PAGE_EVENTS) -> list[Recorded]:
    """The next events after `position`, at most `limit`, in order."""
    return await _recorded(connection, _READ_AFTER, (position, limit))


async def each(
    connection: Connection, after: int = 0, upto: int | None = None
) -> AsyncGenerator[Recorded, None]:
    """The log event by event, as it is when the first is read, however many and however large they are.

    Args:
        connection: to read on, and for nothing else meanwhile; without limits of time.
        after: the position to begin behind.
        upto: the last position wanted; None for all that is there.
    """
    query = f"SELECT {COLUMNS} FROM events WHERE position > %s AND position <= %s ORDER BY position"
    last = _LAST_POSITION if upto is None else upto
    with translating():
        async with AsyncCursor(connection, row_factory=_recorded_row) as cursor:
            async for recorded in cursor.stream(query, (after, last), binary=True, size=CHUNK_EVENTS):
                yield recorded


async def read_streams(connection: Connection, streams: Sequence[str]) -> list[Recorded]:
    """Every event of the named streams, in the order of the log."""
    return await _recorded(connection, _READ_STREAMS, (list(streams),))


async def read_stream(
    connection: Connection,
    stream: str,
    types: Sequence[str] = (),
    *,
    after: int = 0,
    upto: int | None = None,
    limit: int,
    newest_first: bool = False,
) -> list[Recorded]:
    """Some events of one stream, in its order or against it.

    Args:
        connection: to read on.
        stream: whose events.
        types: only of these types; none named: of any.
        after: only behind this position.
        upto: only up to this position.
        limit: how many at most.
        newest_first: begins at the stream's end.
    """
    clauses = ["stream = %(stream)s", "position > %(after)s"]
    if upto is not None:
        clauses.append("position <= %(upto)s")
    if types:
        clauses.append("type = ANY(%(types)s)")
    # By version, not by position: then the stream's own key is the way, and not the whole log's.
    order = "version DESC" if newest_first else "version"
    query = f"SELECT {COLUMNS} FROM events WHERE {' AND '.join(clauses)} ORDER BY {order} LIMIT %(limit)s"
    parameters = {"stream": stream, "types": list(types), "after": after, "upto": upto, "limit": limit}
    return await _recorded(connection, query, parameters)


async def read_kinds(connection: Connection, types: Sequence[str], after: int, upto: int) -> list[Recorded]:
    """The events of these types behind `after` up to `upto`, in order. The caller bounds the stretch."""
    query = (
        f"SELECT {COLUMNS} FROM events WHERE position > %s AND position <= %s AND type = ANY(%s)"
        " ORDER BY position"
    )
    return await _recorded(connection, query, (after, upto, list(types)))


async def read_positions(connection: Connection, positions: Sequence[int]) -> list[Recorded]:
    """The events at these positions, as far as there are any, in the order of the log."""
    query = f"SELECT {COLUMNS} FROM events WHERE position = ANY(%s) ORDER BY position"
    return await _recorded(connection, query, (list(positions),))


async def read_one(connection: Connection, position: int) -> Recorded | None:
    """The event at `position`, or None where the log has none there."""
    rows = await _recorded(connection, f"SELECT {COLUMNS} FROM events WHERE position = %s", (position,))
    return rows[0] if rows else None


async def read_filtered(connection: Connection, after: int, limit: int, wanted: Filter) -> list[Recorded]:
    """The next events after `after` that pass the filter, at most `limit`, in order."""
    clauses = ["position > %(after)s"]
    if wanted.type is not None:
        clauses.append("type = %(type)s")
    if wanted.stream is not None:
        clauses.append("stream = %(stream)s")
    if wanted.agent is not None:
        clauses.append("agent = %(agent)s")
    if wanted.since is not None:
        # position_at is inclusive, so the moment just before `since` bounds the ones we do not want.
        clauses.append("position > position_at(%(since)s::timestamptz - interval '1 microsecond')")
    if wanted.until is not None:
        clauses.append("position <= position_at(%(until)s::timestamptz - interval '1 microsecond')")
    query = f"SELECT {COLUMNS} FROM events WHERE {' AND '.join(clauses)} ORDER BY position LIMIT %(limit)s"
    return await _recorded(connection, query, {**wanted._asdict(), "after": after, "limit": limit})


async def kinds(connection: Connection) -> list[str]:
    """The types of all events there are; each is looked up once, however often it occurs."""
    query = (
        "WITH RECURSIVE kinds (type) AS (SELECT min(type) FROM events UNION ALL"
        " SELECT (SELECT min(e.type) FROM events e WHERE e.type > kinds.type) FROM kinds"
        " WHERE kinds.type IS NOT NULL)"
        " SELECT type FROM kinds WHERE type IS NOT NULL"
    )
    with translating():
        return [row[0] for row in await (await connection.execute(query, prepare=True)).fetchall()]


async def find_ids(connection: Connection, ids: Sequence[str]) -> dict[str, int]:
    """Positions of those of the given event ids that are in the log."""
    query = "SELECT id::text, position FROM events WHERE id = ANY(%s::uuid[])"
    with translating():
        return dict(await (await connection.execute(query, (list(ids),))).fetchall())


async def position_at(connection: Connection, moment: datetime) -> int:
    """The last position recorded at or before `moment`; 0 where there is none."""
    with translating():
        row = await (await connection.execute("SELECT position_at(%s)", (moment,))).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


async def versions(connection: Connection, streams: Sequence[str], upto: int) -> dict[str, int]:
    """The last version of each named stream as of position `upto`; streams without events are absent."""
    with translating():
        return dict(await (await connection.execute(_LAST_VERSIONS, (list(streams), upto))).fetchall())


async def _recorded(
    connection: Connection, query: LiteralString, parameters: Sequence[Any] | Mapping[str, Any]
) -> list[Recorded]:
    with translating():
        async with AsyncCursor(connection, row_factory=_recorded_row) as cursor:
            await cursor.execute(query, parameters, prepare=True, binary=True)
            return await cursor.fetchall()


def _recorded_row(_: AsyncCursor[Any]) -> RowMaker[Recorded]:
    return recorded_of
