"""Database roles for a test, none of which is a superuser, as on a managed Postgres."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.postgres import PostgresServer


class Role(NamedTuple):
    """A role, and the DSN of the test's database for it."""

    name: str
    dsn: str


class Roles(NamedTuple):
    """The owner of the schema, the service, a reader, and a role without access."""

    admin: str
    """The DSN of the database for a superuser."""
    owner: Role
    service: Role
    reader: Role
    stranger: Role


@contextlib.contextmanager
def new_roles(server: PostgresServer) -> Iterator[Roles]:
    """An empty database with four roles, one of which may create schemas in it."""
    names = [f"squad_test_{kind}_{uuid4().hex[:8]}" for kind in ("owner", "service", "reader", "stranger")]
    try:
        for name in names:
            with psycopg.connect(server.dsn, autocommit=True) as connection:
                statement = sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER PASSWORD 'secret'")
                connection.execute(statement.format(sql.Identifier(name)))
        with server.new_database() as dsn:
            with psycopg.connect(dsn, autocommit=True) as connection:
                statement = sql.SQL("GRANT CREATE ON DATABASE {} TO {}")
                database = sql.Identifier(connection.info.dbname)
                connection.execute(statement.format(database, sql.Identifier(names[0])))
            yield Roles(
                dsn, *(Role(name, make_conninfo(dsn, user=name, password="secret")) for name in names)
            )
    finally:
        for name in names:
            server.execute("DROP ROLE IF EXISTS {}", name)
