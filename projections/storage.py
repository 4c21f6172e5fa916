"""Rows of the read tables to Postgres and back, by SQL made from the tables' specs."""

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


_BETWEEN = "\x1f"


def create_statement(table: Table[Any, Any], name: sql.Composable) -> sql.Composed:
    """Makes a table for the same rows, with its key and without what only readers need."""
    columns = [
        sql.SQL("{} " + kind).format(sql.Identifier(column))
        for column, kind in zip(table.columns, table.types, strict=True)
    ]
    return sql.SQL("CREATE TABLE {name} ({columns}, PRIMARY KEY ({key}))").format(
        name=name, columns=sql.SQL(", ").join(columns), key=_names(table.key)
    )


@lru_cache(maxsize=1_000)
def upserts_statement(first: LiteralString, tables: tuple[Table[Any, Any], ...]) -> bytes:
    """One statement that selects `first`, and only then writes any number of rows of each table.

    Of each table it is given an array a column.
    """
    # Every row that is written is joined with it, so it comes before them all.
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
    """The rows as an array a column."""
    columns = zip(*map(astuple, rows), strict=True)
    return [array_literal(kind, column) for kind, column in zip(table.types, columns, strict=True)]


def array_literal(kind: str, values: Sequence[Any]) -> str:
    """A column's values as Postgres reads an array: made at once, because the driver quotes one by one."""
    if kind == "jsonb":
        values = [None if value is None else orjson.dumps(value).decode() for value in values]
    if kind in ("jsonb", "text"):
        return _texts_literal(values)
    # Of numbers, ids and times JSON makes what Postgres reads, but for the brackets.
    return "{" + orjson.dumps(values).decode()[1:-1] + "}"


def _texts_literal(texts: Sequence[str | None]) -> str:
    # Here it does not: JSON and Postgres escape differently.
    if None not in texts:
        # All at once, where no text holds what stands between them meanwhile.
        joined = _BETWEEN.join(texts)  # type: ignore[arg-type]
        if joined.count(_BETWEEN) == len(texts) - 1:
            return '{"' + _escaped(joined).replace(_BETWEEN, '","') + '"}'
    return "{" + ",".join(["NULL" if text is None else f'"{_escaped(text)}"' for text in texts]) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


@cache
def load_statement(table: Table[Any, Any]) -> bytes:
    """One statement that reads any number of rows, given an array for each column of the key."""
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
    """The rows with these keys, as far as they exist."""
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
    """The rows that a condition of our own (with its parameters apart) picks out, in the order it gives.

    Args:
        connection: to read on.
        table: which table.
        where: what follows FROM: conditions, order, limit.
        parameters: the values that `where` names.
    """
    query = sql.SQL("SELECT {columns} FROM {table} {where}").format(
        columns=_names(table.columns), table=sql.Identifier(table.name), where=where
    )
    with translating():
        # Not prepared: the way that is short where an agent has many rows is long where it has few.
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
    """The newest rows for each of some values of a column. Values that no row has are absent.

    Args:
        connection: to read on.
        table: which table.
        column: the column that has the values.
        values: all different.
        order: the column that orders the rows.
        limit: how many at most of each value.
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
    for those in found.values():
        those.sort(key=attrgetter(order), reverse=True)
    return found
