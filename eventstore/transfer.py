"""The log out into a file, and from a file into a new squad; both event by event, in little memory."""

from __future__ import annotations

import re
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

import psycopg
from psycopg import errors as pg

from eventstore import keys, log
from eventstore.arriving import Arriving
from eventstore.chain import hash_of
from eventstore.cloudevents import cloud_event_line
from eventstore.errors import ImportRefused, LogNotUnderstood, StoreBusy, StoreRefused, StoreUnavailable
from eventstore.exchange import end_line, event_line, header_line, key_line
from eventstore.ids import NIL
from eventstore.keys import StoredKey
from eventstore.recorded import EMPTY_LOG, Head, Odd, Recorded
from eventstore.translation import translated, translating
from eventstore.verification import TELL_EVERY_EVENTS, by_stream

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
SENT_LINES = 100
"""How many lines are looked at before they are sent."""

_NOTIFY: LiteralString = "SELECT pg_notify(log_channel(), %s)"
_NULL = "\\N"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_IN_NEED_OF_ESCAPE = re.compile(r"[\\\t\n\r]")
_COPIED_LINE = re.compile(r"COPY events, line (\d+)")


class Exported(NamedTuple):
    """What went into a file."""

    events: int
    end: Head
    broken_at: int | None
    """The first position whose hash does not follow from what was read before it, or whose row is no event;
    such a file is evidence, and nothing that could be imported."""


async def export_log(
    connection: Connection,
    write: Callable[[bytes], object],
    *,
    after: int = 0,
    until: int | None = None,
    cloud_events: bool = False,
    with_keys: bool = True,
    tell: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Writes the log, as it is when the export begins, line by line.

    Args:
        connection: without limits of time.
        write: takes one line.
        after: the position to begin behind; it has to be in the log.
        until: the last position wanted; None for all.
        cloud_events: one CloudEvent a line, instead of what `import_log` takes.
        with_keys: whether the keys of sealed payloads go along, where the file begins with the first event.
        tell: is told now and then how many events were written.
    """
    async with connection.transaction():
        # The events are those of the same moment as the keys.
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return await _export(
            connection, write, after, until, cloud_events, with_keys and not (after or cloud_events), tell
        )


async def _export(
    connection: Connection,
    write: Callable[[bytes], object],
    after: int,
    until: int | None,
    cloud_events: bool,  # noqa: FBT001 - private, and called once
    with_keys: bool,  # noqa: FBT001
    tell: Callable[[int], None],
) -> Exported:
    first = await _row_at(connection, 1)
    before = await _row_at(connection, after) if after else None
    start = _head_of(before) if before else EMPTY_LOG
    squad = first.id if first else None
    line = partial(cloud_event_line, squad or NIL) if cloud_events else event_line
    if not cloud_events:
        write(header_line(squad, start))
    if with_keys:
        async for page in keys.read_out(connection):
            for key in page:
                write(key_line(key))
    events, end, broken_at = 0, start, None
    async for recorded in log.each(connection, after, until):
        if broken_at is None and (
            recorded.position != end.position + 1
            or isinstance(recorded, Odd)
            or hash_of(end.hash, recorded) != recorded.hash
            or recorded.idempotency_key == ""  # hashed as none, and no import takes it
        ):
            broken_at = recorded.position
        write(line(recorded))
        events += 1
        end = _head_of(recorded)
        if events % TELL_EVERY_EVENTS == 0:
            tell(events)
    tell(events)
    if not cloud_events:
        write(end_line(events, end))
    return Exported(events, end, broken_at)


async def _row_at(connection: Connection, position: int) -> Recorded | Odd | None:
    rows = [row async for row in log.each(connection, position - 1, position)]
    return rows[0] if rows else None


def _head_of(row: Recorded | Odd) -> Head:
    time = None if isinstance(row, Odd) else row.recorded_at
    return Head(row.position, row.hash or b"", time)


async def import_log(
    connection: Connection,
    chunks: AsyncIterable[Iterable[bytes]],
    tell: Callable[[int], None] = lambda _: None,
    fill: Callable[[int], Awaitable[None]] | None = None,
) -> Head:
    """Takes in a whole log, or nothing, into a squad that is new.

    Positions, times and hashes stay what they are; every line is checked before it is sent. The log's lock
    is held from the first line to the last, so that of two that begin a squad only one does.

    Args:
        connection: in autocommit mode, without limits of time.
        chunks: the lines of a file that `export_log` wrote, in portions of any size.
        tell: is told now and then how many events were read.
        fill: fills what follows from the log, in the same transaction; is told where it ends.

    Returns:
        Where the log ends now.

    Raises:
        ImportRefused: the squad is not new, or somebody else is just beginning it, or a line is not what it
            has to be, or nothing follows from it; nothing was stored.
        StoreUnavailable: the connection broke; all was stored or nothing.
    """
    arriving, portions = Arriving(await log.clock(connection)), aiter(chunks)
    await _must_be_new(connection)
    try:
        async with connection.transaction():
            await _lock(connection)
            await _must_be_new(connection)
            first = await _take_in_keys(connection, arriving, portions)
            async with connection.cursor().copy(_COPY) as copy:
                await copy.write("".join(map(_copied, first)))
                async for lines in portions:
                    for slice_ in _slices(lines):
                        taken = [item for item in map(arriving.take, slice_) if isinstance(item, Recorded)]
                        await copy.write("".join(map(_copied, taken)))
                    tell(arriving.head.position)
                arriving.finish()
            await _must_have_whole_streams(connection, arriving)
            if fill is not None:
                await fill(arriving.head.position)
            await connection.execute(_NOTIFY, (str(arriving.head.position),))
    except LogNotUnderstood as error:
        raise ImportRefused(
            f"line {arriving.line_of(error.position or 1)}: no table can follow: {error}"
        ) from error
    except pg.FeatureNotSupported as error:
        # A copy goes past row level security, or not at all.
        raise ImportRefused("only the owner of the squad's schema can import") from error
    except psycopg.Error as error:
        found = translated(error)
        # A server that ends the session, or has no room, also says at which line.
        is_no_fault_of_the_line = isinstance(found, StoreBusy | StoreUnavailable)
        if not is_no_fault_of_the_line and (number := _refused_line(error, arriving)):
            words = (error.diag.message_primary or str(error), error.diag.message_detail or "")
            raise ImportRefused(f"line {number}: {' '.join(words).strip()}") from error
        raise found from error
    await connection.execute("ANALYZE events")
    return arriving.head


def _slices(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """So few at a time that a socket holds them: the server has work while the next are looked at."""
    rest = iter(lines)
    while some := list(islice(rest, SENT_LINES)):
        yield some


async def _take_in_keys(
    connection: Connection, arriving: Arriving, portions: AsyncIterator[Iterable[bytes]]
) -> list[Recorded]:
    """Takes in the keys, which come first; gives the events of the portion in which they begin."""
    async for lines in portions:
        items = list(map(arriving.take, lines))
        try:
            await keys.read_in(connection, [item for item in items if isinstance(item, StoredKey)])
        except StoreRefused as error:
            raise ImportRefused(f"a key up to line {arriving.lines}: {error}") from error
        if events := [item for item in items if isinstance(item, Recorded)]:
            return events
    return []


async def _lock(connection: Connection) -> None:
    try:
        await log.lock(connection)
    except StoreBusy as error:
        raise ImportRefused("somebody else is writing to this squad") from error


async def _must_be_new(connection: Connection) -> None:
    with translating():
        row: Any = await (await connection.execute(_IS_NEW)).fetchone()
        if not row[0]:
            head = await log.head_position(connection)
            raise ImportRefused(f"the squad is not new, its log ends at position {head}")


def _refused_line(error: psycopg.Error, arriving: Arriving) -> int | None:
    """The line that the database would not take."""
    found = _COPIED_LINE.search(error.diag.context or "")
    return arriving.line_of(int(found[1])) if found else None


def _copied(recorded: Recorded) -> str:
    """The row as COPY takes it; the driver would make the same of it in twice the time."""
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
    if _IN_NEED_OF_ESCAPE.search("".join(texts)):
        stream, type_, data, actor, correlation_id, key = (text.translate(_ESCAPES) for text in texts)
    return (
        f"{position}\t{id_}\t{stream}\t{version}\t{type_}\t{schema_version}\t{data}\t{actor}\t"
        f"{_NULL if cause is None else cause}\t{correlation_id}\t{key or _NULL}\t{at.isoformat()}\t"
        f"\\\\x{hash_.hex()}\n"
    )


async def _must_have_whole_streams(connection: Connection, arriving: Arriving) -> None:
    await connection.execute("SET LOCAL work_mem = '64MB'")
    streams = await by_stream(connection)
    if streams.position is not None:
        raise ImportRefused(f"line {arriving.line_of(streams.position)}: it {streams.says}")
