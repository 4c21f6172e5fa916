"""Find events by position, id, stream, type, agent or time."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from eventstore.log import COLUMNS, select
from eventstore.queries import one_value
from eventstore.translation import translating

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded

_READ_STREAMS = f"SELECT {COLUMNS} FROM events WHERE stream = ANY(%s) ORDER BY position"
_READ_STREAMS_AND_BEGINNINGS = f"""
    SELECT {COLUMNS} FROM events WHERE stream = ANY(%s)
    UNION ALL
    SELECT {COLUMNS} FROM events WHERE stream = ANY(%s) AND version <= %s
    ORDER BY position
"""
# Each stream is read from its end: it can be as long as the log.
_LAST_VERSIONS = """
    SELECT asked.stream, last.version FROM unnest(%s::text[]) AS asked (stream) CROSS JOIN LATERAL (
        SELECT version FROM events e WHERE e.stream = asked.stream AND position <= %s
        ORDER BY version DESC LIMIT 1
    ) AS last
"""
# By version, so that the unique key of the stream is used. Refused claims are in the stream of the
# operation that they conflicted with, and there can be very many. An event may be found twice: removing
# duplicates here would cost more.
_READ_EXCERPTS = f"""
    SELECT {COLUMNS} FROM events WHERE stream = ANY(%s) AND version = 1
    UNION ALL
    SELECT {COLUMNS} FROM events WHERE stream = ANY(%s) AND version > 1 AND agent = ANY(%s)
    UNION ALL
    SELECT last.* FROM unnest(%s::text[]) AS asked (stream) CROSS JOIN LATERAL (
        SELECT {COLUMNS} FROM events e
        WHERE e.stream = asked.stream AND version > 1 AND type <> 'conflict_detected'
        ORDER BY version DESC LIMIT 2
    ) AS last
"""


SHORT_STREAM_EVENTS = 20
"""The length up to which a stream is read whole, which is faster; nearly all are that short."""


class StreamExcerpt(NamedTuple):
    """A stream of which the beginning, the end, and what an agent did in between are wanted."""

    stream: str
    agent: str | None = None


class Filter(NamedTuple):
    """Which events a reader wants; None matches any. Times bound `recorded_at`; `until` is exclusive."""

    type: str | None = None
    stream: str | None = None
    agent: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def read_streams(
    connection: Connection, streams: Sequence[str], excerpts: Sequence[StreamExcerpt] = ()
) -> list[Recorded]:
    """Return all events of these streams, and of the short ones among `excerpts`, by position.

    Of a long stream in `excerpts`, return the first event, the last two that are not refused claims, and
    the events of the named agents; an agent named for one stream may match in another one as well.
    """
    if not excerpts:
        return await select(connection, _READ_STREAMS, (list(streams),))
    brief = list({ends.stream for ends in excerpts}.difference(streams))
    found = await select(
        connection, _READ_STREAMS_AND_BEGINNINGS, (list(streams), brief, SHORT_STREAM_EVENTS)
    )
    long = {event.stream for event in found if event.version == SHORT_STREAM_EVENTS}.intersection(brief)
    if not long:
        return found
    agents = {ends.agent for ends in excerpts if ends.agent and ends.stream in long}
    ends = await select(connection, _READ_EXCERPTS, (list(long), list(long), list(agents), list(long)))
    kept = (event for event in found if event.stream not in long)
    return [event for _, event in sorted({event.position: event for event in (*kept, *ends)}.items())]


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
    """Return events of one stream, in its order or in reverse.

    Args:
        connection: to read on.
        stream: the stream.
        types: only events of these types; if empty, of any.
        after: only events after this position.
        upto: only events up to this position.
        limit: the maximum number of events.
        newest_first: whether to start at the end of the stream.
    """
    clauses = ["stream = %(stream)s", "position > %(after)s"]
    if upto is not None:
        clauses.append("position <= %(upto)s")
    if types:
        clauses.append("type = ANY(%(types)s)")
    # By version, not position, so that the unique key of the stream is used, not the log's primary key.
    order = "version DESC" if newest_first else "version"
    query = f"SELECT {COLUMNS} FROM events WHERE {' AND '.join(clauses)} ORDER BY {order} LIMIT %(limit)s"
    parameters = {"stream": stream, "types": list(types), "after": after, "upto": upto, "limit": limit}
    return await select(connection, query, parameters)


async def read_types(connection: Connection, types: Sequence[str], after: int, upto: int) -> list[Recorded]:
    """Return all events of these types after `after` up to `upto`, in order. Callers limit the range."""
    query = (
        f"SELECT {COLUMNS} FROM events WHERE position > %s AND position <= %s AND type = ANY(%s)"
        " ORDER BY position"
    )
    return await select(connection, query, (after, upto, list(types)))


async def read_positions(connection: Connection, positions: Sequence[int]) -> list[Recorded]:
    """Return those events that exist at these positions, in the order of the log."""
    query = f"SELECT {COLUMNS} FROM events WHERE position = ANY(%s) ORDER BY position"
    return await select(connection, query, (list(positions),))


async def read_one(connection: Connection, position: int) -> Recorded | None:
    """Return the event at `position`, or None if there is none."""
    rows = await select(connection, f"SELECT {COLUMNS} FROM events WHERE position = %s", (position,))
    return rows[0] if rows else None


async def read_filtered(
    connection: Connection, after: int, limit: int, event_filter: Filter, *, newest_first: bool = False
) -> list[Recorded]:
    """Return the next events after `after` that match the filter, at most `limit`, in order.

    With `newest_first`, they are those before `after`, in reverse.
    """
    clauses = ["position < %(after)s" if newest_first else "position > %(after)s"]
    if event_filter.type is not None:
        clauses.append("type = %(type)s")
    if event_filter.stream is not None:
        clauses.append("stream = %(stream)s")
    if event_filter.agent is not None:
        clauses.append("agent = %(agent)s")
    if event_filter.since is not None:
        # position_at is inclusive, so the moment just before `since` bounds the events to exclude.
        clauses.append("position > position_at(%(since)s::timestamptz - interval '1 microsecond')")
    if event_filter.until is not None:
        clauses.append("position <= position_at(%(until)s::timestamptz - interval '1 microsecond')")
    order = "position DESC" if newest_first else "position"
    query = f"SELECT {COLUMNS} FROM events WHERE {' AND '.join(clauses)} ORDER BY {order} LIMIT %(limit)s"
    return await select(connection, query, {**event_filter._asdict(), "after": after, "limit": limit})


async def event_types(connection: Connection) -> list[str]:
    """Return the types of all events in the log, with one index lookup per type."""
    query = (
        "WITH RECURSIVE kinds (type) AS (SELECT min(type) FROM events UNION ALL"
        " SELECT (SELECT min(e.type) FROM events e WHERE e.type > kinds.type) FROM kinds"
        " WHERE kinds.type IS NOT NULL)"
        " SELECT type FROM kinds WHERE type IS NOT NULL"
    )
    with translating():
        return [row[0] for row in await (await connection.execute(query, prepare=True)).fetchall()]


async def find_ids(connection: Connection, ids: Sequence[str]) -> dict[str, int]:
    """Return the positions of those event ids that are in the log."""
    query = "SELECT id::text, position FROM events WHERE id = ANY(%s::uuid[])"
    with translating():
        return dict(await (await connection.execute(query, (list(ids),))).fetchall())


async def position_at(connection: Connection, moment: datetime) -> int:
    """Return the last position recorded at or before `moment`; 0 if there is none."""
    return await one_value(connection, "SELECT position_at(%s)", (moment,))  # type: ignore[no-any-return]


async def versions(connection: Connection, streams: Sequence[str], upto: int) -> dict[str, int]:
    """Return the last version of each stream as of position `upto`; streams without events are absent."""
    with translating():
        return dict(await (await connection.execute(_LAST_VERSIONS, (list(streams), upto))).fetchall())
