"""Tampering with rows of the read tables as a superuser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from psycopg import sql

from projections import PROJECTIONS

if TYPE_CHECKING:
    from eventstore.connection import Connection
    from projections.projection import Table

TABLES: tuple[Table[Any, Any], ...] = tuple(
    table for projection in PROJECTIONS for table in projection.tables
)

_DIFFERENT: dict[str, LiteralString] = {
    "uuid": "gen_random_uuid()",
    "text": "coalesce({}, '') || '!'",
    "jsonb": "jsonb_build_object('before', {})",
    "bigint": "coalesce({}, 0) + 1",
    "integer": "coalesce({}, 0) + 1",
    "double precision": "coalesce({}, 0) + 0.5",
    "timestamptz": "coalesce({}, 'epoch') + interval '1 microsecond'",
    "date": "{} + 1",
    "boolean": "NOT {}",
}
"""An expression that gives a different value for a column, by its type."""


class Change(NamedTuple):
    """A change to a row, with values as text."""

    key: dict[str, str]
    column: str
    before: str | None
    after: str | None


class Tampering:
    """Changes, removes or copies the first row of a table by key, and undoes that."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def of(cls, connection: Connection) -> Tampering:
        """Save a copy of every table, and drop the constraints that would refuse wrong rows."""
        tampering = cls(connection)
        await connection.execute("CREATE SCHEMA untampered")
        for table in TABLES:
            await tampering._run("CREATE TABLE untampered.{table} AS TABLE {table}", table)
            constraints = (
                "SELECT conname FROM pg_constraint"
                " WHERE conrelid = {table_name}::regclass AND contype IN ('c', 'u')"
            )
            for (constraint,) in await tampering._run(constraints, table):
                name = sql.Identifier(constraint)
                await tampering._run("ALTER TABLE {table} DROP CONSTRAINT {name}", table, name=name)
        return tampering

    async def change(self, table: Table[Any, Any], column: str) -> Change:
        """Change a row's value in a column."""
        name = sql.Identifier(column)
        select = "SELECT {column}::text, {keys} FROM {table} WHERE ctid = {first}"
        [(before, *key)] = await self._run(select, table, column=name)
        update = "UPDATE {table} SET {column} = {different} WHERE ctid = {first}"
        await self._run(update, table, column=name, different=_different(table, column))
        [(after, *_)] = await self._run(select, table, column=name)
        return Change(dict(zip(table.key, key, strict=True)), column, before, after)

    async def remove(self, table: Table[Any, Any]) -> dict[str, str]:
        """Remove a row; return its key."""
        [key] = await self._run("DELETE FROM {table} WHERE ctid = {first} RETURNING {keys}", table)
        return dict(zip(table.key, key, strict=True))

    async def add(self, table: Table[Any, Any]) -> dict[str, str]:
        """Add a copy of a row under another key; return that key."""
        values = [
            _different(table, column) if column == table.key[0] else sql.Identifier(column)
            for column in table.columns
        ]
        [key] = await self._run(
            "INSERT INTO {table} ({columns}) SELECT {values} FROM {table} WHERE ctid = {first}"
            " RETURNING {keys}",
            table,
            columns=sql.SQL(", ").join(map(sql.Identifier, table.columns)),
            values=sql.SQL(", ").join(values),
        )
        return dict(zip(table.key, key, strict=True))

    async def undo(self) -> None:
        """Restore every table."""
        for table in TABLES:
            await self._run("DELETE FROM {table}", table)
            await self._run("INSERT INTO {table} SELECT * FROM untampered.{table}", table)

    async def _run(
        self, statement: LiteralString, table: Table[Any, Any], **parts: sql.Composable
    ) -> list[tuple[Any, ...]]:
        columns = sql.SQL(", ").join(map(sql.Identifier, table.key))
        name = sql.Identifier(table.name)
        query = sql.SQL(statement).format(
            table=name,
            table_name=sql.Literal(table.name),
            keys=sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(key)) for key in table.key),
            first=sql.SQL("(SELECT ctid FROM {} ORDER BY {} LIMIT 1)").format(name, columns),
            **parts,
        )
        cursor = await self._connection.execute(query)
        return await cursor.fetchall() if cursor.description else []


def _different(table: Table[Any, Any], column: str) -> sql.Composable:
    kind = table.types[table.columns.index(column)]
    return sql.SQL(_DIFFERENT[kind]).format(sql.Identifier(column))
