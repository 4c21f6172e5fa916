"""Database roles: the owner of the schema, the service, a reader, and a role without access."""

from __future__ import annotations

from typing import TYPE_CHECKING, LiteralString

import psycopg
import pytest
from psycopg import errors as pg

from eventstore import schema
from eventstore.errors import PermissionDenied
from projections import PROJECTIONS
from projections.comparison import compare
from projections.rebuild import rebuild
from tests.api.client import running_service
from tests.support.command import squad
from tests.support.components import SCHEMA, connected
from tests.support.postgres import run_in_thread
from tests.support.process import failed_start_output, squad_up
from tests.support.roles import Roles, new_roles
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.api.client import Api
    from tests.support.postgres import PostgresServer

READ_TABLES = [table.name for projection in PROJECTIONS for table in projection.tables]
FORBIDDEN_TO_BOTH = [
    "UPDATE events SET actor = 'nobody'",
    "DELETE FROM events",
    "TRUNCATE events",
    "ALTER TABLE events DISABLE TRIGGER ALL",
    "ALTER TABLE events DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE events ADD COLUMN more text",
    "DROP TABLE events",
    "DROP POLICY seen ON events",
    "CREATE TRIGGER mine BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse_change()",
    "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
    "CREATE TABLE more (n integer)",
    "SET session_replication_role = replica",
    "UPDATE subject_keys SET key = key",
    "DELETE FROM subject_keys",
    "TRUNCATE squad_agents",
    "DROP TABLE squad_agents",
    "INSERT INTO schema_info (version) VALUES (99)",
    "CREATE TEMPORARY TABLE t (data jsonb);"
    " CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION destroy_key()",
]
"""What neither the service's role nor the reader's may do."""
FORBIDDEN_TO_READER: list[LiteralString] = [
    "INSERT INTO events (position) VALUES (1)",
    "SELECT append_events(0, now(), now(), 0, '', '', '', '', '', '', '', '', '', '', '')",
    "SELECT * FROM subject_keys",
    "INSERT INTO subject_keys VALUES (gen_random_uuid(), 'x', NULL)",
    "UPDATE projections SET position = 0",
    "DELETE FROM snapshots",
    "BEGIN; LOCK TABLE projections IN SHARE ROW EXCLUSIVE MODE",
]
REJECTED = (pg.InsufficientPrivilege, pg.RestrictViolation)


@pytest.fixture
def roles(postgres: PostgresServer) -> Iterator[Roles]:
    with new_roles(postgres) as made:
        yield made


@pytest.fixture
async def granted(roles: Roles, tmp_path: Path) -> Roles:
    """Roles to which the owner has granted access, after creating the schema."""
    arguments = ("--service", roles.service.name, "--reader", roles.reader.name)
    ended = await squad(tmp_path, "schema", "apply", "--dsn", roles.owner.dsn, *arguments)
    assert ended.lines() == [
        f"schema squad is at version {schema.SCHEMA_VERSION}",
        f"role {roles.service.name} has access as service",
        f"role {roles.reader.name} has access as reader",
    ]
    return roles


async def _use_api(api: Api) -> None:
    (await api.put("agents/ada", role="writer")).expect(200)
    (await api.post("messages", {"Idempotency-Key": "k"}, from_agent="ada", message="hello")).expect(201)
    (await api.post("operations", agent="ada", action="a", resources={"emailId": "e"})).expect(201)
    (await api.post("budget/reservations", agent="ada", tokens=10)).expect(201)
    email = (await api.post("emails", gmail_message_id="g", from_email="zoe@example.org")).expect(201)
    (await api.patch(f"emails/{email['id']}", status="sent")).expect(200)
    (await api.post("tasks", title="t")).expect(201)
    forgotten = (await api.post("subjects/forget", subject="zoe@example.org")).expect(200)
    [shown] = (await api.get("emails", min_position=forgotten["position"])).expect(200)["items"]
    assert shown["from_email"] == "(erased)"


async def test_service_works_fully_with_service_role(granted: Roles) -> None:
    async with running_service(granted.service.dsn, encrypt_payloads=True) as service:
        await _use_api(service.api)
        await eventually(lambda: projected_to_head(granted.admin))
        rebuilt = await rebuild(granted.service.dsn, SCHEMA)
        assert not any(table.written or table.removed for table in rebuilt.tables)
        (await service.api.get("state", at=5)).expect(200)
    async with connected(granted.admin) as connection:
        # The event itself destroyed the sender's key; the service's role may not.
        row = await (
            await connection.execute("SELECT count(*) FROM subject_keys WHERE subject IS NOT NULL")
        ).fetchone()
        assert row == (0,)
    await assert_log_is_sound(granted.admin)
    assert await assert_tables_equal_fold(granted.admin) > 5


async def test_rebuild_by_service_role_reports_indexes_it_cannot_create(granted: Roles) -> None:
    async with running_service(granted.service.dsn) as service:
        (await service.api.post("messages", from_agent="ada", message="hello")).expect(201)
        await eventually(lambda: projected_to_head(granted.admin))
    async with connected(granted.owner.dsn) as connection:
        await connection.execute("DROP INDEX squad_messages_from")
        await connection.execute("DELETE FROM squad_messages")
    rebuilt = await rebuild(granted.service.dsn, SCHEMA)
    assert [index.name for index in rebuilt.lost] == ["squad_messages_from"]
    assert await compare(granted.reader.dsn, SCHEMA) == []
    assert (await rebuild(granted.owner.dsn, SCHEMA)).lost == ()


async def test_verify_by_reader_checks_all_but_the_tables_when_they_are_encrypted(
    granted: Roles, tmp_path: Path
) -> None:
    async with running_service(granted.service.dsn, encrypt_payloads=True) as service:
        (await service.api.post("messages", from_agent="ada", message="hello")).expect(201)
        await eventually(lambda: projected_to_head(granted.admin))
    ended = await squad(tmp_path, "verify", "--dsn", granted.reader.dsn)
    assert (ended.code, ended.errors) == (1, "")
    [failed] = [line for line in ended.output.splitlines() if not line.startswith("holds")]
    assert failed == (
        "FAILS  tables      they cannot be compared with the log: the database role lacks a privilege:"
        " permission denied for table subject_keys"
    )


async def test_squad_up_runs_with_unprivileged_role(granted: Roles) -> None:
    async with squad_up(dsn=granted.service.dsn) as service:
        await eventually(service.is_ready)


@pytest.mark.parametrize("statement", FORBIDDEN_TO_BOTH)
@pytest.mark.parametrize("who", ["service", "reader"])
async def test_service_and_reader_cannot_change_log_or_its_protection(
    shared_roles: Roles, who: str, statement: str
) -> None:
    async with connected(getattr(shared_roles, who).dsn) as connection:
        with pytest.raises(REJECTED):
            await connection.execute(statement.encode())


async def test_reader_can_read_tables_and_change_nothing(shared_roles: Roles) -> None:
    async with connected(shared_roles.reader.dsn) as connection:
        for name in ("events", "projections", "snapshots", "schema_info", *READ_TABLES):
            await connection.execute(f"SELECT * FROM {name}".encode())
        for statement in FORBIDDEN_TO_READER:
            with pytest.raises(pg.InsufficientPrivilege):
                await connection.execute(statement)
            await connection.rollback()
        for name in READ_TABLES:
            for statement in (f"INSERT INTO {name} DEFAULT VALUES", f"DELETE FROM {name}"):
                with pytest.raises(pg.InsufficientPrivilege):
                    await connection.execute(statement.encode())


@pytest.mark.parametrize("as_what", ["--reader", "--service"])
async def test_service_role_cannot_grant_access(granted: Roles, tmp_path: Path, as_what: str) -> None:
    service_role, other = granted.service, granted.stranger.name
    ended = await squad(tmp_path, "schema", "apply", "--dsn", service_role.dsn, as_what, other)
    assert (
        f"{service_role.name!r} does not own the schema 'squad', so it cannot grant access"
        in ended.error_line()
    )
    assert ended.output == ""


async def test_status_reports_that_role_has_no_access(granted: Roles, tmp_path: Path) -> None:
    ended = await squad(tmp_path, "status", "--dsn", granted.stranger.dsn)
    assert f"{granted.stranger.name!r} was not granted access to the schema 'squad'" in ended.error_line()


async def test_role_without_access_cannot_read_events(shared_roles: Roles) -> None:
    async with await psycopg.AsyncConnection.connect(shared_roles.stranger.dsn) as connection:
        with pytest.raises(pg.InsufficientPrivilege):
            await connection.execute("SELECT * FROM squad.events")


async def test_row_level_security_holds_despite_mistaken_grants(granted: Roles) -> None:
    async with running_service(granted.service.dsn, encrypt_payloads=True) as service:
        await service.api.post("messages", from_agent="ada", message="hello")
        await eventually(lambda: projected_to_head(granted.admin))
    async with connected(granted.owner.dsn) as owner:
        role = granted.reader.name
        await owner.execute(
            f"GRANT SELECT, UPDATE, DELETE ON ALL TABLES IN SCHEMA squad TO {role}".encode()
        )
        await owner.execute(f"GRANT UPDATE, DELETE ON events TO {granted.service.name}".encode())
    async with connected(granted.reader.dsn) as reader:
        assert await (await reader.execute("SELECT * FROM subject_keys")).fetchall() == []
        # Even if it has a temporary table with the name of the log.
        await reader.execute("CREATE TEMPORARY TABLE events (n integer)")
        assert await (await reader.execute("SELECT * FROM squad.subject_keys")).fetchall() == []
        for statement in ("UPDATE squad_messages SET message = ''", "DELETE FROM squad_messages"):
            assert (await reader.execute(statement.encode())).rowcount == 0
        assert (await reader.execute("DELETE FROM subject_keys")).rowcount == 0
    async with connected(granted.service.dsn) as connection:
        for statement in ("UPDATE events SET actor = 'x'", "DELETE FROM events"):
            with pytest.raises(pg.RestrictViolation):
                await connection.execute(statement.encode())
    assert await assert_tables_equal_fold(granted.admin) > 0


async def test_every_table_has_row_level_security_policies(shared_roles: Roles) -> None:
    async with connected(shared_roles.admin) as connection:
        cursor = await connection.execute(
            "SELECT c.relname, c.relrowsecurity, (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid)"
            " FROM pg_class c WHERE relnamespace = 'squad'::regnamespace AND relkind IN ('r', 'p')"
        )
        found = await cursor.fetchall()
    assert {name for name, *_ in found} >= {"events", "schema_info", "subject_keys", *READ_TABLES}
    assert all(secured and policies for _, secured, policies in found), found


async def test_table_that_was_dropped_and_rebuilt_has_its_grants_again(granted: Roles) -> None:
    async with running_service(granted.service.dsn) as service:
        await service.api.post("tasks", title="t")
        await eventually(lambda: projected_to_head(granted.admin))
    async with connected(granted.owner.dsn) as owner:
        await owner.execute("DROP TABLE squad_tasks")
    await rebuild(granted.owner.dsn, SCHEMA)
    async with connected(granted.reader.dsn) as reader:
        assert len(await (await reader.execute("SELECT * FROM squad_tasks")).fetchall()) == 1
    async with running_service(granted.service.dsn) as service:
        task = (await service.api.post("tasks", title="another")).expect(201)
        items = (await service.api.get("tasks", min_position=task["position"])).expect(200)["items"]
        assert len(items) == 2


async def test_upgrade_grants_access_to_roles_that_had_it(
    granted: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, next_version = schema.schema_sql(), schema.SCHEMA_VERSION + 1
    later = f"\n-- @upgrade {next_version}\nCREATE TABLE later (n integer);\nSELECT settle_access();\n"
    monkeypatch.setattr(schema, "schema_sql", lambda: whole + later)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", next_version)
    with pytest.raises(PermissionDenied, match="have the owner run `squad schema apply"):
        await schema.apply(granted.service.dsn, SCHEMA)
    await schema.apply(granted.owner.dsn, SCHEMA)
    async with connected(granted.service.dsn) as connection:
        await connection.execute("INSERT INTO later VALUES (1)")
    async with connected(granted.reader.dsn) as connection:
        assert await (await connection.execute("SELECT n FROM later")).fetchall() == [(1,)]
        with pytest.raises(pg.InsufficientPrivilege):
            await connection.execute("INSERT INTO later VALUES (2)")


async def test_missing_access_is_reported_with_the_command_that_grants_it(
    granted: Roles, tmp_path: Path
) -> None:
    error = await failed_start_output(dsn=granted.stranger.dsn)
    assert f"squad schema apply --service {granted.stranger.name}" in error
    error = await failed_start_output(dsn=granted.reader.dsn)
    assert f"squad schema apply --service {granted.reader.name}" in error
    assert "Traceback" not in error
    unknown = await squad(
        tmp_path, "schema", "apply", "--dsn", granted.owner.dsn, "--reader", "no_such_role"
    )
    assert "no_such_role" in unknown.error_line()
    injection = await squad(
        tmp_path, "schema", "apply", "--dsn", granted.owner.dsn, "--reader", 'x"; DROP SCHEMA squad; --'
    )
    assert "does not exist" in injection.error_line()


async def test_owner_cannot_be_granted_access_as_service_or_reader(granted: Roles, tmp_path: Path) -> None:
    dsn, name = granted.owner.dsn, granted.owner.name
    for option in ("--service", "--reader"):
        ended = await squad(tmp_path, "schema", "apply", "--dsn", dsn, option, name)
        assert "owns the schema" in ended.error_line()
    async with connected(dsn) as connection:
        row = await (
            await connection.execute("SELECT has_table_privilege('schema_info', 'INSERT')")
        ).fetchone()
    assert row == (True,)


async def test_reader_can_use_commands_that_only_read(granted: Roles, tmp_path: Path) -> None:
    async with running_service(granted.service.dsn) as service:
        await service.api.post("messages", from_agent="ada", message="hello")
        await eventually(lambda: projected_to_head(granted.admin))
        head = await service.head()
    for command in (["events"], ["status"], ["verify"], ["state"], ["explain", str(head)], ["jobs"]):
        ended = await squad(tmp_path, *command, "--dsn", granted.reader.dsn)
        assert ended.code == 0, (command, ended)
    refused = await squad(tmp_path, "keys", "create", "--scope", "operator", "--dsn", granted.reader.dsn)
    assert f"squad schema apply --service {granted.reader.name}" in refused.error_line()


@pytest.fixture(scope="module")
def shared_roles(postgres: PostgresServer) -> Iterator[Roles]:
    """Roles with access, shared by all tests that change nothing."""
    with new_roles(postgres) as made:
        grantees: list[schema.Grantee] = [(made.service.name, "service"), (made.reader.name, "reader")]
        run_in_thread(schema.apply(made.owner.dsn, SCHEMA, grantees))
        yield made


async def test_only_owner_can_import(granted: Roles, tmp_path: Path) -> None:
    file = str(tmp_path / "log.jsonl")
    async with running_service(granted.service.dsn):
        await eventually(lambda: projected_to_head(granted.admin))
    export = await squad(
        tmp_path, "export", file, "--without-keys", "--dsn", granted.reader.dsn, SQUAD_SCHEMA="squad"
    )
    assert export.code == 0, export
    arguments = ("--service", granted.service.name)
    other = {"SQUAD_SCHEMA": "another"}
    made = await squad(tmp_path, "schema", "apply", "--dsn", granted.owner.dsn, *arguments, **other)
    assert made.code == 0, made
    refused = await squad(tmp_path, "import", file, "--dsn", granted.service.dsn, **other)
    assert "only the owner" in refused.errors
    imported = await squad(tmp_path, "import", file, "--dsn", granted.owner.dsn, **other)
    assert imported.code == 0, imported
