"""Checks of erasure: what a database still has of a person, and whether keys were used correctly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from psycopg import sql

from eventstore import sealing
from eventstore.events import SubjectForgotten
from tests.support.components import SCHEMA, connected
from tests.support.log import stored_log

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventstore.connection import Connection


async def all_rows_as_text(dsn: str, schema: str = SCHEMA) -> str:
    """All rows of all tables of the squad, as text."""
    async with connected(dsn, schema) as connection:
        cursor = await connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r'",
            (schema,),
        )
        tables = [name for (name,) in await cursor.fetchall()]
        assert {"events", "subject_keys", "snapshots", "squad_messages", "email_logs"} <= set(tables)
        rows = []
        for name in tables:
            cursor = await connection.execute(
                sql.SQL("SELECT {}::text FROM {}").format(sql.Identifier(name), sql.Identifier(name))
            )
            rows += [f"{name}: {text}" for (text,) in await cursor.fetchall()]
    return "\n".join(rows)


async def find_remains(dsn: str, texts: Iterable[str]) -> list[str]:
    """Return those of the texts that some table of the squad contains.

    Each text must have a character that base64 does not use, or a ciphertext may contain it by chance.
    """
    found = await all_rows_as_text(dsn)
    # The text of a row may have characters other than letters in escaped form.
    return [text for text in texts if text in found or text.encode().hex() in found]


async def stored_key_ids(connection: Connection) -> set[str]:
    """The ids of all keys."""
    cursor = await connection.execute("SELECT id::text FROM subject_keys")
    return {key_id for (key_id,) in await cursor.fetchall()}


async def assert_keys_existed_when_used(dsn: str) -> int:
    """Fail unless every event is encrypted with a key that exists, or that was destroyed after the event.

    Returns:
        The number of encrypted events.
    """
    encrypted: list[tuple[int, str]] = []
    destroyed: dict[str, int] = {}
    async with connected(dsn) as connection:
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for row in await stored_log(connection):
            if row.type == SubjectForgotten.type:
                destroyed.setdefault(orjson.loads(row.data)["key_id"], row.position)
            elif key_id := sealing.key_of(row):
                encrypted.append((row.position, key_id))
        existing = await stored_key_ids(connection)
    assert not existing & destroyed.keys(), "a destroyed key still exists"
    for position, key_id in encrypted:
        assert key_id in existing or destroyed.get(key_id, 0) > position, (
            f"{position} was encrypted with a key that did not exist"
        )
    return len(encrypted)
