"""The schema: applied once, by whichever process comes first, upgraded, and refused if it does not fit."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from eventstore import log, schema
from eventstore.connection import session_options
from eventstore.errors import NameTaken, SchemaMissing, SchemaTooNew, UnsupportedServer
from eventstore.schema import SCHEMA_VERSION, steps
from tests.support.components import SCHEMA, connected
from tests.support.log import LogWriter, message_sent

if TYPE_CHECKING:
    from eventstore.connection import Connection

PROCESSES = 6
APPLY = """
import asyncio, sys
from eventstore import schema
sys.stdin.readline()
asyncio.run(schema.apply(sys.argv[1], "squad"))
"""


async def _applications(connection: Connection) -> int:
    row = await (await connection.execute("SELECT count(*) FROM schema_info")).fetchone()
    assert row is not None
    return int(row[0])


async def test_schema_is_applied_once_by_concurrent_processes(empty_database: str) -> None:
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", APPLY, empty_database, stdin=pipe, stderr=pipe
        )
        for _ in range(PROCESSES)
    ]
    outcomes = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [process.returncode for process in processes] == [0] * PROCESSES, outcomes
    async with connected(empty_database) as connection:
        await schema.check(connection)
        assert await _applications(connection) == 1


async def test_schema_is_applied_once_by_concurrent_connections(empty_database: str) -> None:
    await asyncio.gather(*(schema.apply(empty_database, SCHEMA) for _ in range(PROCESSES)))
    async with connected(empty_database) as connection:
        assert await _applications(connection) == 1
        assert await schema.version(connection) == SCHEMA_VERSION


async def test_applying_the_schema_again_changes_nothing(database: str) -> None:
    async with connected(database) as connection:
        await LogWriter(connection).append(message_sent("kept"))
        await schema.apply(database, SCHEMA)
        assert await log.head_position(connection) == 1
        assert await _applications(connection) == 1


async def test_role_that_cannot_create_schemas_can_use_an_existing_one(
    empty_database: str,
) -> None:
    role = f"tenant_{uuid4().hex}"
    async with await psycopg.AsyncConnection.connect(empty_database, autocommit=True) as admin:
        await admin.execute(f"CREATE ROLE {role}".encode())
        await admin.execute(f"CREATE SCHEMA squad AUTHORIZATION {role}".encode())
        try:
            await schema.apply(make_conninfo(empty_database, options=f"-c role={role}"), SCHEMA)
            async with connected(empty_database) as connection:
                await schema.check(connection)
        finally:
            await admin.execute(f"DROP OWNED BY {role}".encode())
            await admin.execute(f"DROP ROLE {role}".encode())


async def test_newer_schema_is_refused_and_left_unchanged(database: str) -> None:
    async with connected(database) as connection:
        await connection.execute("INSERT INTO schema_info (version) VALUES (%s)", (SCHEMA_VERSION + 1,))
        with pytest.raises(SchemaTooNew):
            await schema.check(connection)
        with pytest.raises(SchemaTooNew):
            await schema.apply(database, SCHEMA)
        assert await schema.version(connection) == SCHEMA_VERSION + 1


async def test_database_without_the_schema_is_refused(empty_database: str) -> None:
    async with connected(empty_database) as connection:
        assert await schema.version(connection) == 0
        with pytest.raises(SchemaMissing):
            await schema.check(connection)


async def test_schema_without_a_version_is_refused(database: str) -> None:
    async with connected(database) as connection:
        await connection.execute("TRUNCATE schema_info")
        with pytest.raises(SchemaMissing):
            await schema.check(connection)
        with pytest.raises(SchemaMissing):
            await schema.apply(database, SCHEMA)


async def test_failed_application_leaves_nothing_behind(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, first_step = schema.schema_sql(), "-- @superseded\n"
    monkeypatch.setattr(
        schema, "schema_sql", lambda: whole.replace(first_step, f"SELECT 1 / 0;\n{first_step}")
    )
    with pytest.raises(Exception, match="division by zero"):
        await schema.apply(empty_database, SCHEMA)
    async with connected(empty_database) as connection:
        row = await (await connection.execute("SELECT to_regnamespace('squad')")).fetchone()
        assert row == (None,)
        assert await schema.version(connection) == 0


async def test_database_in_another_encoding_is_refused(empty_database: str) -> None:
    name = f"ascii_{uuid4().hex}"
    async with await psycopg.AsyncConnection.connect(empty_database, autocommit=True) as admin:
        await admin.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII'"
            " LOCALE_PROVIDER libc LOCALE 'C'".encode()
        )
        try:
            with pytest.raises(UnsupportedServer, match="SQL_ASCII"):
                await schema.apply(make_conninfo(empty_database, dbname=name), SCHEMA)
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def test_older_schema_is_upgraded_step_by_step(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, third = SCHEMA_VERSION + 1, SCHEMA_VERSION + 2
    later = f"""
-- @upgrade {second}
CREATE TABLE second (n integer);
-- @upgrade {third}
INSERT INTO second VALUES (3);
"""
    whole = schema.schema_sql()
    monkeypatch.setattr(schema, "schema_sql", lambda: whole + later)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", third)
    await schema.apply(database, SCHEMA)
    async with connected(database) as connection:
        assert await schema.version(connection) == third
        assert await (await connection.execute("SELECT n FROM second")).fetchall() == [(3,)]


async def test_upgrade_runs_without_timeouts(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = f"""
-- @upgrade {SCHEMA_VERSION + 1}
CREATE TABLE timeouts AS SELECT name, setting FROM pg_settings
WHERE name IN ('statement_timeout', 'transaction_timeout');
"""
    whole = schema.schema_sql()
    monkeypatch.setattr(schema, "schema_sql", lambda: whole + step)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    await schema.apply(database, SCHEMA)
    async with connected(database) as connection:
        timeouts: list[tuple[Any, ...]] = await (
            await connection.execute("SELECT * FROM timeouts")
        ).fetchall()
    assert ("statement_timeout", "0") in timeouts
    assert {limit for _, limit in timeouts} == {"0"}


async def test_upgrade_names_an_object_in_its_way_and_leaves_it_unchanged(empty_database: str) -> None:
    await _apply_first_version(empty_database)
    async with connected(empty_database) as connection:
        await connection.execute("CREATE INDEX conflicts_by_agent ON conflicts (action)")
        with pytest.raises(NameTaken, match=r'"conflicts_by_agent" already exists .* rename or drop it'):
            await schema.apply(empty_database, SCHEMA)
        assert await schema.version(connection) == 1
        await connection.execute("ALTER INDEX conflicts_by_agent RENAME TO ours")
        await schema.apply(empty_database, SCHEMA)
        assert await schema.version(connection) == SCHEMA_VERSION


async def test_upgraded_first_schema_equals_a_new_one(database: str, empty_database: str) -> None:
    await _apply_first_version(empty_database)
    await schema.apply(empty_database, SCHEMA)
    async with connected(database) as new, connected(empty_database) as upgraded:
        for query in CATALOGUE:
            assert await _catalogue(upgraded, query) == await _catalogue(new, query)


async def _apply_first_version(dsn: str) -> None:
    first = Path(__file__).parent.parent / "golden" / "schema.v1.sql"
    async with connected(dsn) as connection:
        await connection.execute("CREATE SCHEMA squad")
        await connection.execute(first.read_bytes())
        await connection.execute("INSERT INTO schema_info (version) VALUES (1)")


CATALOGUE = (
    # The columns of an upgraded table may be in another order; nothing depends on it.
    "SELECT table_name, column_name, data_type, is_nullable, column_default, generation_expression"
    " FROM information_schema.columns WHERE table_schema = current_schema() ORDER BY 1, 2",
    "SELECT attrelid::regclass::text, attname, coalesce(attstattarget, -1) FROM pg_attribute"
    " JOIN pg_class c ON c.oid = attrelid"
    " WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND attnum > 0 ORDER BY 1, 2",
    "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY 1",
    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = current_schema()::regnamespace ORDER BY 1, 2",
    "SELECT pg_get_triggerdef(t.oid), tgenabled FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid"
    " WHERE c.relnamespace = current_schema()::regnamespace AND NOT tgisinternal ORDER BY 1",
    "SELECT proname, pg_get_functiondef(oid) FROM pg_proc"
    " WHERE pronamespace = current_schema()::regnamespace ORDER BY 1, 2",
    "SELECT relname, reloptions, relrowsecurity FROM pg_class"
    " WHERE relnamespace = current_schema()::regnamespace ORDER BY 1",
    "SELECT tablename, policyname, permissive, roles, cmd, qual, with_check FROM pg_policies"
    " WHERE schemaname = current_schema() ORDER BY 1, 2",
    "SELECT proname, prosecdef, proconfig, has_function_privilege('public', oid, 'EXECUTE') FROM pg_proc"
    " WHERE pronamespace = current_schema()::regnamespace ORDER BY 1",
)


async def _catalogue(connection: Connection, query: LiteralString) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query)).fetchall()


def test_steps_are_the_whole_schema_and_an_upgrade_for_each_later_version() -> None:
    found = steps(schema.schema_sql())
    assert "CREATE TABLE events" in found.whole
    assert sorted(found.upgrades) == list(range(2, SCHEMA_VERSION + 1))
    assert steps("a\n-- @superseded\nd\n-- @upgrade 2\nb\n-- @upgrade 3\nc") == (
        "a\n",
        "d\n",
        {2: "\nb\n", 3: "\nc"},
    )


def test_upgrade_recreates_every_function_of_the_schema() -> None:
    found = steps(schema.schema_sql())
    created = re.compile(r"^CREATE .*FUNCTION (\w+)", re.MULTILINE)
    assert created.findall(found.functions) == created.findall(found.whole)
    assert not any(created.search(upgrade) for upgrade in found.upgrades.values())
    assert schema.functions()["refuse_change"][1] in found.functions
    assert list(schema.functions()) == created.findall(found.whole)


@pytest.mark.parametrize("name", ["", "Squad", "a-b", "a b", "1st", "x" * 41, 'a"b', "a;b", "ünder"])
def test_schema_name_that_needs_quotes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="schema name must match"):
        session_options(name)
