"""A log is exported and imported unchanged, or not at all."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import given as for_all
from hypothesis import strategies as st
from msgspec import structs

from eventstore import keys, log, lookup, transfer
from eventstore.chain import hash_of
from eventstore.errors import ImportRefused, StoreUnavailable
from eventstore.exchange import end_line, event_line, header_line
from eventstore.listener import Hints
from eventstore.recorded import EMPTY_LOG, Head
from eventstore.transfer import export_log, import_log
from projections.projector import Projector
from service import commands as do
from service.clock import DatabaseClock
from service.writing.writer import Writer
from tests.support.components import (
    SCHEMA,
    connected,
    lock_is_free,
    lock_is_held,
    message,
    running,
    running_listener,
    running_writer,
    submit,
    terminate_backends,
)
from tests.support.log import LogWriter, agent_registered, message_sent, new_id, whole_log
from tests.support.log_tampering import EVENTS, append_sample_history, rehash_log, tamper
from tests.support.random_history import submit_history_with_jobs
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from eventstore.connection import Connection


async def _exported(connection: Connection, **part: Any) -> list[bytes]:
    lines: list[bytes] = []
    await export_log(connection, lines.append, **part)
    return lines


async def _imported(connection: Connection, lines: Iterable[bytes]) -> Head:
    async def chunks() -> AsyncIterator[list[bytes]]:
        for line in lines:
            yield [line]

    return await import_log(connection, chunks())


async def _refusal(connection: Connection, lines: Iterable[bytes]) -> str:
    """The reason why an import is refused; checks that nothing is stored and that the lock is free."""
    with pytest.raises(ImportRefused) as refused:
        await _imported(connection, lines)
    assert await log.head_position(connection) == 0
    assert await lock_is_free(connection)
    return str(refused.value).removeprefix("nothing was imported: ")


async def _columns(connection: Connection) -> list[tuple[Any, ...]]:
    """Every column of every event, including those that the log's readers do not read."""
    return await (await connection.execute("SELECT *, data::text FROM events ORDER BY position")).fetchall()


@pytest.mark.parametrize("seed", range(4))
async def test_imported_history_has_the_same_events_hashes_and_tables(
    database: str, connection: Connection, second_database: str, seed: int
) -> None:
    async with running_writer(database) as writer:
        await submit_history_with_jobs(writer, seed, 200, at_once=20)
    lines = await _exported(connection)
    async with connected(second_database) as other:
        head = await _imported(other, lines)
        assert head == await log.head(other) == await log.head(connection)
        assert await _columns(other) == await _columns(connection)
        assert await _exported(other) == lines
    for dsn in (database, second_database):
        async with running(Projector(dsn, SCHEMA, Hints()).run()):
            await eventually(partial(projected_to_head, dsn))
    await assert_log_is_sound(second_database)
    assert await assert_tables_equal_fold(second_database) == await assert_tables_equal_fold(database) > 20


async def test_schema_without_the_table_of_keys_is_exported_without_keys(
    connection: Connection,
) -> None:
    await append_sample_history(connection)
    lines = await _exported(connection)
    await connection.execute("DROP TABLE subject_keys")
    assert await _exported(connection) == lines


async def test_stored_text_is_imported_verbatim(connection: Connection, second_database: str) -> None:
    odd_message = message_sent(
        'line\nfeed, "quotes", back\\slash \\N, \t tab, \x1f, \u2028, ümlaut, 猫, \U0001f63a'
    )
    log_writer = LogWriter(connection)
    [recorded] = await log_writer.append(odd_message, actor='agent:\\.\t,"x" ü', correlation_id="\\N")
    spaced = recorded.data.replace('"agent":', '\n "agent" :\r\n\t').replace("ü", "\\u00fc")
    await log_writer.append(odd_message, data=spaced, caused_by=1, idempotency_key=" ")
    async with connected(second_database) as other:
        await _imported(other, await _exported(connection))
        assert await _columns(other) == await _columns(connection)


async def test_imported_squad_accepts_new_commands(connection: Connection, second_database: str) -> None:
    await append_sample_history(connection)
    async with running_listener(second_database) as listener, connected(second_database) as other:
        waiter = listener.events.waiter()
        await _imported(other, await _exported(connection))
        await asyncio.wait_for(waiter.wait(), 10)
        async with running_writer(second_database) as writer:
            outcome = await submit(writer, message("after the import"))
    assert outcome.position is not None
    assert outcome.position > 12
    await assert_log_is_sound(second_database)


async def test_empty_log_is_imported(connection: Connection, second_database: str) -> None:
    async with connected(second_database) as other:
        assert (await _imported(other, await _exported(connection))).position == 0
        await append_sample_history(other)


class TestPartialExports:
    async def test_consecutive_parts_make_up_the_whole_log(self, connection: Connection) -> None:
        await append_sample_history(connection)
        whole = await _exported(connection)
        first = await _exported(connection, until=5)
        second = await _exported(connection, after=5)
        assert first[1:-1] + second[1:-1] == whole[1:-1]
        assert second[-1].replace(b'"events":7', b'"events":12') == whole[-1]
        assert await _exported(connection, after=12) != whole

    async def test_only_a_part_from_the_beginning_can_be_imported(
        self, connection: Connection, second_database: str
    ) -> None:
        await append_sample_history(connection)
        async with connected(second_database) as other:
            why = await _refusal(other, await _exported(connection, after=5))
            assert why == "line 1: the file begins after position 5, an import needs the whole log"
            assert (await _imported(other, await _exported(connection, until=5))).position == 5

    async def test_export_of_a_broken_log_reports_its_first_bad_position(
        self, connection: Connection
    ) -> None:
        await append_sample_history(connection)
        assert (await export_log(connection, lambda _: None)).broken_at is None
        await tamper(connection, "UPDATE events SET actor = 'mallory' WHERE position = 7")
        assert (await export_log(connection, lambda _: None)).broken_at == 7
        assert (await export_log(connection, lambda _: None, cloud_events=True)).broken_at == 7
        await tamper(connection, "DELETE FROM events WHERE position < 3")
        assert (await export_log(connection, lambda _: None)).broken_at == 3

    async def test_keys_are_exported_only_with_the_whole_log(self, connection: Connection) -> None:
        await append_sample_history(connection)
        await keys.store(connection, [keys.new_key()])
        kinds = [json.loads(line)["kind"] for line in await _exported(connection)]
        assert kinds == ["header", "key", *["event"] * EVENTS, "end"]
        kinds = [json.loads(line)["kind"] for line in await _exported(connection, after=5)]
        assert kinds == ["header", *["event"] * (EVENTS - 5), "end"]
        first = await lookup.read_one(connection, 1)
        assert first
        sources = [json.loads(line)["source"] for line in await _exported(connection, cloud_events=True)]
        assert sources == [f"urn:uuid:{first.id}"] * EVENTS


async def test_export_shows_the_database_at_one_moment(database: str, connection: Connection) -> None:
    await append_sample_history(connection)
    lines: list[bytes] = []

    def write(line: bytes) -> None:
        if not lines:
            with psycopg.connect(database, options=f"-c search_path={SCHEMA}") as other:
                other.execute("INSERT INTO subject_keys (id, key) VALUES (%s, %s)", (new_id(), bytes(32)))
        lines.append(line)

    await export_log(connection, write)
    assert [json.loads(line)["kind"] for line in lines] == ["header", *["event"] * EVENTS, "end"]


async def test_progress_is_reported_at_intervals(
    connection: Connection, second_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "REPORT_EVERY_EVENTS", 5)
    await append_sample_history(connection)
    lines: list[bytes] = []
    reported: list[int] = []
    await export_log(connection, lines.append, report=reported.append)
    assert reported == [5, 10, EVENTS]

    async def chunks() -> AsyncIterator[list[bytes]]:
        for start in range(0, len(lines), 4):
            yield lines[start : start + 4]

    reported.clear()
    async with connected(second_database) as other:
        await import_log(other, chunks(), reported.append)
    assert reported == [7, 11, EVENTS]


class TestRefusedImports:
    async def test_damaged_file_is_refused_or_imported_unchanged(
        self, connection: Connection, second_database: str
    ) -> None:
        await append_sample_history(connection)
        lines = await _exported(connection)
        content = b"".join(lines)
        recorded = await whole_log(connection)
        async with connected(second_database) as other:

            @settings(
                max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
            )
            @for_all(st.integers(0, len(content) - 1), st.integers(0, 255))
            def damage(place: int, byte: int) -> None:
                assume(content[place] != byte)
                damaged = content[:place] + bytes([byte]) + content[place + 1 :]
                damages.append(damaged)

            damages: list[bytes] = []
            damage()
            for damaged in damages:
                try:
                    await _imported(other, damaged.splitlines(keepends=True))
                except ImportRefused:
                    assert await log.head_position(other) == 0
                else:
                    assert await whole_log(other) == recorded
                    await tamper(other, "TRUNCATE events")

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ("version = 9 WHERE position = 7", "line 8: it is version 9 of 'message-"),
            ("version = 2 WHERE position = 12", "line 13: it is version 2 of 'message-"),
            (
                "id = (SELECT id FROM events WHERE position = 2) WHERE position = 5",
                "line 6: duplicate key value",
            ),
            (
                "stream = (SELECT stream FROM events WHERE position = 2), version = 2,"
                " data = (SELECT data FROM events WHERE position = 3) WHERE position = 5",
                "line 6: duplicate key value",
            ),
            (
                "stream = (SELECT stream FROM events WHERE position = 2), version = 2 WHERE position = 5",
                "line 6: it is in the stream 'message-",
            ),
            (
                "stream = 'other', version = 1 WHERE position = 12",
                "line 13: it is in the stream 'other', but",
            ),
            (
                'data = replace(data::text, \'"data":null\', \'"data":{"x":[18446744073709551616]}\')::json'
                " WHERE position = 6",
                "line 7: its data is beyond what the tables can hold",
            ),
            (
                "idempotency_key = 'key-2' WHERE position = 6",
                "line 7: duplicate key value",
            ),
            (
                "actor = E'two\\nlines' WHERE position = 6",
                "line 7: new row for relation",
            ),
            (
                'data = \'{"agent": "\\u0000"}\' WHERE position = 6',
                "line 7: a stored event does not match its type",
            ),
        ],
    )
    async def test_invalid_event_is_refused_even_if_its_hashes_match(
        self, connection: Connection, second_database: str, change: str, why: str
    ) -> None:
        await append_sample_history(connection)
        for constraint in ("id_key", "stream_version_key", "actor_check", "pkey"):
            await connection.execute(f"ALTER TABLE events DROP CONSTRAINT events_{constraint}".encode())
        await connection.execute("ALTER TABLE events DROP COLUMN agent")
        await connection.execute("DROP INDEX events_idempotency_key")
        await tamper(connection, f"UPDATE events SET {change}")
        await rehash_log(connection)
        async with connected(second_database) as other:
            assert (await _refusal(other, await _exported(connection))).startswith(why)

    async def test_text_that_no_database_can_hold_is_refused(
        self, connection: Connection, second_database: str
    ) -> None:
        await append_sample_history(connection)
        [first, second, *_] = await whole_log(connection)
        second = second._replace(actor="a\x00b")
        second = second._replace(hash=hash_of(first.hash, second))
        end = end_line(2, Head(2, second.hash, second.recorded_at))
        lines = [*(await _exported(connection, until=1))[:2], event_line(second), end]
        async with connected(second_database) as other:
            assert (await _refusal(other, lines)).startswith("line 3: ")

    async def test_text_too_large_for_an_index_of_the_log_is_refused(self, second_database: str) -> None:
        async with connected(second_database) as other:
            # Random text, which compression does not make short enough.
            row = LogWriter(other).row(agent_registered(token_hex(4_000)), await log.clock(other))
            head = Head(1, row.hash, row.recorded_at)
            lines = [header_line(row.id, EMPTY_LOG), event_line(row), end_line(1, head)]
            assert (await _refusal(other, lines)).startswith("line 2: index row size ")

    async def test_text_too_large_for_an_index_of_the_read_tables_is_refused(
        self, second_database: str
    ) -> None:
        async with connected(second_database) as other:
            log_writer, now = LogWriter(other), await log.clock(other)
            event = structs.replace(message_sent("hello"), to_agent=token_hex(4_000))
            row = log_writer.row(event, now)
            head = Head(1, row.hash, row.recorded_at)
            lines = [header_line(row.id, EMPTY_LOG), event_line(row), end_line(1, head)]
            why = await _refusal(other, lines)
            assert why == "line 2: its to_agent is beyond what the tables can hold"

    async def test_event_recorded_more_than_a_year_ahead_is_refused(self, second_database: str) -> None:
        async with connected(second_database) as other:
            now = await log.clock(other)
            for days, why in ((367, "line 2: it is recorded at "), (365, None)):
                row = LogWriter(other).row(agent_registered("ann"), now + timedelta(days=days))
                head = Head(1, row.hash, row.recorded_at)
                lines = [header_line(row.id, EMPTY_LOG), event_line(row), end_line(1, head)]
                if why:
                    assert (await _refusal(other, lines)).startswith(why)
                else:
                    assert (await _imported(other, lines)).position == 1

    async def test_import_into_a_squad_with_events_is_refused(
        self, connection: Connection, second_database: str
    ) -> None:
        await append_sample_history(connection)
        lines = await _exported(connection)
        async with connected(second_database) as other:
            await _imported(other, lines)
            before = await whole_log(other)
            with pytest.raises(ImportRefused, match="the squad is not new, its log ends at position 12"):
                await _imported(other, lines)
            assert await whole_log(other) == before

    async def test_import_into_a_squad_with_filled_tables_is_refused(
        self, connection: Connection, second_database: str
    ) -> None:
        await append_sample_history(connection)
        async with connected(second_database) as other:
            await append_sample_history(other)
            async with running(Projector(second_database, SCHEMA, Hints()).run()):
                await eventually(partial(projected_to_head, second_database))
            await tamper(other, "TRUNCATE events")
            assert "the squad is not new" in await _refusal(other, await _exported(connection))


class TestConcurrentImports:
    async def test_one_of_two_imports_wins_and_the_other_stores_nothing(
        self, connection: Connection, second_database: str
    ) -> None:
        await append_sample_history(connection)
        lines = await _exported(connection)
        async with connected(second_database) as one, connected(second_database) as other:
            outcomes = await asyncio.gather(
                _imported(one, lines), _imported(other, lines), return_exceptions=True
            )
            [refused] = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            assert "the squad is not new" in str(refused)
        await assert_log_is_sound(second_database)

    async def test_second_import_does_not_wait_forever_for_the_lock(
        self, connection: Connection, second_database: str
    ) -> None:
        await append_sample_history(connection)
        lines = await _exported(connection)
        may_continue = asyncio.Event()

        async def slowly() -> AsyncIterator[list[bytes]]:
            yield lines[:4]
            await may_continue.wait()
            yield lines[4:]

        async with connected(second_database) as one, connected(second_database) as other:
            first = asyncio.create_task(import_log(one, slowly()))
            await eventually(partial(lock_is_held, other))
            await other.execute("SET lock_timeout = 100")
            with pytest.raises(ImportRefused, match="another process is writing to this squad"):
                await _imported(other, lines)
            may_continue.set()
            assert (await first).position == 12

    async def test_writer_started_during_an_import_continues_from_the_imported_events(
        self, connection: Connection, second_database: str
    ) -> None:
        await append_sample_history(connection)
        lines = await _exported(connection)
        may_continue = asyncio.Event()

        async def slowly() -> AsyncIterator[list[bytes]]:
            yield lines[:4]
            await may_continue.wait()
            yield lines[4:]

        async with connected(second_database) as one, connected(second_database) as other:
            importing = asyncio.create_task(import_log(one, slowly()))
            await eventually(partial(lock_is_held, other))
            writing = asyncio.create_task(_send_message(second_database))
            await eventually(partial(_lock_is_awaited, other))
            may_continue.set()
            assert (await importing).position == 12
            assert await writing > 12
        events = await assert_log_is_sound(second_database)
        assert [event_line(event) for event in events[:12]] == lines[1:-1]


async def _send_message(dsn: str) -> int:
    async with running_writer(dsn) as writer:
        return (await submit(writer, message("hello"))).position or 0


async def _lock_is_awaited(connection: Connection) -> bool:
    row = await (
        await connection.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        )
    ).fetchone()
    return bool(row and row[0])


async def test_import_whose_connection_breaks_stores_nothing(
    connection: Connection, second_database: str
) -> None:
    await append_sample_history(connection)
    lines = await _exported(connection)

    async def broken() -> AsyncIterator[list[bytes]]:
        yield lines[:4]
        async with connected(second_database) as other:
            assert await terminate_backends(other, "squad test") >= 1
        yield lines[4:]

    async with connected(second_database) as one:
        with pytest.raises(StoreUnavailable):
            await import_log(one, broken())
    async with connected(second_database) as other:
        assert await log.head_position(other) == 0
        assert await lock_is_free(other)


async def test_memory_does_not_grow_with_the_length_of_the_log(
    connection: Connection, second_database: str
) -> None:
    log_writer = LogWriter(connection)
    for _ in range(10):
        await log_writer.append(*(message_sent("x" * 20_000) for _ in range(100)))
    async with connected(second_database) as other:
        tracemalloc.start()
        try:
            await export_log(connection, lambda _: None)
            _, exported_bytes = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()

            async def chunks() -> AsyncIterator[list[bytes]]:
                for position in range(1_000):
                    if position == 0:
                        yield [(await _exported(connection, until=1))[0]]
                    recorded = await lookup.read_one(connection, position + 1)
                    assert recorded
                    yield [event_line(recorded)]
                yield [(await _exported(connection, after=1_000))[-1].replace(b":0,", b":1000,", 1)]

            head = await import_log(other, chunks())
            _, imported_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert head.position == 1_000
    assert exported_bytes < 6_000_000
    assert imported_bytes < 6_000_000


@asynccontextmanager
async def _encrypting_writer(dsn: str) -> AsyncIterator[Writer]:
    writer = Writer(dsn, SCHEMA, DatabaseClock(), Hints(), encrypt=True)
    async with running(writer.run(), Projector(dsn, SCHEMA, Hints()).run()):
        await submit(writer, do.SetPolicy(daily_tokens=1_000))
        yield writer
        await eventually(partial(projected_to_head, dsn))


def _email(sender: str, number: int) -> do.LogEmail:
    return do.LogEmail(gmail_message_id=f"g{number}", from_email=sender, subject=f"secret {number}")


async def _readable(connection: Connection) -> list[tuple[Any, ...]]:
    """The contents of messages and e-mails in the read tables."""
    query: LiteralString = (
        "SELECT position, message, NULL FROM squad_messages"
        " UNION ALL SELECT created_position, from_email, subject FROM email_logs ORDER BY 1"
    )
    return await (await connection.execute(query)).fetchall()


async def _record_three_subjects(dsn: str) -> None:
    """Record a message and the e-mails of two senders, of whom the first is then forgotten."""
    async with _encrypting_writer(dsn) as writer:
        await submit(writer, message("a secret message"))
        await submit(writer, _email("gone@example.com", 1))
        await submit(writer, _email("here@example.com", 2))
        await submit(writer, do.ForgetSubject(subject="gone@example.com"))


async def test_keys_are_exported_and_imported_except_destroyed_ones(
    database: str, connection: Connection, second_database: str
) -> None:
    await _record_three_subjects(database)
    lines = await _exported(connection)
    # Keys for messages are made in advance, so there are more of them than messages.
    exported_keys = [line for line in lines if b'"kind":"key"' in line]
    assert sum(b'"subject":null' not in line for line in exported_keys) == 1
    assert not any(text in b"".join(lines) for text in (b"secret", b"example.com"))
    async with connected(second_database) as other:
        await _imported(other, lines)
        assert await _exported(other) == lines
        async with running(Projector(second_database, SCHEMA, Hints()).run()):
            await eventually(partial(projected_to_head, second_database))
        rows = await _readable(other)
    assert rows == await _readable(connection)
    contents = [text for _, *texts in rows for text in texts]
    assert contents == ["a secret message", None, "(erased)", None, "here@example.com", "secret 2"]


async def test_sealed_payloads_are_unreadable_when_imported_without_keys(
    database: str, connection: Connection, second_database: str
) -> None:
    await _record_three_subjects(database)
    lines = await _exported(connection, with_keys=False)
    async with connected(second_database) as other:
        await _imported(other, lines)
        assert await _exported(other) == lines
        async with running(Projector(second_database, SCHEMA, Hints()).run()):
            await eventually(partial(projected_to_head, second_database))
        contents = [text for _, *texts in await _readable(other) for text in texts]
    assert contents == ["(erased)", None] * 3
    await assert_log_is_sound(second_database)


async def test_misplaced_or_repeated_key_is_refused(
    database: str, connection: Connection, second_database: str
) -> None:
    await _record_three_subjects(database)
    lines = await _exported(connection)
    key = next(line for line in lines if b'"kind":"key"' in line)
    async with connected(second_database) as other:
        assert "keys must come before" in await _refusal(other, [*lines[:-1], key, lines[-1]])
        assert "a key up to line" in await _refusal(other, [lines[0], key, *lines[1:]])
        assert await _readable(other) == []
        cursor = await other.execute("SELECT count(*) FROM subject_keys")
        assert await cursor.fetchone() == (0,)
