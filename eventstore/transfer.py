"""Export the log to a file, and import a file into a new squad; both event by event, in bounded memory."""

from __future__ import annotations

import re
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

import psycopg
from psycopg import errors as pg

from eventstore import keys, log
from eventstore.chain import hash_of
from eventstore.cloudevents import cloud_event_line
from eventstore.errors import ImportRefused, LogNotUnderstood, StoreBusy, StoreRefused, StoreUnavailable
from eventstore.exchange import end_line, event_line, header_line, key_line
from eventstore.ids import NIL
from eventstore.importing import ImportedLog
from eventstore.keys import StoredKey
from eventstore.recorded import EMPTY_LOG, Head, MalformedRow, Recorded
from eventstore.translation import translated, translating
from eventstore.verification import REPORT_EVERY_EVENTS, by_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator

    from eventstore.connection import Connection

_COPY: LiteralString = (
    "COPY events (position, id, stream, version, type, schema_version, data, actor, caused_by,"
    " correlation_id, idempotency_key, recorded_at, hash) FROM STDIN"
)
_IS_NEW: LiteralString = (
    "SELECT NOT EXISTS (SELECT FROM events) AND NOT EXISTS (SELECT FROM projections WHERE position > 0)"
    " AND NOT EXISTS (SELECT FROM snapshots)"
)
SLICE_LINES = 100
"""How many lines are validated before they are sent."""

_NOTIFY: LiteralString = "SELECT pg_notify(log_channel(), %s)"
_NULL = "\\N"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_NEEDS_ESCAPE = re.compile(r"[\\\t\n\r]")
_COPIED_LINE = re.compile(r"COPY events, line (\d+)")


class Exported(NamedTuple):
    """What was exported."""

    events: int
    end: Head
    broken_at: int | None
    """The first position whose hash does not match its content and the previous hash, or whose row is
    malformed; such a file is evidence, but cannot be imported."""


async def export_log(
    connection: Connection,
    write: Callable[[bytes], object],
    *,
    after: int = 0,
    until: int | None = None,
    cloud_events: bool = False,
    with_keys: bool = True,
    report: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write the log line by line, as of when the export begins.

    Args:
        connection: without timeouts.
        write: is called with each line.
        after: the position to start after; it must be in the log.
        until: the last position wanted; None for all.
        cloud_events: one CloudEvent a line, instead of what `import_log` accepts.
        with_keys: whether to export the keys of sealed payloads, if the file begins with the first event.
        report: is called now and then with the number of events written.
    """
    async with connection.transaction():
        # The events and the keys must be of the same moment.
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return await _export(
            connection, write, after, until, cloud_events, with_keys and not (after or cloud_events), report
        )


async def _export(
    connection: Connection,
    write: Callable[[bytes], object],
    after: int,
    until: int | None,
    cloud_events: bool,  # noqa: FBT001 - private, and called once
    with_keys: bool,  # noqa: FBT001
    report: Callable[[int], None],
) -> Exported:
    first = await _row_at(connection, 1)
    before = await _row_at(connection, after) if after else None
    start = _head_of(before) if before else EMPTY_LOG
    squad = first.id if first else None
    line = partial(cloud_event_line, squad or NIL) if cloud_events else event_line
    if not cloud_events:
        write(header_line(squad, start))
    if with_keys:
        async for page in keys.export_keys(connection):
            for key in page:
                write(key_line(key))
    events, end, broken_at = 0, start, None
    async for recorded in log.iterate_rows(connection, after, until):
        if broken_at is None and (
            recorded.position != end.position + 1
            or isinstance(recorded, MalformedRow)
            or hash_of(end.hash, recorded) != recorded.hash
            or recorded.idempotency_key == ""  # hashed as if there were none, and refused by an import
        ):
            broken_at = recorded.position
        write(line(recorded))
        events += 1
        end = _head_of(recorded)
        if events % REPORT_EVERY_EVENTS == 0:
            report(events)
    report(events)
    if not cloud_events:
        write(end_line(events, end))
    return Exported(events, end, broken_at)


async def _row_at(connection: Connection, position: int) -> Recorded | MalformedRow | None:
    rows = [row async for row in log.iterate_rows(connection, position - 1, position)]
    return rows[0] if rows else None


def _head_of(row: Recorded | MalformedRow) -> Head:
    time = None if isinstance(row, MalformedRow) else row.recorded_at
    return Head(row.position, row.hash or b"", time)


async def import_log(
    connection: Connection,
    chunks: AsyncIterable[Iterable[bytes]],
    report: Callable[[int], None] = lambda _: None,
    fill: Callable[[int], Awaitable[None]] | None = None,
) -> Head:
    """Import a whole log into a new squad, or nothing.

    Positions, times and hashes stay the same; every line is checked before it is sent. The log's lock is
    held from the first line to the last, so that only one of two concurrent imports succeeds.

    Args:
        connection: in autocommit mode, without timeouts.
        chunks: the lines of a file that `export_log` wrote, in portions of any size.
        report: is called now and then with the number of events read.
        fill: fills the read tables in the same transaction; is called with the last position.

    Returns:
        The new head of the log.

    Raises:
        ImportRefused: the squad is not new, another process is writing to it, a line is not valid, or an
            event cannot be applied to the tables; nothing was stored.
        StoreUnavailable: the connection broke; everything was stored or nothing.
    """
    imported, chunks = ImportedLog(await log.clock(connection)), aiter(chunks)
    await _require_new(connection)
    try:
        async with connection.transaction():
            await _lock(connection)
            await _require_new(connection)
            first = await _import_keys(connection, imported, chunks)
            async with connection.cursor().copy(_COPY) as copy:
                await copy.write("".join(map(_copy_line, first)))
                async for lines in chunks:
                    for slice_ in _slices(lines):
                        items = map(imported.validate_line, slice_)
                        rows = [_copy_line(item) for item in items if isinstance(item, Recorded)]
                        await copy.write("".join(rows))
                    report(imported.head.position)
                imported.finish()
            await _check_whole_streams(connection, imported)
            if fill is not None:
                await fill(imported.head.position)
            await connection.execute(_NOTIFY, (str(imported.head.position),))
    except LogNotUnderstood as error:
        raise ImportRefused(
            f"line {imported.line_of(error.position or 1)}: the tables cannot apply it: {error}"
        ) from error
    except pg.FeatureNotSupported as error:
        # COPY FROM is not supported with row-level security, which applies to all but the owner.
        raise ImportRefused("only the owner of the squad's schema can import") from error
    except psycopg.Error as error:
        found = translated(error)
        # A server that ends the session or is out of space also names a line.
        is_no_fault_of_the_line = isinstance(found, StoreBusy | StoreUnavailable)
        if not is_no_fault_of_the_line and (number := _refused_line(error, imported)):
            words = (error.diag.message_primary or str(error), error.diag.message_detail or "")
            raise ImportRefused(f"line {number}: {' '.join(words).strip()}") from error
        raise found from error
    await connection.execute("ANALYZE events")
    return imported.head


def _slices(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Split lines so that a socket buffers a slice: the server works while the next slice is validated."""
    rest = iter(lines)
    while some := list(islice(rest, SLICE_LINES)):
        yield some


async def _import_keys(
    connection: Connection, imported: ImportedLog, chunks: AsyncIterator[Iterable[bytes]]
) -> list[Recorded]:
    """Import the keys, which come first; return the events of the portion in which they begin."""
    async for lines in chunks:
        items = list(map(imported.validate_line, lines))
        try:
            await keys.import_keys(connection, [item for item in items if isinstance(item, StoredKey)])
        except StoreRefused as error:
            raise ImportRefused(f"a key up to line {imported.lines}: {error}") from error
        if events := [item for item in items if isinstance(item, Recorded)]:
            return events
    return []


async def _lock(connection: Connection) -> None:
    try:
        await log.lock(connection)
    except StoreBusy as error:
        raise ImportRefused("another process is writing to this squad") from error


async def _require_new(connection: Connection) -> None:
    with translating():
        row: Any = await (await connection.execute(_IS_NEW)).fetchone()
        if not row[0]:
            head = await log.head_position(connection)
            raise ImportRefused(f"the squad is not new, its log ends at position {head}")


def _refused_line(error: psycopg.Error, imported: ImportedLog) -> int | None:
    """Return the number of the line that the database refused."""
    found = _COPIED_LINE.search(error.diag.context or "")
    return imported.line_of(int(found[1])) if found else None


def _copy_line(recorded: Recorded) -> str:
    """Return the row in the format of COPY; the driver would need twice the time for the same."""
    (
        position,
        id_,
        stream,
        version,
        type_,
        schema_version,
        data,
        actor,
        cause,
        correlation_id,
        key,
        at,
        hash_,
    ) = recorded
    texts = [stream, type_, data, actor, correlation_id, key or ""]
    if _NEEDS_ESCAPE.search("".join(texts)):
        stream, type_, data, actor, correlation_id, key = (text.translate(_ESCAPES) for text in texts)
    return (
        f"{position}\t{id_}\t{stream}\t{version}\t{type_}\t{schema_version}\t{data}\t{actor}\t"
        f"{_NULL if cause is None else cause}\t{correlation_id}\t{key or _NULL}\t{at.isoformat()}\t"
        f"\\\\x{hash_.hex()}\n"
    )


async def _check_whole_streams(connection: Connection, imported: ImportedLog) -> None:
    await connection.execute("SET LOCAL work_mem = '64MB'")
    streams = await by_stream(connection)
    if streams.position is not None:
        raise ImportRefused(f"line {imported.line_of(streams.position)}: it {streams.says}")
