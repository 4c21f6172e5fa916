"""The log's guarantees to those who append: gapless, immutable, at the head or not at all."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from eventstore import log, lookup
from eventstore.connection import pop_lock_wait
from eventstore.errors import ClockDrifted, HeadMoved, StoreBusy, StoreRefused, StoreUnavailable
from tests.support.components import connected, lock_is_free
from tests.support.log import LogWriter, agent_registered, message_sent, message_texts, new_id, whole_log
from tests.support.verify import assert_log_is_sound
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventstore.connection import Connection

RACERS = 8
EVENTS_PER_RACER = 25

_COLUMNS = (
    "position, id, stream, version, type, schema_version, data, actor, caused_by, correlation_id,"
    " idempotency_key, recorded_at, hash"
)
AWKWARD = 'line\nfeed, "quotes", back\\slash, \t tab, \x1f separator, \u2028, ümlaut, 猫, \U0001f63a'


@pytest.fixture
async def other(database: str) -> AsyncIterator[Connection]:
    async with connected(database) as opened:
        yield opened


@pytest.fixture
def log_writer(connection: Connection) -> LogWriter:
    return LogWriter(connection)


async def test_positions_are_gapless_from_1_across_batches(log_writer: LogWriter, database: str) -> None:
    for size in (1, 3, 2, 500, 1):
        await log_writer.append(*(message_sent(f"{number} of {size}") for number in range(size)))
    assert len(await assert_log_is_sound(database)) == 507


async def test_append_decided_at_an_older_head_stores_nothing(
    log_writer: LogWriter, other: Connection
) -> None:
    late = LogWriter(other)
    await log_writer.append(message_sent("first"), message_sent("second"))
    with pytest.raises(HeadMoved) as moved:
        await late.append(message_sent("too late"))
    assert moved.value.head == 2
    assert message_texts(await whole_log(other)) == ["first", "second"]


async def test_append_decided_beyond_the_head_stores_nothing(
    log_writer: LogWriter, connection: Connection
) -> None:
    now = await log.clock(connection)
    row = log_writer.row(message_sent("from the future"), now, position=2)
    with pytest.raises(HeadMoved) as moved:
        await log.append(connection, [row], now)
    assert moved.value.head == 0
    assert await log.head_position(connection) == 0


@pytest.mark.parametrize("seconds", [-3600, -1.5, 1.5, 3600])
async def test_append_decided_by_a_wrong_clock_stores_nothing(
    log_writer: LogWriter, connection: Connection, seconds: float
) -> None:
    now = await log.clock(connection)
    with pytest.raises(ClockDrifted):
        await log.append(
            connection, [log_writer.row(message_sent("when?"), now)], now + timedelta(seconds=seconds)
        )
    assert await log.head_position(connection) == 0


@pytest.mark.parametrize("role", ["origin", "replica", "local"])
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET actor = 'somebody else'",
        "UPDATE events SET actor = actor WHERE false",
        "DELETE FROM events",
        "DELETE FROM events WHERE position = 12345",
        "TRUNCATE events",
        "TRUNCATE events CASCADE",
        f"INSERT INTO events ({_COLUMNS}) SELECT {_COLUMNS} FROM events"
        " ON CONFLICT (position) DO UPDATE SET actor = 'somebody else'",
        "MERGE INTO events USING (VALUES (1)) v (p) ON position = p WHEN MATCHED THEN DELETE",
    ],
)
async def test_changing_events_is_refused_to_the_owner_in_every_replication_role(
    log_writer: LogWriter, connection: Connection, change: str, role: str
) -> None:
    before = await log_writer.append(message_sent("so it was"))
    await connection.execute(f"SET session_replication_role = {role}".encode())
    with pytest.raises(psycopg.errors.RestrictViolation, match="events are immutable"):
        await connection.execute(change.encode())
    assert await whole_log(connection) == before


async def test_events_are_read_back_exactly_as_stored(
    log_writer: LogWriter, connection: Connection
) -> None:
    spaced = '{ "z" : [ ],  "n" : 1.0e+2,   "n" : -0, "a" : "\\u00e9\\/é" }'
    stored = [
        *await log_writer.append(message_sent(AWKWARD)),
        *await log_writer.append(message_sent("spaced as nobody would"), data=spaced),
        *await log_writer.append(
            message_sent("keyed"), idempotency_key="key 1", caused_by=1, correlation_id="Ω"
        ),
    ]
    assert await whole_log(connection) == stored
    assert message_texts(stored[:1]) == [AWKWARD]


async def test_one_batch_holds_texts_with_any_characters(
    log_writer: LogWriter, connection: Connection
) -> None:
    messages = [AWKWARD, "", "\x1f\x1f", "NULL", "{}", "\\N", "'; DROP TABLE events; --", "x" * 100_000]
    await log_writer.append(*map(message_sent, messages))
    assert message_texts(await whole_log(connection)) == messages


@pytest.mark.parametrize(
    "second",
    [
        {"data": "{not json"},
        {"data": '{"message": "\\u0000"}'},
        {"data": '{"message": "\x00"}'},
        {"data": '{"message": "\\ud800"}'},
        {"stream": "two\nlines"},
        {"stream": "two\x1fvalues"},
        {"actor": "two\x1fvalues"},
        {"idempotency_key": "two\x1fvalues"},
        {"type": "two\nlines"},
        {"version": 0},
        {"version": 2**63},
        {"schema_version": 0},
        {"id": "not a uuid"},
        {"caused_by": 2},
    ],
    ids=str,
)
async def test_batch_with_an_event_that_cannot_be_stored_is_rejected_as_a_whole(
    log_writer: LogWriter, connection: Connection, second: dict[str, Any]
) -> None:
    now = await log.clock(connection)
    rows = [
        log_writer.row(message_sent("fine"), now),
        log_writer.row(message_sent("not"), now)._replace(position=2)._replace(**second),
    ]
    with pytest.raises(StoreRefused):
        await log.append(connection, rows, now)
    assert await log.head_position(connection) == 0
    assert await lock_is_free(connection)
    await log_writer.append(message_sent("the next one is stored"))


@pytest.mark.parametrize("events", [1, 2])
@pytest.mark.parametrize(
    "change",
    [
        "CREATE RULE other AS ON INSERT TO events DO INSTEAD NOTHING",
        "CREATE FUNCTION drop_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        " CREATE TRIGGER other BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION drop_it()",
    ],
    ids=["rule", "trigger"],
)
async def test_append_that_a_rule_or_trigger_drops_is_rejected(
    log_writer: LogWriter, connection: Connection, change: str, events: int
) -> None:
    await connection.execute(change.encode())
    now = await log.clock(connection)
    first, second = (
        log_writer.row(message_sent("lost"), now),
        log_writer.row(message_sent("lost, too"), now, position=2),
    )
    with pytest.raises(StoreRefused, match=f"{events} events were announced and 0 arrived"):
        await log.append(connection, [first, second][:events], now)
    assert await log.head_position(connection) == 0


async def test_stream_never_has_two_events_of_one_version(
    log_writer: LogWriter, connection: Connection
) -> None:
    await log_writer.append(agent_registered("alice"))
    with pytest.raises(StoreRefused, match="events_stream_version_key"):
        await log_writer.append(agent_registered("alice"), version=1)
    assert await lookup.versions(connection, ["agent-alice", "agent-bob"], upto=9) == {"agent-alice": 1}


async def test_last_version_of_a_long_stream_is_read_from_its_end(
    log_writer: LogWriter, connection: Connection
) -> None:
    for _ in range(5):
        await log_writer.append(agent_registered("bob"), *(agent_registered("alice") for _ in range(400)))
    streams = ["agent-alice", "agent-bob"]
    assert await lookup.versions(connection, streams, upto=9_999) == {"agent-alice": 2_000, "agent-bob": 5}
    await connection.execute("ANALYZE events")
    cursor = await connection.execute(
        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {lookup._LAST_VERSIONS}", (streams, 9_999)
    )
    row = await cursor.fetchone()
    assert row is not None
    assert row[0][0]["Plan"]["Shared Hit Blocks"] < 50


async def test_log_never_has_two_events_with_one_id(log_writer: LogWriter) -> None:
    event_id = new_id()
    await log_writer.append(message_sent("once"), id=event_id)
    with pytest.raises(StoreRefused, match="events_id_key"):
        await log_writer.append(message_sent("twice"), id=event_id)


async def test_log_never_has_two_events_with_one_idempotency_key(log_writer: LogWriter) -> None:
    await log_writer.append(message_sent("once"), idempotency_key="k")
    await log_writer.append(message_sent("without a key"))
    await log_writer.append(message_sent("without a key either"))
    with pytest.raises(StoreRefused, match="events_idempotency_key"):
        await log_writer.append(message_sent("twice"), idempotency_key="k")


async def test_session_that_waited_for_the_lock_sees_what_was_committed_meanwhile(
    log_writer: LogWriter, connection: Connection, other: Connection
) -> None:
    await log_writer.append(message_sent("before"))
    await connection.execute("BEGIN")
    await log.lock(connection)
    waiting = asyncio.create_task(log.lock_and_read(other, 0))
    await eventually(lambda: _is_lock_awaited(log_writer.connection))
    await log_writer.append(message_sent("while the other waits"))
    assert not waiting.done()
    await connection.execute("COMMIT")
    page, _ = await waiting
    assert message_texts(page) == ["before", "while the other waits"]
    await other.execute("ROLLBACK")
    assert await lock_is_free(connection)


async def _is_lock_awaited(connection: Connection) -> bool:
    cursor = await connection.execute("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    return await cursor.fetchone() is not None


async def test_append_reports_its_wait_for_the_lock_and_the_time_after_it(
    log_writer: LogWriter, connection: Connection, other: Connection
) -> None:
    await other.execute("BEGIN")
    await log.lock(other)
    now = await log.clock(connection)
    waiting = asyncio.create_task(
        log.append(connection, [log_writer.row(message_sent("at last"), now)], now)
    )
    await eventually(lambda: _is_lock_awaited(other))
    released = await log.clock(other)
    await other.execute("ROLLBACK")
    assert await waiting >= released
    assert (pop_lock_wait(connection) or 0) > 0


async def test_lock_is_held_from_the_read_to_the_commit(log_writer: LogWriter, other: Connection) -> None:
    page, now = await log.lock_and_read(log_writer.connection, 0)
    assert page == []
    await other.execute("SET lock_timeout = 50")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        await other.execute("SELECT lock_log()")
    row = log_writer.row(message_sent("decided under the lock"), now)
    await log.append(log_writer.connection, [row], now, commit=True)
    assert await lock_is_free(other)
    assert await whole_log(other) == [row]


async def test_server_takes_the_lock_from_a_session_that_stalls_while_holding_it(
    log_writer: LogWriter, other: Connection
) -> None:
    await log_writer.connection.execute("SET idle_in_transaction_session_timeout = 50")
    await log.lock_and_read(log_writer.connection, 0)
    await eventually(lambda: lock_is_free(other))
    with pytest.raises(StoreUnavailable):
        await log.head(log_writer.connection)


async def test_log_stays_sound_when_appenders_race_for_the_head(database: str) -> None:
    async def race(name: str) -> int:
        lost = 0
        async with connected(database) as connection:
            log_writer = LogWriter(connection)
            for number in range(EVENTS_PER_RACER):
                while True:
                    await log_writer.catch_up()
                    try:
                        await log_writer.append(message_sent(f"{name} {number}"))
                    except HeadMoved:
                        lost += 1
                        continue
                    break
        return lost

    names = [f"racer-{number}" for number in range(RACERS)]
    lost = sum(await asyncio.gather(*map(race, names)))
    stored = message_texts(await assert_log_is_sound(database))
    assert lost > 0, "no append lost a race"
    assert sorted(stored) == sorted(f"{name} {n}" for name in names for n in range(EVENTS_PER_RACER))
    for name in names:
        mine = [text for text in stored if text.startswith(f"{name} ")]
        assert mine == [f"{name} {number}" for number in range(EVENTS_PER_RACER)]


async def test_wait_for_the_lock_is_measured_even_when_it_times_out(
    log_writer: LogWriter, connection: Connection, database: str
) -> None:
    async with connected(database) as holder, holder.transaction():
        await log.lock(holder)
        await connection.execute("SET lock_timeout = '100ms'")
        with pytest.raises(StoreBusy):
            await log_writer.append(message_sent("not now"))
        assert (pop_lock_wait(connection) or 0) > 0.09
        with pytest.raises(StoreBusy):
            await log.lock_and_read(connection, 0)
        assert (pop_lock_wait(connection) or 0) > 0.09
        await connection.execute("ROLLBACK")
    await log_writer.append(message_sent("now"))
    assert 0 <= (pop_lock_wait(connection) or 0) < 0.09
