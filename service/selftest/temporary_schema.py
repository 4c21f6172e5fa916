"""A self-test's own schema: removed afterwards, together with those left behind by killed self-tests."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from psycopg import sql

from eventstore import schema
from eventstore.connection import connect
from eventstore.errors import PermissionDenied
from eventstore.queries import one_value
from eventstore.translation import translating

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from eventstore.connection import Connection

PREFIX = "squad_bench_"
_NAME_LENGTH = len(PREFIX) + 12

_ABANDONED = "SELECT nspname FROM pg_namespace WHERE left(nspname, %s) = %s AND length(nspname) = %s"
# Held while its owner is connected, so a schema whose lock is free was left by a killed self-test.
_LOCK = "SELECT pg_try_advisory_lock(hashtextextended(%s, 1))"
_UNLOCK = "SELECT pg_advisory_unlock(hashtextextended(%s, 1))"


@asynccontextmanager
async def own_schema(dsn: str) -> AsyncIterator[str]:
    """Create a squad in a schema of its own, and remove it at the end in any case.

    Raises:
        EventStoreError: the database cannot be reached, or this role may not create schemas.
    """
    name = f"{PREFIX}{uuid4().hex[:12]}"
    async with await connect(dsn, "public", name="squad bench") as connection:
        with translating():
            await connection.execute(_LOCK, (name,))
            await _drop_abandoned(connection)
        try:
            try:
                await schema.apply(dsn, name)
            except PermissionDenied as error:
                raise PermissionDenied(
                    "a self-test needs a schema of its own for half a minute: GRANT CREATE ON DATABASE to"
                    " the role, or name another role with --dsn"
                ) from error
            yield name
        finally:
            with translating():
                await _drop(connection, name)


async def _drop_abandoned(connection: Connection) -> None:
    """Remove the schemas left behind by killed self-tests."""
    cursor = await connection.execute(_ABANDONED, (len(PREFIX), PREFIX, _NAME_LENGTH))
    for (name,) in await cursor.fetchall():
        if await one_value(connection, _LOCK, (name,)):
            await _drop(connection, name)
            await connection.execute(_UNLOCK, (name,))


async def _drop(connection: Connection, name: str) -> None:
    await connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))
