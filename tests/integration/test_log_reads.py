"""Reads of the log by position, stream, type, agent and time, and at its ends."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from eventstore import log, lookup
from eventstore.lookup import Filter, StreamExcerpt
from eventstore.recorded import EMPTY_LOG, Head
from tests.support.log import LogWriter, agent_registered, message_sent, message_texts, new_id

if TYPE_CHECKING:
    from datetime import datetime

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded

SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)


@pytest.fixture
async def start(connection: Connection) -> datetime:
    """A recent time, for a log whose events are a second apart."""
    return await log.clock(connection) - timedelta(minutes=1)


@pytest.fixture
async def stored(connection: Connection, start: datetime) -> list[Recorded]:
    """Positions 1 to 6; 3 and 4 have the same time."""
    log_writer = LogWriter(connection)
    return [
        *await log_writer.append(agent_registered("alice"), at=start),
        *await log_writer.append(message_sent("two"), at=start + SECOND),
        *await log_writer.append(
            agent_registered("bob"), message_sent("four", agent="bob"), at=start + 2 * SECOND
        ),
        *await log_writer.append(message_sent("five"), at=start + 3 * SECOND),
        *await log_writer.append(message_sent("six", agent="bob"), at=start + 4 * SECOND),
    ]


async def _positions(connection: Connection, wanted: Filter, after: int = 0, limit: int = 100) -> list[int]:
    return [event.position for event in await lookup.read_filtered(connection, after, limit, wanted)]


async def test_empty_log_ends_at_position_0(connection: Connection, start: datetime) -> None:
    assert await log.head(connection) == EMPTY_LOG
    assert await log.head_position(connection) == 0
    assert await log.read_after(connection, 0) == []
    assert await lookup.read_one(connection, 1) is None
    assert await lookup.position_at(connection, start) == 0
    assert await lookup.event_types(connection) == []
    assert await _positions(connection, Filter(since=start, until=start + SECOND)) == []


async def test_head_is_the_last_event(connection: Connection, stored: list[Recorded]) -> None:
    last = stored[-1]
    assert await log.head(connection) == Head(6, last.hash, last.recorded_at)
    assert await log.head_position(connection) == 6


async def test_pages_follow_one_another_without_overlap(
    connection: Connection, stored: list[Recorded]
) -> None:
    assert await log.read_after(connection, 0, limit=4) == stored[:4]
    assert await log.read_after(connection, 4, limit=4) == stored[4:]
    assert await log.read_after(connection, 6) == []


async def test_event_is_read_by_its_position(connection: Connection, stored: list[Recorded]) -> None:
    assert await lookup.read_one(connection, 4) == stored[3]
    assert await lookup.read_one(connection, 0) is None
    assert await lookup.read_one(connection, 7) is None


async def test_streams_are_read_in_log_order(connection: Connection, stored: list[Recorded]) -> None:
    wanted = [stored[3].stream, "agent-alice", "agent-nobody"]
    assert [event.position for event in await lookup.read_streams(connection, wanted)] == [1, 4]


async def _append_stream(log_writer: LogWriter, stream: str, *events: tuple[str, str]) -> None:
    """Append a stream of events of these types, each by its agent."""
    for version, (type_, agent) in enumerate(events, 1):
        data = f'{{"agent": "{agent}"}}'
        await log_writer.append(
            agent_registered("x"), stream=stream, version=version, type=type_, data=data
        )


async def test_excerpt_of_a_long_stream_has_both_ends_and_what_an_agent_did_in_between(
    connection: Connection,
) -> None:
    log_writer = LogWriter(connection)
    refused = ("conflict_detected", "bob")
    long = [("started", "ann"), *[refused] * 24]
    long[9], long[21], long[23] = ("conflict_detected", "eve"), ("renewed", "ann"), ("finished", "ann")
    await _append_stream(log_writer, "long", *long)
    await _append_stream(log_writer, "whole", *long)
    await _append_stream(log_writer, "short", *long[: lookup.SHORT_STREAM_EVENTS - 1])

    async def read(*excerpts: StreamExcerpt) -> list[tuple[str, int]]:
        found = await lookup.read_streams(connection, ["whole"], excerpts)
        assert [each.position for each in found] == sorted({each.position for each in found})
        return [(each.stream, each.version) for each in found if each.stream != "whole"]

    brief = [("long", version) for version in (1, 22, 24)]
    short = [("short", version) for version in range(1, lookup.SHORT_STREAM_EVENTS)]
    assert await read() == []
    assert await read(StreamExcerpt("long")) == brief
    assert await read(StreamExcerpt("long", "eve")) == sorted([*brief, ("long", 10)])
    assert await read(StreamExcerpt("long"), StreamExcerpt("short", "eve")) == brief + short
    assert await read(StreamExcerpt("short")) == short
    assert (
        len(
            await lookup.read_streams(
                connection, ["whole"], [StreamExcerpt("whole"), StreamExcerpt("long")]
            )
        )
        == 25 + 3
    )


async def test_stream_is_read_from_either_end_and_between_positions(connection: Connection) -> None:
    log_writer = LogWriter(connection)
    await _append_stream(log_writer, "one", ("a", "x"), ("b", "x"), ("a", "x"), ("b", "x"), ("a", "x"))
    await log_writer.append(message_sent("elsewhere"))

    async def read(*types: str, **bounds: Any) -> list[int]:
        found = await lookup.read_stream(connection, "one", types, **{"limit": 9, **bounds})
        return [each.position for each in found]

    assert await read() == [1, 2, 3, 4, 5]
    assert await read(newest_first=True, limit=2) == [5, 4]
    assert await read(after=2, upto=4) == [3, 4]
    assert await read("a", limit=2) == [1, 3]
    assert await read("a", "b", after=4) == [5]


async def test_events_of_given_types_are_read_between_positions(
    connection: Connection, stored: list[Recorded]
) -> None:
    types = ["agent_registered", "message_sent"]
    assert await lookup.event_types(connection) == types
    assert await lookup.read_types(connection, types, 1, 4) == stored[1:4]
    assert await lookup.read_types(connection, types[:1], 0, 6) == [stored[0], stored[2]]
    assert await lookup.read_positions(connection, [4, 99, 2]) == [stored[1], stored[3]]


async def test_filters_apply_alone_and_combined(connection: Connection, stored: list[Recorded]) -> None:
    assert await _positions(connection, Filter()) == [1, 2, 3, 4, 5, 6]
    assert await _positions(connection, Filter(type="message_sent")) == [2, 4, 5, 6]
    assert await _positions(connection, Filter(agent="bob")) == [3, 4, 6]
    assert await _positions(connection, Filter(stream="agent-bob")) == [3]
    assert await _positions(connection, Filter(type="message_sent", agent="bob"), after=4) == [6]
    assert await _positions(connection, Filter(type="message_sent"), limit=2) == [2, 4]
    assert await _positions(connection, Filter(type="no_such_type")) == []


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (timedelta(0), None, [1, 2, 3, 4, 5, 6]),
        (MICROSECOND, None, [2, 3, 4, 5, 6]),
        (2 * SECOND, None, [3, 4, 5, 6]),
        (2 * SECOND + MICROSECOND, None, [5, 6]),
        (None, timedelta(0), []),
        (None, MICROSECOND, [1]),
        (None, 2 * SECOND, [1, 2]),
        (None, 2 * SECOND + MICROSECOND, [1, 2, 3, 4]),
        (SECOND, 3 * SECOND, [2, 3, 4]),
        (2 * SECOND, 2 * SECOND, []),
        (5 * SECOND, None, []),
    ],
)
async def test_since_is_inclusive_and_until_is_exclusive(
    connection: Connection,
    start: datetime,
    stored: list[Recorded],
    since: timedelta | None,
    until: timedelta | None,
    expected: list[int],
) -> None:
    wanted = Filter(
        since=None if since is None else start + since, until=None if until is None else start + until
    )
    assert stored[2].recorded_at == stored[3].recorded_at
    assert await _positions(connection, wanted) == expected


@pytest.mark.parametrize(
    ("offset", "position"),
    [
        (-MICROSECOND, 0),
        (timedelta(0), 1),
        (SECOND - MICROSECOND, 1),
        (SECOND, 2),
        (2 * SECOND, 4),
        (2 * SECOND + MICROSECOND, 4),
        (4 * SECOND, 6),
        (timedelta(days=1), 6),
    ],
)
@pytest.mark.usefixtures("stored")
async def test_position_at_a_time_is_the_last_one_recorded_by_then(
    connection: Connection, start: datetime, offset: timedelta, position: int
) -> None:
    assert await lookup.position_at(connection, start + offset) == position


async def test_ids_are_found_with_their_positions(connection: Connection, stored: list[Recorded]) -> None:
    absent = new_id()
    wanted = [stored[4].id, absent, stored[1].id]
    assert await lookup.find_ids(connection, wanted) == {stored[4].id: 5, stored[1].id: 2}


async def test_versions_are_those_as_of_the_requested_position(connection: Connection) -> None:
    log_writer = LogWriter(connection)
    message = message_sent("once")
    await log_writer.append(
        agent_registered("alice"), agent_registered("alice"), message, agent_registered("alice")
    )
    streams = ["agent-alice", message.stream, "agent-nobody"]
    assert await lookup.versions(connection, streams, upto=2) == {"agent-alice": 2}
    assert await lookup.versions(connection, streams, upto=4) == {"agent-alice": 3, message.stream: 1}


async def test_long_log_is_read_in_pages_of_the_default_size(connection: Connection) -> None:
    log_writer = LogWriter(connection)
    for _ in range(3):
        # Small batches, as the database accepts only those decided within the last second.
        for start in range(0, 2_500, 250):
            await log_writer.append(*(message_sent(str(number)) for number in range(start, start + 250)))
    first = await log.read_after(connection, 0)
    rest = await log.read_after(connection, first[-1].position)
    assert (len(first), len(rest)) == (log.PAGE_EVENTS, 2_500)
    assert message_texts(rest) == [str(number) for number in range(2_500)]
