"""Apply schema.sql: once, under a lock, however many processes try at the same time."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from psycopg import errors as pg
from psycopg import sql

from eventstore.connection import connect
from eventstore.errors import (
    NameTaken,
    PermissionDenied,
    SchemaMissing,
    SchemaTooNew,
    SchemaTooOld,
    UnsupportedServer,
)
from eventstore.queries import one_value
from eventstore.translation import first_line, translating

if TYPE_CHECKING:
    from collections.abc import Collection, Container

    from eventstore.connection import Connection

SCHEMA_VERSION = 7
"""The version that schema.sql brings a database to."""

OLDEST_SERVER = 15
"""The oldest supported major version of Postgres."""

Grantee = tuple[str, Literal["service", "reader"]]
"""A role that the schema's owner grants access to, and as what."""

_HIDDEN_SCHEMA = """
SELECT nspname FROM pg_namespace
WHERE nspname = ANY(string_to_array(current_setting('search_path'), ', '))
  AND NOT has_schema_privilege(oid, 'USAGE')
"""

_OWNS_THE_LOG = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'events'::regclass"

_UPGRADE = re.compile(r"^-- @upgrade (\d+)$", re.MULTILINE)
_SUPERSEDED = "-- @superseded\n"
_FUNCTION = re.compile(
    r"^CREATE OR REPLACE FUNCTION (\w+)(.*?) AS \$\$(.*?)^\$\$;$", re.MULTILINE | re.DOTALL
)
_READ_TABLES = re.compile(r"^-- @read-tables$(.*?)^-- @end$", re.MULTILINE | re.DOTALL)
_TABLE = re.compile(r"^CREATE TABLE (\w+) \($(.*?)^\);$", re.MULTILINE | re.DOTALL)
_COLUMN = re.compile(r"^    ([a-z_]+) +(double precision|[a-z]+)", re.MULTILINE)
_AS_PRINTED = {
    "timestamptz": "timestamp with time zone",
    "waited double precision) LANGUAGE": "waited double precision) RETURNS record LANGUAGE",
    "search_path = pg_catalog, pg_temp": "search_path TO 'pg_catalog', 'pg_temp'",
}
"""How Postgres prints parts of a function's header or a type in schema.sql."""
_CREATES = re.compile(
    r"^(?:(?:CREATE|ALTER) TABLE (\w+)|CREATE (?:UNIQUE )?INDEX (\w+) ON (\w+)) .*?;$",
    re.MULTILINE | re.DOTALL,
)


def schema_sql() -> str:
    """Return the text of schema.sql: beside the package in a checkout, inside it in a wheel."""
    here = Path(__file__).parent
    for candidate in (here / "schema.sql", here.parent / "schema.sql"):
        if candidate.exists():
            return candidate.read_text(encoding="utf-8")
    raise SchemaMissing("schema.sql was not installed with the package")


class Steps(NamedTuple):
    """The parts of schema.sql."""

    whole: str
    """Creates a new schema."""
    functions: str
    """Replaces all functions, as the first step of an upgrade."""
    upgrades: dict[int, str]
    """The further steps of an upgrade, by version."""


def steps(text: str) -> Steps:
    """Split the text of schema.sql into its parts."""
    head, *rest = _UPGRADE.split(text)
    whole, _, superseded = head.partition(_SUPERSEDED)
    functions = "\n".join([superseded, *(made[0] for made in _FUNCTION.finditer(whole))])
    return Steps(
        whole, functions, {int(version): body for version, body in zip(rest[::2], rest[1::2], strict=True)}
    )


def read_tables_sql() -> str:
    """Return the SQL that creates the read tables, in the first schema of the search path."""
    found = _READ_TABLES.search(schema_sql())
    if found is None:
        raise SchemaMissing("schema.sql does not mark its read tables")
    return found[1]


def read_table_sql(name: str, taken: Container[str]) -> str:
    """Return the SQL that creates one read table with its indexes, except those whose names are taken."""
    made = [
        found[0]
        for found in _CREATES.finditer(read_tables_sql())
        if name in (found[1], found[3]) and found[2] not in taken
    ]
    if not made:
        raise SchemaMissing(f"schema.sql has no read table {name}")
    return "\n".join(made)


@cache
def functions() -> dict[str, tuple[str, str]]:
    """Return the functions by name: the header of each, as Postgres prints it, and its body."""
    return {found[1]: (_header(found[2]), found[3]) for found in _FUNCTION.finditer(schema_sql())}


def _header(text: str) -> str:
    header = " ".join(text.split()).replace("( ", "(").replace(" )", ")")
    for ours, theirs in _AS_PRINTED.items():
        header = header.replace(ours, theirs)
    return header


@cache
def tables() -> dict[str, dict[str, str]]:
    """Return the columns of each table by its name, with their types as Postgres names them."""
    return {
        table: {column: _AS_PRINTED.get(kind, kind) for column, kind in _COLUMN.findall(columns)}
        for table, columns in _TABLE.findall(steps(schema_sql()).whole)
    }


@cache
def read_tables() -> frozenset[str]:
    """Return the names of the tables that are folded from the log."""
    return frozenset(name for name, _ in _TABLE.findall(read_tables_sql()))


async def apply(dsn: str, schema: str, grantees: Collection[Grantee] = ()) -> None:
    """Upgrade the squad's schema to `SCHEMA_VERSION`, or create it if it does not exist.

    If there is nothing to do, any role that has been granted access may call it.

    Args:
        dsn: libpq connection string or URI; the role must own the schema, or be allowed to create it.
        schema: the squad's Postgres schema.
        grantees: roles to grant access to.

    Raises:
        NameTaken: the name of a table or an index is already taken.
        PermissionDenied: there is something to do or access to grant, and the role may not.
        SchemaTooNew: the database was created by a newer version of this software.
        UnsupportedServer: the server is older than Postgres 15, or its encoding is not UTF-8.
        StoreUnavailable: the database cannot be reached.
    """
    connection = await connect(
        dsn,
        schema,
        name="squad schema",
        lock_timeout=60_000,
        # Building an index of a long log takes time; with a timeout, it would fail at every start.
        statement_timeout=0,
        transaction_timeout=0,
    )
    async with connection:
        await _check_server(connection)
        with translating():
            try:
                async with connection.transaction():
                    # A statement of its own, before the catalog is read: see lock_log in schema.sql.
                    await connection.execute(
                        "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"squad schema {schema}",)
                    )
                    await _ensure_schema(connection, schema)
                    await _upgrade(connection, await version(connection))
                    if grantees:
                        await _check_may_grant(connection, schema)
                    for role, as_what in grantees:
                        await connection.execute("SELECT let_in(%s::name, %s)", (role, as_what))
            except (pg.InsufficientPrivilege, pg.InvalidSchemaName) as error:
                role = connection.info.user
                raise PermissionDenied(
                    f"{role!r} is not the owner of the schema {schema!r}, and was not granted access to its"
                    f" version {SCHEMA_VERSION}: have the owner run `squad schema apply --service {role}`"
                ) from error
            except (pg.DuplicateTable, pg.DuplicateColumn, pg.DuplicateObject) as error:
                raise NameTaken(
                    f"{first_line(error)} in the schema {schema!r}, and does not belong to this software:"
                    f" rename or drop it, so that version {SCHEMA_VERSION} can create its own"
                ) from error


async def check_may_append(connection: Connection) -> None:
    """Refuse a role that can read the log but not append to it.

    Raises:
        PermissionDenied: it cannot append.
    """
    if not await one_value(connection, "SELECT has_table_privilege('events', 'INSERT')"):
        role = connection.info.user
        raise PermissionDenied(
            f"{role!r} was not granted access as a service: `squad schema apply --service {role}`"
        )


async def check(connection: Connection) -> None:
    """Refuse a schema that this version of the software cannot work with.

    Raises:
        SchemaMissing: there is none.
        SchemaTooNew: it was created or upgraded by a newer version.
        SchemaTooOld: it was created by an older version and has not been upgraded yet.
        PermissionDenied: the role was not granted access to it.
    """
    found = await version(connection)
    if found == 0:
        if hidden := await one_value(connection, _HIDDEN_SCHEMA):
            role = connection.info.user
            raise PermissionDenied(
                f"{role!r} was not granted access to the schema {hidden!r}: have the owner run"
                f" `squad schema apply --reader {role}`, or with --service"
            )
        raise SchemaMissing("start the service once, or apply the schema")
    if found > SCHEMA_VERSION:
        raise SchemaTooNew(f"version {found}, this software knows up to {SCHEMA_VERSION}")
    if found < SCHEMA_VERSION:
        raise SchemaTooOld(
            f"version {found}, and {SCHEMA_VERSION} is needed: start the service once,"
            " or have the owner run `squad schema apply`"
        )


async def version(connection: Connection) -> int:
    """Return the version of the schema in the search path; 0 if there is none.

    Raises:
        SchemaMissing: the schema exists without its version.
    """
    # The catalog is asked first: a failed SELECT would abort the caller's transaction.
    if await one_value(connection, "SELECT to_regclass('schema_info') IS NULL"):
        return 0
    found = await one_value(connection, "SELECT max(version) FROM schema_info")
    if found is None:
        raise SchemaMissing("schema_info is empty")
    return int(found)


async def _ensure_schema(connection: Connection, schema: str) -> None:
    # Not IF NOT EXISTS, which requires the privilege to create schemas even if there is nothing to do.
    if await one_value(connection, "SELECT to_regnamespace(%s) IS NULL", (schema,)):
        await connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))


async def _upgrade(connection: Connection, found: int) -> None:
    if found > SCHEMA_VERSION:
        raise SchemaTooNew(f"version {found}, this software knows up to {SCHEMA_VERSION}")
    if found == SCHEMA_VERSION:
        return
    whole, functions, upgrades = steps(schema_sql())
    todo = (
        [functions, *(upgrades[number] for number in range(found + 1, SCHEMA_VERSION + 1))]
        if found
        else [whole]
    )
    for text in todo:
        await connection.execute(text.encode())
    await connection.execute("INSERT INTO schema_info (version) VALUES (%s)", (SCHEMA_VERSION,))


async def _check_may_grant(connection: Connection, schema: str) -> None:
    """Refuse a role that may not grant: Postgres would only issue a warning."""
    if not await one_value(connection, _OWNS_THE_LOG):
        raise PermissionDenied(
            f"{connection.info.user!r} does not own the schema {schema!r}, so it cannot grant access to it:"
            " have the owner do it"
        )


async def _check_server(connection: Connection) -> None:
    major = connection.info.server_version // 10_000
    if major < OLDEST_SERVER:
        raise UnsupportedServer(f"Postgres {major}; {OLDEST_SERVER} or later is needed")
    encoding = await one_value(connection, "SHOW server_encoding")
    if encoding != "UTF8":
        raise UnsupportedServer(f"the database's encoding is {encoding}; UTF8 is needed")
