"""Definitions that the guards rely on: a changed function, table, policy or key is found and named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, LiteralString

import pytest

from eventstore import guards, schema
from tests.support.components import SCHEMA, connected
from tests.support.log import LogWriter, message_sent
from tests.support.log_tampering import append_sample_history

if TYPE_CHECKING:
    from eventstore.connection import Connection

FIRST_SCHEMA = Path(__file__).parent.parent / "golden" / "schema.v1.sql"
KEEP = "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"


async def test_upgraded_schema_has_all_guards(empty_database: str) -> None:
    async with connected(empty_database) as connection:
        await connection.execute("CREATE SCHEMA squad")
        await connection.execute(FIRST_SCHEMA.read_bytes())
        await connection.execute("INSERT INTO schema_info (version) VALUES (1)")
        await schema.apply(empty_database, SCHEMA)
        assert await guards.missing_guards(connection) == []


def _wrong_function(name: str) -> str:
    return f"the function {name} is missing, overloaded, or not as schema.sql defines it"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        *(
            (
                f"DO $do$ BEGIN EXECUTE replace(pg_get_functiondef('{name}'::regproc), {change}); END $do$",
                _wrong_function(name),
            )
            for name, change in {
                "lock_log": "'events''::regclass', 'projections''::regclass'",
                "append_events": "'<= 1', '<= 1000'",
                "position_at": "'<= moment', '< moment'",
                "advance_projections": "'moved <>', 'moved >'",
                "let_in": "'IF as_what NOT IN', 'IF as_what IN'",
                "settle_access": "'INSERT', 'SELECT'",
            }.items()
        ),
        ("ALTER FUNCTION log_channel VOLATILE", _wrong_function("log_channel")),
        ("ALTER FUNCTION lock_log SET statement_timeout = '1s'", _wrong_function("lock_log")),
        ("ALTER FUNCTION append_events SECURITY DEFINER", _wrong_function("append_events")),
        ("DROP FUNCTION position_at", _wrong_function("position_at")),
        (
            "CREATE FUNCTION position_at(moment text) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'",
            _wrong_function("position_at"),
        ),
        (
            "CREATE AGGREGATE lock_log(bigint) (SFUNC = int8pl, STYPE = bigint)",
            _wrong_function("lock_log"),
        ),
        (
            "ALTER FUNCTION destroy_key() RESET search_path",
            "the trigger events_destroy_keys does not destroy what it should destroy",
        ),
        (
            "ALTER FUNCTION destroy_key() OWNER TO pg_monitor",
            "the trigger events_destroy_keys does not destroy what it should destroy",
        ),
        (
            f"{KEEP} CREATE TRIGGER t BEFORE DELETE ON subject_keys FOR EACH ROW EXECUTE FUNCTION keep()",
            "the trigger t of subject_keys can keep what must be destroyed, and is not from schema.sql",
        ),
        (
            f"{KEEP} CREATE TRIGGER other BEFORE DELETE ON snapshots FOR EACH ROW EXECUTE FUNCTION keep()",
            "the trigger other of snapshots can keep what must be destroyed, and is not from schema.sql",
        ),
        (
            "CREATE RULE other AS ON DELETE TO subject_keys DO INSTEAD NOTHING",
            "the rule other of subject_keys can keep what must be destroyed, and is not from schema.sql",
        ),
        (
            "CREATE RULE other AS ON DELETE TO snapshots DO INSTEAD NOTHING",
            "the rule other of snapshots can keep what must be destroyed, and is not from schema.sql",
        ),
        *(
            (
                f"ALTER TABLE {table} {change} ROW LEVEL SECURITY",
                f"the row level security of {table} is not as schema.sql defines it",
            )
            for table in ("events", "subject_keys", "schema_info", "snapshots", "operations")
            for change in ("DISABLE", "FORCE")
        ),
        (
            "ALTER POLICY kept ON squad_messages USING (true)",
            "the row level security of squad_messages is not as schema.sql defines it",
        ),
        (
            "ALTER POLICY seen ON events TO pg_monitor",
            "the row level security of events is not as schema.sql defines it",
        ),
        (
            "DROP POLICY seen ON events;"
            " CREATE POLICY seen ON events AS RESTRICTIVE FOR SELECT USING (true)",
            "the row level security of events is not as schema.sql defines it",
        ),
        (
            "DROP POLICY seen ON subject_keys",
            "the row level security of subject_keys is not as schema.sql defines it",
        ),
        (
            "CREATE POLICY other ON subject_keys FOR SELECT USING (true)",
            "the policy other of subject_keys is not from schema.sql",
        ),
        (
            "CREATE POLICY other ON events AS RESTRICTIVE FOR SELECT USING (position <> 6)",
            "the policy other of events is not from schema.sql",
        ),
        ("ALTER TABLE events SET UNLOGGED", "the table events is not logged"),
        ("ALTER TABLE subject_keys SET UNLOGGED", "the table subject_keys is not logged"),
        ("CREATE TABLE apart () INHERITS (events)", "the table events is not a plain table"),
        (
            "CREATE TABLE above (LIKE subject_keys); ALTER TABLE subject_keys INHERIT above",
            "the table subject_keys is not a plain table",
        ),
        (
            "ALTER TABLE subject_keys DROP CONSTRAINT subject_keys_pkey",
            "the unique index subject_keys_pkey is missing or not valid",
        ),
        (
            "ALTER TABLE projections DROP COLUMN generation",
            "the table projections has no column generation",
        ),
        (
            "ALTER TABLE snapshots ALTER COLUMN taken_at TYPE timestamp",
            "the table snapshots has the column taken_at as timestamp without time zone instead of"
            " timestamp with time zone",
        ),
        (
            "ALTER TABLE snapshots ALTER COLUMN taken_at TYPE timestamptz(0)",
            "the table snapshots has the column taken_at as timestamp(0) with time zone instead of"
            " timestamp with time zone",
        ),
        (
            "ALTER TABLE subject_keys ADD COLUMN more text NOT NULL",
            "the table subject_keys has an extra column, more, that must be filled",
        ),
        ("DROP TABLE snapshots", "the table snapshots is missing"),
        ("ALTER TABLE events ALTER COLUMN actor DROP NOT NULL", "the column actor allows NULL"),
        (
            "ALTER TABLE events DROP CONSTRAINT events_hash_check",
            "the check (length(hash) = 32) is missing or not valid",
        ),
        (
            "ALTER TABLE events DROP CONSTRAINT events_hash_check;"
            " ALTER TABLE events ADD CHECK (length(hash) = 32) NOT VALID",
            "the check (length(hash) = 32) is missing or not valid",
        ),
    ],
)
async def test_changed_definition_is_found(
    connection: Connection, change: LiteralString, problem: str
) -> None:
    await append_sample_history(connection)
    await connection.execute(change)
    assert await guards.missing_guards(connection) == [problem]


async def test_missing_table_of_keys_is_found_with_its_trigger_and_indexes(connection: Connection) -> None:
    await connection.execute("DROP TRIGGER events_destroy_keys ON events; DROP TABLE subject_keys")
    assert await guards.missing_guards(connection) == [
        "the trigger events_destroy_keys is missing, or not always enabled",
        "the unique index subject_keys_pkey is missing or not valid",
        "the unique index subject_keys_subject is missing or not valid",
        "the table subject_keys is missing",
    ]


async def test_view_in_place_of_a_table_is_found(connection: Connection) -> None:
    await connection.execute(
        "ALTER TABLE snapshots RENAME TO hidden; CREATE VIEW snapshots AS SELECT * FROM hidden"
    )
    assert "the table snapshots is not a plain table" in await guards.missing_guards(connection)


async def test_owners_additions_that_change_and_prevent_nothing_are_accepted(
    connection: Connection,
) -> None:
    await connection.execute(
        "ALTER TABLE projections ADD COLUMN empty text, ADD COLUMN filled text NOT NULL DEFAULT 'x',"
        " ADD COLUMN counted bigint GENERATED ALWAYS AS IDENTITY"
    )
    await connection.execute(
        f"{KEEP} CREATE TRIGGER looks AFTER DELETE ON subject_keys FOR EACH ROW EXECUTE FUNCTION keep()"
    )
    assert await guards.missing_guards(connection) == []


async def test_owners_additions_to_a_read_table_are_accepted(connection: Connection) -> None:
    await connection.execute(
        "CREATE POLICY other ON squad_tasks AS RESTRICTIVE TO pg_monitor USING (false)"
    )
    await connection.execute("CREATE FUNCTION ours() RETURNS integer LANGUAGE sql AS 'SELECT 1'")
    log_writer = LogWriter(connection)
    await log_writer.append(message_sent("still appended"))
    assert await guards.missing_guards(connection) == []
