"""Writes rows of the read tables to Postgres and reads them, with SQL generated from the tables' specs."""

from __future__ import annotations

from functools import cache, lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, LiteralString

import orjson
from msgspec.structs import astuple
from psycopg import sql

from eventstore.translation import translating

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from eventstore.connection import Connection
    from projections.projection import Row, Table

_SEPARATOR = "\x1f"


def create_statement(table: Table[Any, Any], name: sql.Composable) -> sql.Composed:
    """Return a statement that creates a table for the same rows, with its key but no other indexes."""
    columns = [
        sql.SQL("{} " + kind).format(sql.Identifier(column))
        for column, kind in zip(table.columns, table.types, strict=True)
    ]
    return sql.SQL("CREATE TABLE {name} ({columns}, PRIMARY KEY ({key}))").format(
        name=name, columns=sql.SQL(", ").join(columns), key=_names(table.key)
    )


@lru_cache(maxsize=1_000)
def upserts_statement(first: LiteralString, tables: tuple[Table[Any, Any], ...]) -> bytes:
    """Return one statement that executes `first`, a SELECT, and then writes any number of rows per table.

    Its parameters are, for each table, one array per column.
    """
    # Every row written is joined with `first`, so it is executed before all of them.
    upserts = [_upsert(table, "SELECT new.* FROM first, unnest({arrays}) AS new") for table in tables]
    parts = [sql.SQL("first AS MATERIALIZED ({})").format(sql.SQL(first))]
    parts += [
        sql.SQL("{} AS ({})").format(sql.Identifier(f"upsert_{number}"), upsert)
        for number, upsert in enumerate(upserts)
    ]
    return sql.SQL("WITH {} SELECT FROM first").format(sql.SQL(", ").join(parts)).as_bytes()


def _upsert(table: Table[Any, Any], rows: LiteralString) -> sql.Composed:
    others = [column for column in table.columns if column not in table.key]
    arrays = sql.SQL(", ").join(sql.SQL("%s::" + kind + "[]") for kind in table.types)
    return sql.SQL(
        "INSERT INTO {table} ({columns}) {rows} ON CONFLICT ({key}) DO UPDATE SET {updates}"
    ).format(
        table=sql.Identifier(table.name),
        columns=_names(table.columns),
        rows=sql.SQL(rows).format(arrays=arrays),
        key=_names(table.key),
        updates=sql.SQL(", ").join(
            sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(column)) for column in others
        ),
    )


def arrays_of(table: Table[Any, Any], rows: Iterable[Row]) -> list[str]:
    """Return the rows as one array per column."""
    columns = zip(*map(astuple, rows), strict=True)
    return [array_literal(kind, column) for kind, column in zip(table.types, columns, strict=True)]


def array_literal(kind: str, values: Sequence[Any]) -> str:
    """Return a column's values as a Postgres array literal, at once: the driver quotes them one by one."""
    if kind == "jsonb":
        values = [None if value is None else orjson.dumps(value).decode() for value in values]
    if kind in ("jsonb", "text"):
        return _texts_literal(values)
    # JSON writes numbers, ids and times as Postgres reads them, except for the brackets.
    return "{" + orjson.dumps(values).decode()[1:-1] + "}"


def _texts_literal(texts: Sequence[str | None]) -> str:
    # Not so with texts: JSON and Postgres escape differently.
    if None not in texts:
        # Escape them all at once, if none contains the separator.
        joined = _SEPARATOR.join(texts)  # type: ignore[arg-type]
        if joined.count(_SEPARATOR) == len(texts) - 1:
            return '{"' + _escaped(joined).replace(_SEPARATOR, '","') + '"}'
    return "{" + ",".join(["NULL" if text is None else f'"{_escaped(text)}"' for text in texts]) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


@cache
def load_statement(table: Table[Any, Any]) -> bytes:
    """Return one statement that reads any number of rows, given one array per key column."""
    statement = sql.SQL(
        "SELECT {columns} FROM {table} WHERE ({key}) IN (SELECT * FROM unnest({arrays}))"
    ).format(
        columns=_names(table.columns),
        table=sql.Identifier(table.name),
        key=_names(table.key),
        arrays=sql.SQL(", ").join(sql.SQL("%s::" + kind + "[]") for kind in _key_types(table)),
    )
    return statement.as_bytes()


async def load(connection: Connection, table: Table[Any, Any], keys: Sequence[Any]) -> list[Any]:
    """Return the rows with these keys, as far as they exist."""
    parts = [tuple(keys)] if len(table.key) == 1 else list(zip(*keys, strict=True))
    arrays = [array_literal(kind, part) for kind, part in zip(_key_types(table), parts, strict=True)]
    with translating():
        cursor = await connection.execute(load_statement(table), arrays, prepare=True)
        return [table.row(*row) for row in await cursor.fetchall()]


def _key_types(table: Table[Any, Any]) -> list[str]:
    return [table.types[table.columns.index(column)] for column in table.key]


async def select(
    connection: Connection, table: Table[Any, Any], where: sql.Composable, parameters: dict[str, Any]
) -> list[Any]:
    """Return the rows that a condition of our own selects (its parameters are separate), in its order.

    Args:
        connection: to read from.
        table: which table.
        where: what follows FROM: conditions, order, limit.
        parameters: the values that `where` names.
    """
    query = sql.SQL("SELECT {columns} FROM {table} {where}").format(
        columns=_names(table.columns), table=sql.Identifier(table.name), where=where
    )
    with translating():
        # Not prepared: a plan that is fast for an agent with many rows is slow for one with few.
        cursor = await connection.execute(query, parameters, prepare=False)
        return [table.row(*row) for row in await cursor.fetchall()]


def _names(columns: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


async def newest(
    connection: Connection,
    table: Table[Any, Any],
    column: str,
    values: Sequence[Any],
    order: str,
    limit: int,
) -> dict[Any, list[Any]]:
    """Return the newest rows for each of these values of a column. Values without rows are absent.

    Args:
        connection: to read from.
        table: which table.
        column: the column with the values.
        values: distinct values.
        order: the column to order by.
        limit: the maximum number of rows for each value.
    """
    query = sql.SQL(
        "SELECT found.* FROM unnest({values}::{kind}[]) AS asked (value) CROSS JOIN LATERAL ("
        "SELECT {columns} FROM {table} WHERE {column} = asked.value ORDER BY {order} DESC LIMIT {limit}"
        ") AS found"
    ).format(
        values=sql.Placeholder(),
        kind=sql.SQL(table.types[table.columns.index(column)]),
        columns=_names(table.columns),
        table=sql.Identifier(table.name),
        column=sql.Identifier(column),
        order=sql.Identifier(order),
        limit=sql.Placeholder(),
    )
    with translating():
        cursor = await connection.execute(query, (list(values), limit))
        rows = [table.row(*row) for row in await cursor.fetchall()]
    found: dict[Any, list[Any]] = {}
    for row in rows:
        found.setdefault(getattr(row, column), []).append(row)
    for group in found.values():
        group.sort(key=attrgetter(order), reverse=True)
    return found
