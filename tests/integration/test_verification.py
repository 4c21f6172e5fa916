"""Tampering with the log is found at its position: by us, by SQL, and by a script in plain Python."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING, LiteralString

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from eventstore import checkpoint, log, lookup, verification
from eventstore.errors import StoreUnavailable
from eventstore.recorded import Head
from eventstore.transfer import export_log
from service import commands as do
from tests.support.audit import (
    VERIFIER,
    first_bad_position_by_sql,
    sql_for_restored_keys,
    verify_in_plain_python,
)
from tests.support.components import connected, message, running_writer, submit
from tests.support.log import LogWriter, message_sent, new_id
from tests.support.log_tampering import (
    EVENTS,
    append_sample_history,
    rehash_log,
    replace_history,
    tamper,
    triggers_disabled,
)
from tests.support.random_history import RandomHistory

if TYPE_CHECKING:
    from pathlib import Path

    from eventstore.checkpoint import Checkpoint
    from eventstore.connection import Connection
    from eventstore.verification import Check, Verified

KEY = Ed25519PrivateKey.generate()


async def _verify(connection: Connection, *checkpoints: Checkpoint) -> Verified:
    named = [(f"{number}.json", each) for number, each in enumerate(checkpoints, 1)]
    async with verification.snapshot(connection):
        return await verification.verify_log(connection, named)


async def _faults(connection: Connection, *checkpoints: Checkpoint) -> dict[str, Check]:
    """The checks that fail, by name."""
    verified = await _verify(connection, *checkpoints)
    return {check.name: check for check in verified.checks if not check.holds}


async def _checkpoint(connection: Connection, position: int | None = None) -> Checkpoint:
    first = await lookup.read_one(connection, 1)
    last = await lookup.read_one(connection, position or await log.head_position(connection))
    assert first
    assert last
    head = Head(last.position, last.hash, last.recorded_at)
    return checkpoint.sign(KEY, first.id, head, await log.clock(connection))


async def _export(connection: Connection, folder: Path) -> Path:
    file = folder / "log.jsonl"
    with file.open("wb") as opened:
        await export_log(connection, opened.write)
    return file


@pytest.mark.parametrize("seed", range(3))
async def test_log_of_any_history_passes_every_verification(
    database: str, connection: Connection, tmp_path: Path, seed: int
) -> None:
    async with running_writer(database) as writer:
        await RandomHistory(seed).submit_commands(writer, 150, at_once=20)
    verified = await _verify(connection, await _checkpoint(connection, 1), await _checkpoint(connection))
    assert [check for check in verified.checks if not check.holds] == []
    assert {check.name for check in verified.checks} == {
        *("positions", "chain", "times", "causes", "streams", "ids", "guards", "forgotten", "checkpoint")
    }
    assert await first_bad_position_by_sql(connection) is None
    code, output = verify_in_plain_python(await _export(connection, tmp_path))
    head = await log.head(connection)
    assert (code, output) == (0, f"{head.position} events hold, up to {head.position}: {head.hash.hex()}\n")
    assert (verified.position, verified.hash) == (head.position, head.hash)


async def test_empty_log_passes_every_verification(connection: Connection, tmp_path: Path) -> None:
    verified = await _verify(connection)
    assert verified.first_fault is None
    assert (verified.position, verified.squad) == (0, None)
    assert await first_bad_position_by_sql(connection) is None
    code, output = verify_in_plain_python(await _export(connection, tmp_path))
    assert (code, output) == (0, f"0 events hold, up to 0: {'0' * 64}\n")


@pytest.mark.parametrize(
    "column",
    [
        "id = gen_random_uuid()",
        "stream = stream || '!'",
        "version = 7",
        "type = 'message_sent_'",
        "schema_version = 2",
        "data = replace(data::text, 'message 6', 'message 7')::json",
        "data = (data::text || ' ')::json",
        "actor = 'agent:mallory'",
        "caused_by = 2",
        "correlation_id = ''",
        "idempotency_key = NULL",
        "idempotency_key = 'key-7'",
        "recorded_at = recorded_at + interval '1 microsecond'",
        "hash = set_byte(hash, 31, get_byte(hash, 31) # 1)",
    ],
)
async def test_changed_column_of_an_event_is_found_at_its_position(
    connection: Connection, tmp_path: Path, column: LiteralString
) -> None:
    await append_sample_history(connection)
    await tamper(connection, f"UPDATE events SET {column} WHERE position = 6")
    fault = (await _faults(connection))["chain"]
    assert fault.position == 6
    assert fault.faults == (2 if column.startswith("hash") else 1)
    assert await first_bad_position_by_sql(connection) == 6
    code, output = verify_in_plain_python(await _export(connection, tmp_path))
    assert (code, output) == (1, "line 7: position 6 is missing, or does not match its hash\n")


async def test_removed_event_is_found_at_its_position(connection: Connection, tmp_path: Path) -> None:
    await append_sample_history(connection)
    await tamper(connection, "DELETE FROM events WHERE position = 6")
    faults = await _faults(connection)
    assert (faults["positions"].position, faults["positions"].says) == (6, "is missing")
    # The acknowledgement of the removed message.
    assert (faults["streams"].position, faults["streams"].faults) == (7, 1)
    assert faults.keys() == {"positions", "streams"}
    assert await first_bad_position_by_sql(connection) == 6
    code, output = verify_in_plain_python(await _export(connection, tmp_path))
    assert (code, output) == (1, "line 7: position 6 is missing, or does not match its hash\n")


async def test_several_removed_events_are_found_at_the_first_one(connection: Connection) -> None:
    await append_sample_history(connection)
    await tamper(connection, "DELETE FROM events WHERE position IN (4, 5, 6, 9)")
    fault = (await _faults(connection))["positions"]
    assert (fault.position, fault.says, fault.faults) == (4, "is missing, as are all up to 6", 2)
    assert await first_bad_position_by_sql(connection) == 4


async def test_removed_first_event_is_found(connection: Connection, tmp_path: Path) -> None:
    await append_sample_history(connection)
    await tamper(connection, "DELETE FROM events WHERE position = 1")
    assert (await _faults(connection))["positions"].position == 1
    assert await first_bad_position_by_sql(connection) == 1
    code, output = verify_in_plain_python(await _export(connection, tmp_path))
    assert (code, output) == (1, "line 2: position 1 is missing, or does not match its hash\n")


async def test_two_swapped_events_are_found_at_the_first_one(
    connection: Connection, tmp_path: Path
) -> None:
    await append_sample_history(connection)
    await tamper(
        connection,
        "UPDATE events SET position = 1000 WHERE position = 4",
        "UPDATE events SET position = 4 WHERE position = 8",
        "UPDATE events SET position = 8 WHERE position = 1000",
    )
    faults = await _faults(connection)
    assert faults["chain"].position == 4
    assert faults["times"].position == 5
    assert faults["streams"].position == 5
    assert await first_bad_position_by_sql(connection) == 4
    code, output = verify_in_plain_python(await _export(connection, tmp_path))
    assert (code, output) == (1, "line 5: position 4 is missing, or does not match its hash\n")


async def test_changed_version_is_found_even_if_all_hashes_were_recomputed(
    connection: Connection, tmp_path: Path
) -> None:
    await append_sample_history(connection)
    await tamper(connection, "UPDATE events SET version = 3 WHERE position = 7")
    await rehash_log(connection)
    faults = await _faults(connection)
    assert faults.keys() == {"streams"}
    assert faults["streams"].position == 7
    assert faults["streams"].says.startswith("is version 3 of 'message-")
    assert faults["streams"].says.endswith("', expected 2")
    code, output = verify_in_plain_python(await _export(connection, tmp_path))
    assert code == 1
    assert output.startswith("line 8: position 7 is not version 2 of message-")


@pytest.mark.parametrize(
    ("changes", "name", "position"),
    [
        (("UPDATE events SET recorded_at = '2020-01-01' WHERE position = 8",), "times", 8),
        (("UPDATE events SET recorded_at = '2120-01-01' WHERE position = 8",), "times", 9),
        (
            (
                "ALTER TABLE events DROP CONSTRAINT events_check",
                "UPDATE events SET caused_by = 9 WHERE position = 9",
            ),
            "causes",
            9,
        ),
        (
            (
                "ALTER TABLE events DROP CONSTRAINT events_id_key",
                "UPDATE events SET id = (SELECT id FROM events WHERE position = 2) WHERE position = 5",
            ),
            "ids",
            5,
        ),
        (
            (
                "DROP INDEX events_idempotency_key",
                "UPDATE events SET idempotency_key = 'key-2' WHERE position = 6",
            ),
            "ids",
            6,
        ),
    ],
)
async def test_event_that_violates_a_guard_is_found_even_if_all_hashes_were_recomputed(
    connection: Connection, changes: tuple[LiteralString, ...], name: str, position: int
) -> None:
    await append_sample_history(connection)
    await tamper(connection, *changes)
    await rehash_log(connection)
    faults = await _faults(connection)
    assert faults.keys() - {"guards"} == {name}
    assert faults[name].position == position


async def test_duplicate_position_is_found_when_the_primary_key_was_dropped(
    connection: Connection,
) -> None:
    await append_sample_history(connection)
    await tamper(
        connection,
        "ALTER TABLE events DROP CONSTRAINT events_pkey",
        "UPDATE events SET position = 6 WHERE position = 8",
    )
    faults = await _faults(connection)
    assert (faults["positions"].position, faults["positions"].says) == (6, "occurs more than once")
    assert faults["guards"].says == "the unique key on (position) is missing or not valid"
    assert await first_bad_position_by_sql(connection) == 6


@pytest.mark.parametrize(
    "column", ["position", "id", "stream", "version", "data", "actor", "recorded_at", "hash"]
)
async def test_null_in_a_row_is_reported_as_a_fault_and_is_not_an_error(
    connection: Connection, column: LiteralString
) -> None:
    await append_sample_history(connection)
    if column == "position":
        await tamper(connection, "ALTER TABLE events DROP CONSTRAINT events_pkey")
    await tamper(
        connection,
        f"ALTER TABLE events ALTER COLUMN {column} DROP NOT NULL",
        f"UPDATE events SET {column} = NULL WHERE position = 12",
    )
    faults = await _faults(connection)
    if column == "position":
        assert faults["positions"].says == "a row has the position NULL"
    else:
        assert faults["chain"].position == 12
    assert await first_bad_position_by_sql(connection) == 12


@pytest.mark.parametrize(
    ("emptied", "taking_its_place"),
    [
        ("correlation_id", "idempotency_key = correlation_id || E'\\n' || idempotency_key"),
        ("id", "stream = id || E'\\n' || stream"),
        (
            "recorded_at",
            "idempotency_key = idempotency_key || E'\\n'"
            " || (extract(epoch FROM recorded_at) * 1000000)::bigint",
        ),
    ],
)
async def test_field_that_was_moved_into_its_neighbour_is_found(
    connection: Connection, emptied: LiteralString, taking_its_place: LiteralString
) -> None:
    """The hashed text could be the same: the value now follows a line feed in the neighbouring field."""
    await append_sample_history(connection)
    await tamper(
        connection,
        "ALTER TABLE events DROP CONSTRAINT events_idempotency_key_check",
        "ALTER TABLE events DROP CONSTRAINT events_stream_check",
        f"ALTER TABLE events ALTER COLUMN {emptied} DROP NOT NULL",
        f"UPDATE events SET {emptied} = NULL, {taking_its_place} WHERE position = 6",
    )
    assert (await _faults(connection))["chain"].position == 6
    assert await first_bad_position_by_sql(connection) == 6


async def test_empty_idempotency_key_in_place_of_none_is_found(connection: Connection) -> None:
    """The hashed text would be the same."""
    await append_sample_history(connection)
    await tamper(connection, "UPDATE events SET idempotency_key = '' WHERE position = 7")
    assert (await _faults(connection))["chain"].position == 7
    assert await first_bad_position_by_sql(connection) == 7
    assert (await export_log(connection, lambda _: None)).broken_at == 7


@pytest.mark.parametrize(
    "change",
    [
        "recorded_at = 'infinity'",
        "recorded_at = '4000-01-01 BC'",
        "recorded_at = '290000-01-01'",
        *(
            f"{column} = NULL"
            for column in (
                *("id", "stream", "version", "type", "schema_version", "data", "actor", "correlation_id"),
                *("recorded_at", "hash"),
            )
        ),
    ],
)
@pytest.mark.parametrize("position", [1, 6])
async def test_row_that_is_no_longer_an_event_is_exported_with_all_that_follow(
    connection: Connection, tmp_path: Path, change: LiteralString, position: int
) -> None:
    await append_sample_history(connection)
    column, _, value = change.partition(" = ")
    await tamper(
        connection,
        f"ALTER TABLE events ALTER COLUMN {column} DROP NOT NULL",
        f"UPDATE events SET {change} WHERE position = {position}",
    )
    lines: list[bytes] = []
    assert (await export_log(connection, lines.append)).broken_at == position
    exported = [json.loads(line) for line in lines[1:-1]]
    assert [event["position"] for event in exported] == list(range(1, EVENTS + 1))
    changed = exported[position - 1][column]
    assert changed is None if value == "NULL" else changed.startswith(value[1:9])
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"".join(lines))
    code, output = verify_in_plain_python(file)
    assert (code, output.startswith(f"line {position + 1}")) == (1, True)
    await export_log(connection, lines.append, cloud_events=True, after=position)
    await export_log(connection, lines.append, cloud_events=True)
    assert [json.loads(line)["position"] for line in lines[EVENTS + 2 :]] == [
        str(number) for first in (position + 1, 1) for number in range(first, EVENTS + 1)
    ]


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "4000-01-01 BC", "290000-01-01"])
async def test_time_out_of_range_is_reported_as_a_fault_and_is_not_an_error(
    connection: Connection, moment: LiteralString
) -> None:
    await append_sample_history(connection)
    await tamper(connection, f"UPDATE events SET recorded_at = '{moment}' WHERE position = 12")
    assert (await _faults(connection))["chain"].position == 12
    # Also if it was hashed, as the text that Postgres makes of it.
    await tamper(
        connection,
        "UPDATE events e SET hash = sha256(before.hash || convert_to(concat_ws(E'\\n', e.position, e.id,"
        " e.stream, e.version, e.type, e.schema_version, e.actor, '', e.correlation_id, '',"
        " trim_scale(extract(epoch FROM e.recorded_at) * 1000000), e.data), 'UTF8'))"
        " FROM events before WHERE e.position = 12 AND before.position = 11",
    )
    assert (await _faults(connection))["chain"].position == 12
    assert await first_bad_position_by_sql(connection) == 12


async def test_earliest_and_latest_representable_times_pass(
    connection: Connection,
) -> None:
    await append_sample_history(connection)
    await tamper(
        connection,
        "UPDATE events SET recorded_at = '0001-01-01Z' WHERE position = 1",
        "UPDATE events SET recorded_at = '9999-12-31 23:59:59.999999Z' WHERE position = 12",
    )
    await rehash_log(connection)
    assert await _faults(connection) == {}
    assert (await export_log(connection, lambda _: None)).broken_at is None


async def test_row_that_is_missing_from_the_index_is_found(connection: Connection) -> None:
    await append_sample_history(connection)
    off = "UPDATE pg_index SET indisready = {} WHERE indexrelid = 'events_pkey'::regclass"
    await tamper(
        connection,
        off.format("false"),
        "INSERT INTO events (position, id, stream, version, type, schema_version, data, actor,"
        " correlation_id, recorded_at, hash) SELECT 13, gen_random_uuid(), 'hidden', 1, 'hidden', 1, '{}',"
        " 'x', 'x', recorded_at, hash FROM events WHERE position = 12",
        off.format("true"),
    )
    await connection.execute("SET enable_seqscan = off; SET enable_sort = off")
    assert (await _faults(connection))["positions"].says == "the table has 13 rows, but its index has 12"


def _recreated_guard(definition: LiteralString, function: LiteralString = "refuse_change") -> LiteralString:
    """SQL that replaces the trigger that refuses changes by another one of the same name."""
    return (
        "DROP TRIGGER events_are_immutable ON events;"
        f" CREATE TRIGGER events_are_immutable {definition} EXECUTE FUNCTION {function}();"
        " ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_immutable"
    )


def _recreated_key_trigger(definition: LiteralString) -> LiteralString:
    """SQL that replaces the trigger that destroys keys by another one of the same name."""
    return (
        "DROP TRIGGER events_destroy_keys ON events;"
        f" CREATE TRIGGER events_destroy_keys {definition} EXECUTE FUNCTION destroy_key();"
        " ALTER TABLE events ENABLE ALWAYS TRIGGER events_destroy_keys"
    )


class TestGuards:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ("ALTER TABLE events DISABLE TRIGGER ALL", "the trigger events_are_immutable"),
            (
                "ALTER TABLE events ENABLE TRIGGER events_are_not_updated",
                "the trigger events_are_not_updated",
            ),
            ("DROP TRIGGER events_are_never_truncated ON events", "the trigger events_are_never_truncated"),
            ("ALTER TABLE events DROP CONSTRAINT events_id_key", "the unique key on (id)"),
            (
                "ALTER TABLE events DROP CONSTRAINT events_stream_version_key",
                "the unique key on (stream, version)",
            ),
            (
                "UPDATE pg_index SET indisready = false WHERE indexrelid = 'events_id_key'::regclass",
                "the unique key on (id)",
            ),
            *(
                (f"ALTER TABLE events DROP CONSTRAINT events_id_key; {index}", "the unique key on (id)")
                for index in (
                    "CREATE INDEX events_id_key ON events (id)",
                    "CREATE UNIQUE INDEX events_id_key ON events (id) WHERE position > 6",
                )
            ),
            *(
                (f"UPDATE pg_index SET {flag} = false WHERE indexrelid = '{index}'::regclass", says)
                for flag, index, says in (
                    ("indisvalid", "events_id_key", "the unique key on (id)"),
                    ("indisvalid", "events_idempotency_key", "the unique index events_idempotency_key"),
                    ("indisready", "events_idempotency_key", "the unique index events_idempotency_key"),
                )
            ),
            *(
                (f"DROP INDEX {name}", f"the unique index {name} is missing or not valid")
                for name in ("events_idempotency_key", "events_gmail_message_id", "subject_keys_subject")
            ),
            (
                "DROP INDEX events_idempotency_key; CREATE INDEX events_idempotency_key"
                " ON events (idempotency_key) WHERE idempotency_key IS NOT NULL",
                "the unique index events_idempotency_key",
            ),
            ("ALTER TABLE events DISABLE TRIGGER events_destroy_keys", "the trigger events_destroy_keys"),
            ("ALTER TABLE events ENABLE TRIGGER events_destroy_keys", "the trigger events_destroy_keys"),
            ("DROP TRIGGER events_destroy_keys ON events", "the trigger events_destroy_keys"),
            ("ALTER TABLE events ALTER COLUMN agent DROP EXPRESSION", "the column agent"),
            (
                "ALTER TABLE events DROP COLUMN agent;"
                " ALTER TABLE events ADD COLUMN agent text GENERATED ALWAYS AS (data ->> 'agent') STORED",
                "the column agent",
            ),
        ],
    )
    async def test_removed_guard_is_found(
        self, connection: Connection, change: LiteralString, says: str
    ) -> None:
        await append_sample_history(connection)
        await connection.execute(change)
        faults = await _faults(connection)
        assert faults.keys() == {"guards"}
        assert faults["guards"].says.startswith(says)

    @pytest.mark.parametrize(
        ("change", "triggers"),
        [
            (
                "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS"
                " 'BEGIN RETURN coalesce(NEW, OLD); END'",
                3,
            ),
            (_recreated_guard("BEFORE UPDATE OR DELETE ON events FOR EACH ROW WHEN (false)"), 1),
            (_recreated_guard("BEFORE UPDATE ON events FOR EACH ROW"), 1),
            (_recreated_guard("BEFORE UPDATE OF actor OR DELETE ON events FOR EACH ROW"), 1),
            (_recreated_guard("BEFORE UPDATE OR DELETE ON events"), 1),
            (_recreated_guard("AFTER INSERT ON events FOR EACH ROW"), 1),
            (_recreated_guard("BEFORE UPDATE OR DELETE ON events FOR EACH ROW", "allow_change"), 1),
            (
                _recreated_guard(
                    "BEFORE UPDATE OR DELETE ON events FOR EACH ROW", "elsewhere.refuse_change"
                ),
                1,
            ),
        ],
    )
    async def test_trigger_that_no_longer_refuses_changes_is_found(
        self, connection: Connection, change: LiteralString, triggers: int
    ) -> None:
        await append_sample_history(connection)
        await connection.execute("CREATE SCHEMA elsewhere")
        for name in ("allow_change", "elsewhere.refuse_change"):
            allow = f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
            await connection.execute(allow.encode())
        assert await _faults(connection) == {}
        await connection.execute(change)
        faults = await _faults(connection)
        assert faults.keys() == {"guards"}
        assert faults["guards"].says == (
            "the trigger events_are_immutable does not refuse what it should refuse"
        )
        assert faults["guards"].faults == triggers

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            ("CREATE RULE other AS ON INSERT TO events DO INSTEAD NOTHING", "the rule other"),
            (
                "CREATE FUNCTION drop_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
                " CREATE TRIGGER other BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION drop_it()",
                "the trigger other",
            ),
        ],
        ids=["rule", "trigger"],
    )
    async def test_rule_or_trigger_that_could_drop_appended_events_is_found(
        self, connection: Connection, change: LiteralString, what: str
    ) -> None:
        await append_sample_history(connection)
        await connection.execute(
            "CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
            " CREATE TRIGGER looks AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION look()"
        )
        assert await _faults(connection) == {}
        await connection.execute(change)
        faults = await _faults(connection)
        assert faults.keys() == {"guards"}
        says = f"{what} can change or drop what is appended, and is not from schema.sql"
        assert (faults["guards"].says, faults["guards"].faults) == (says, 1)

    async def test_agent_column_that_differs_from_the_events_data_is_found(
        self, connection: Connection
    ) -> None:
        await append_sample_history(connection)
        computed = (
            "UPDATE pg_attribute SET attgenerated = '{}' WHERE attrelid = 'events'::regclass"
            " AND attname = 'agent'"
        )
        await tamper(
            connection,
            computed.format(""),
            "UPDATE events SET agent = 'mallory' WHERE position IN (5, 7)",
            computed.format("s"),
        )
        fault = (await _faults(connection))["guards"]
        assert (fault.position, fault.says) == (5, "the column agent does not match the event's data")
        assert fault.faults == 2

    @pytest.mark.parametrize(
        "change",
        [
            "CREATE OR REPLACE FUNCTION destroy_key() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
            " 'BEGIN RETURN NULL; END'",
            "ALTER FUNCTION destroy_key() SECURITY INVOKER",
            _recreated_key_trigger(
                "AFTER INSERT ON events FOR EACH ROW WHEN (NEW.type = 'subject_forgotten ')"
            ),
            _recreated_key_trigger("AFTER INSERT ON events FOR EACH ROW"),
            _recreated_key_trigger("AFTER INSERT ON events"),
        ],
    )
    async def test_trigger_that_no_longer_destroys_keys_is_found(
        self, connection: Connection, change: LiteralString
    ) -> None:
        await append_sample_history(connection)
        await connection.execute(change)
        faults = await _faults(connection)
        assert faults.keys() == {"guards"}
        assert faults["guards"].says == (
            "the trigger events_destroy_keys does not destroy what it should destroy"
        )


class TestForgotten:
    @pytest.fixture
    async def forgotten(self, database: str, connection: Connection) -> int:
        """The position at which a message was forgotten; the table `backup` still has its key."""
        async with running_writer(database, encrypt=True) as writer:
            sent = await submit(writer, message("a private word"))
            await connection.execute(
                "CREATE TABLE backup AS SELECT k.* FROM subject_keys k JOIN events ON type = 'message_sent'"
                " AND data #>> '{sealed,key}' = k.id::text"
            )
            outcome = await submit(writer, do.ForgetSubject(subject=sent.reply["id"]))
        assert outcome.position
        return outcome.position

    async def test_destroyed_key_that_was_restored_from_a_backup_is_found(
        self, connection: Connection, forgotten: int
    ) -> None:
        assert await _faults(connection) == {}
        await connection.execute("INSERT INTO subject_keys SELECT * FROM backup")
        (found,) = (await _faults(connection)).values()
        assert (found.name, found.position, found.faults) == ("forgotten", forgotten, 1)
        await connection.execute(sql_for_restored_keys().encode())
        assert await _faults(connection) == {}

    async def test_check_for_restored_keys_is_left_out_when_keys_are_not_accessible(
        self, connection: Connection, forgotten: int
    ) -> None:
        assert "forgotten" in {check.name for check in (await _verify(connection)).checks}
        await connection.execute("DROP TABLE subject_keys")
        assert "forgotten" not in {check.name for check in (await _verify(connection)).checks}


class TestCheckpoints:
    async def test_log_that_has_grown_passes(self, connection: Connection) -> None:
        await append_sample_history(connection)
        before = await _checkpoint(connection)
        log_writer = LogWriter(connection)
        await log_writer.catch_up()
        await log_writer.append(message_sent("later"))
        assert await _faults(connection, before, await _checkpoint(connection)) == {}

    async def test_truncated_log_is_found(self, connection: Connection) -> None:
        await append_sample_history(connection)
        before = await _checkpoint(connection)
        await tamper(connection, "DELETE FROM events WHERE position > 9")
        assert await _faults(connection) == {}
        fault = (await _faults(connection, before))["checkpoint"]
        assert fault.position == 10
        assert fault.says.startswith("1.json, signed 2")
        assert fault.says.endswith(f"covers events up to {EVENTS}: the log was truncated")

    async def test_truncated_log_that_grew_again_is_found(self, connection: Connection) -> None:
        await append_sample_history(connection)
        before = await _checkpoint(connection)
        await tamper(connection, "DELETE FROM events WHERE position > 9")
        log_writer = LogWriter(connection)
        await log_writer.catch_up()
        for number in range(9):
            await log_writer.append(message_sent(f"instead {number}"))
        assert await _faults(connection) == {}
        fault = (await _faults(connection, before))["checkpoint"]
        assert (fault.position, "the log was rewritten" in fault.says) == (EVENTS, True)

    async def test_rewritten_log_is_found(self, connection: Connection) -> None:
        await append_sample_history(connection)
        before = await _checkpoint(connection)
        await replace_history(connection)
        assert await _faults(connection) == {}
        fault = (await _faults(connection, before))["checkpoint"]
        assert (fault.position, "the log was rewritten" in fault.says) == (EVENTS, True)

    async def test_rewritten_log_with_another_first_event_is_found(self, connection: Connection) -> None:
        await append_sample_history(connection)
        before = await _checkpoint(connection)
        await replace_history(connection, new_id())
        assert await _faults(connection) == {}
        fault = (await _faults(connection, before))["checkpoint"]
        assert (fault.position, "or is another squad's" in fault.says) == (1, True)

    async def test_emptied_log_is_found(self, connection: Connection) -> None:
        await append_sample_history(connection)
        before = await _checkpoint(connection)
        await tamper(connection, "TRUNCATE events")
        assert (await _faults(connection, before))["checkpoint"].position == 1

    async def test_only_checkpoints_after_the_first_changed_event_fail(
        self, connection: Connection
    ) -> None:
        await append_sample_history(connection)
        checkpoints = [await _checkpoint(connection, position) for position in (3, 6, 9)]
        async with triggers_disabled(connection):
            await connection.execute("UPDATE events SET actor = 'mallory' WHERE position >= 5")
        await rehash_log(connection)
        checks = [
            each for each in (await _verify(connection, *checkpoints)).checks if each.name == "checkpoint"
        ]
        assert [(each.holds, each.position) for each in checks] == [(True, None), (False, 6), (False, 9)]


async def test_concurrent_appends_do_not_affect_verification(database: str, connection: Connection) -> None:
    await append_sample_history(connection)
    async with connected(database) as other, verification.snapshot(connection):
        await connection.execute("SELECT FROM events LIMIT 1")
        log_writer = LogWriter(other)
        await log_writer.catch_up()
        await log_writer.append(message_sent("meanwhile"))
        verified = await verification.verify_log(connection)
    assert (verified.first_fault, verified.position) == (None, EVENTS)


async def test_end_of_the_snapshot_does_not_hide_a_broken_connection(connection: Connection) -> None:
    async def broken() -> None:
        async with verification.snapshot(connection):
            connection.pgconn.finish()
            await verification.verify_log(connection)

    with pytest.raises(StoreUnavailable):
        await broken()


async def test_progress_is_reported_at_intervals(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "REPORT_EVERY_EVENTS", 5)
    await append_sample_history(connection)
    reported: list[int] = []
    async with verification.snapshot(connection):
        await verification.verify_log(connection, report=reported.append)
    assert reported == [5, 10, EVENTS]


async def test_memory_does_not_grow_with_the_length_of_the_log(connection: Connection) -> None:
    log_writer = LogWriter(connection)
    for _ in range(10):
        await log_writer.append(*(message_sent("x" * 20_000) for _ in range(100)))
    reported: list[int] = []
    tracemalloc.start()
    try:
        async with verification.snapshot(connection):
            verified = await verification.verify_log(connection, report=reported.append)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert verified.position == reported[-1] == 1_000
    assert peak_bytes < 6_000_000


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("file", "7"),
        ("file", "seven", "00"),
        ("file", "7", "00", "more"),
    ],
    ids=len,
)
def test_verifier_prints_its_usage_without_a_file_or_with_half_a_checkpoint(
    arguments: tuple[str, ...],
) -> None:
    command = [sys.executable, "-I", "-S", str(VERIFIER), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    usage = "usage: python verify_export.py FILE [POSITION HASH]\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", usage)


def test_verifier_has_at_most_80_lines() -> None:
    assert len(VERIFIER.read_text().splitlines()) <= 80
