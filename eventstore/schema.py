"""Applies schema.sql: once, under a lock, by however many processes try at the same time."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from psycopg import errors as pg
from psycopg import sql

from eventstore.asking import one_value
from eventstore.connection import connect
from eventstore.errors import (
    NameTaken,
    RoleMayNot,
    SchemaMissing,
    SchemaTooNew,
    SchemaTooOld,
    UnsupportedServer,
)
from eventstore.translation import first_line, translating

if TYPE_CHECKING:
    from collections.abc import Collection, Container

    from eventstore.connection import Connection

SCHEMA_VERSION = 6
"""The version that schema.sql brings a database to."""

OLDEST_SERVER = 15
"""The oldest supported major version of Postgres."""

Guest = tuple[str, Literal["service", "reader"]]
"""A role that the schema's owner lets in, and as what."""

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
_WRITTEN_OUT = {
    "timestamptz": "timestamp with time zone",
    "waited double precision) LANGUAGE": "waited double precision) RETURNS record LANGUAGE",
    "search_path = pg_catalog, pg_temp": "search_path TO 'pg_catalog', 'pg_temp'",
}
"""What Postgres makes of what schema.sql says in the head of a function."""
_MAKES = re.compile(
    r"^(?:(?:CREATE|ALTER) TABLE (\w+)|CREATE (?:UNIQUE )?INDEX (\w+) ON (\w+)) .*?;$",
    re.MULTILINE | re.DOTALL,
)


def schema_sql() -> str:
    """The text of schema.sql: beside the package in a checkout, inside it when installed from a wheel."""
    here = Path(__file__).parent
    for candidate in (here / "schema.sql", here.parent / "schema.sql"):
        if candidate.exists():
            return candidate.read_text(encoding="utf-8")
    raise SchemaMissing("schema.sql was not installed with the package")


class Steps(NamedTuple):
    """What schema.sql is made of."""

    whole: str
    """Makes a new schema."""
    functions: str
    """Makes all functions anew, where an older schema is lifted."""
    upgrades: dict[int, str]
    """The steps that then lift it, by version."""


def steps(text: str) -> Steps:
    """Takes the text of schema.sql apart."""
    head, *rest = _UPGRADE.split(text)
    whole, _, superseded = head.partition(_SUPERSEDED)
    functions = "\n".join([superseded, *(made[0] for made in _FUNCTION.finditer(whole))])
    return Steps(
        whole, functions, {int(version): body for version, body in zip(rest[::2], rest[1::2], strict=True)}
    )


def read_tables_sql() -> str:
    """What makes the read tables, in whichever schema comes first on the search path."""
    found = _READ_TABLES.search(schema_sql())
    if found is None:
        raise SchemaMissing("schema.sql does not say which its read tables are")
    return found[1]


def read_table_sql(name: str, taken: Container[str]) -> str:
    """What makes one read table with its indexes, but for those whose names are taken."""
    made = [
        found[0]
        for found in _MAKES.finditer(read_tables_sql())
        if name in (found[1], found[3]) and found[2] not in taken
    ]
    if not made:
        raise SchemaMissing(f"schema.sql has no read table {name}")
    return "\n".join(made)


@cache
def functions() -> dict[str, tuple[str, str]]:
    """Each function by its name: what stands before its body, as Postgres writes it, and the body."""
    return {found[1]: (_header(found[2]), found[3]) for found in _FUNCTION.finditer(schema_sql())}


def _header(text: str) -> str:
    header = " ".join(text.split()).replace("( ", "(").replace(" )", ")")
    for ours, theirs in _WRITTEN_OUT.items():
        header = header.replace(ours, theirs)
    return header


@cache
def tables() -> dict[str, dict[str, str]]:
    """The columns of each table by its name, with the type that Postgres calls it by."""
    return {
        table: {column: _WRITTEN_OUT.get(kind, kind) for column, kind in _COLUMN.findall(columns)}
        for table, columns in _TABLE.findall(steps(schema_sql()).whole)
    }


@cache
def read_tables() -> frozenset[str]:
    """The names of those that are folded from the log."""
    return frozenset(name for name, _ in _TABLE.findall(read_tables_sql()))


async def apply(dsn: str, schema: str, guests: Collection[Guest] = ()) -> None:
    """Brings the squad's schema to `SCHEMA_VERSION`, creating it where it does not exist.

    Where there is nothing to do, any role that was let in may ask for it.

    Args:
        dsn: libpq connection string or URI; the role must own the schema, or be allowed to create it.
        schema: the squad's Postgres schema.
        guests: roles to let in.

    Raises:
        NameTaken: somebody has made something of the name that a table or an index is to have.
        RoleMayNot: there is something to do or somebody to let in, and the role may not.
        SchemaTooNew: the database was made by a newer version of this software.
        UnsupportedServer: the server is older than Postgres 15, or not in UTF-8.
        StoreUnavailable: the database cannot be reached.
    """
    connection = await connect(
        dsn,
        schema,
        name="squad schema",
        lock_timeout=60_000,
        # An index over a long log takes as long as it takes; cut short, it would be at every start.
        statement_timeout=0,
        transaction_timeout=0,
    )
    async with connection:
        await _check_server(connection)
        with translating():
            try:
                async with connection.transaction():
                    # Its own statement before any look at the catalogue: see lock_log in schema.sql.
                    await connection.execute(
                        "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"squad schema {schema}",)
                    )
                    await _ensure_schema(connection, schema)
                    await _upgrade(connection, await version(connection))
                    if guests:
                        await _check_may_let_in(connection, schema)
                    for role, as_what in guests:
                        await connection.execute("SELECT let_in(%s::name, %s)", (role, as_what))
            except (pg.InsufficientPrivilege, pg.InvalidSchemaName) as error:
                role = connection.info.user
                raise RoleMayNot(
                    f"{role!r} is neither the owner of the schema {schema!r}, nor was it let in to one of"
                    f" version {SCHEMA_VERSION}: have the owner run `squad schema apply --service {role}`"
                ) from error
            except (pg.DuplicateTable, pg.DuplicateColumn, pg.DuplicateObject) as error:
                raise NameTaken(
                    f"{first_line(error)} in the schema {schema!r}, and is not of this software:"
                    f" rename or drop it, so that version {SCHEMA_VERSION} can make its own"
                ) from error


async def check_may_append(connection: Connection) -> None:
    """Refuses a role that can see the log but not append to it.

    Raises:
        RoleMayNot: it may not.
    """
    if not await one_value(connection, "SELECT has_table_privilege('events', 'INSERT')"):
        role = connection.info.user
        raise RoleMayNot(f"{role!r} was not let in as a service: `squad schema apply --service {role}`")


async def check(connection: Connection) -> None:
    """Refuses a schema that this version of the software cannot work with.

    Raises:
        SchemaMissing: there is none.
        SchemaTooNew: it was made by a newer version.
        SchemaTooOld: it was made by an older version, and not upgraded yet.
        RoleMayNot: there is one, and the role was not let in.
    """
    found = await version(connection)
    if found == 0:
        if hidden := await one_value(connection, _HIDDEN_SCHEMA):
            role = connection.info.user
            raise RoleMayNot(
                f"{role!r} was not let in to the schema {hidden!r}: have the owner run"
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
    """The version of the schema in the search path; 0 where there is none.

    Raises:
        SchemaMissing: the schema is there without its version.
    """
    # Asked of the catalogue first: a failed SELECT would abort the transaction that we may be in.
    if await one_value(connection, "SELECT to_regclass('schema_info') IS NULL"):
        return 0
    found = await one_value(connection, "SELECT max(version) FROM schema_info")
    if found is None:
        raise SchemaMissing("schema_info is empty")
    return int(found)


async def _ensure_schema(connection: Connection, schema: str) -> None:
    # Not IF NOT EXISTS, which asks for the right to create schemas even where there is nothing to do.
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


async def _check_may_let_in(connection: Connection, schema: str) -> None:
    """Of whoever may not grant, Postgres only warns."""
    if not await one_value(connection, _OWNS_THE_LOG):
        raise RoleMayNot(
            f"{connection.info.user!r} does not own the schema {schema!r}, and so lets nobody in:"
            " have the owner do it"
        )


async def _check_server(connection: Connection) -> None:
    major = connection.info.server_version // 10_000
    if major < OLDEST_SERVER:
        raise UnsupportedServer(f"Postgres {major}; {OLDEST_SERVER} or later is needed")
    encoding = await one_value(connection, "SHOW server_encoding")
    if encoding != "UTF8":
        raise UnsupportedServer(f"the database's encoding is {encoding}; UTF8 is needed")
