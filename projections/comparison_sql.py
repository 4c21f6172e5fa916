"""SQL that joins a live read table, `l`, with the temporary one that the log was folded into, `f`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterable

    from projections.projection import Table

TEMP_SCHEMA = "pg_temp"
"""The schema of the session's temporary tables."""

JOINED: LiteralString = "{live} l FULL JOIN {folded} f ON {same_key}"
DIFFER: LiteralString = (
    "(l.ctid IS NULL OR f.ctid IS NULL OR ROW({live_row}) IS DISTINCT FROM ROW({folded_row}))"
)
"""If one side has no row, its ctid is null, whatever the row's columns may hold."""


def temporary_table(table: Table[Any, Any]) -> sql.Identifier:
    """Return the name of the session's temporary table."""
    return sql.Identifier(TEMP_SCHEMA, table.name)


def format_query(statement: LiteralString, schema: str, table: Table[Any, Any]) -> sql.Composed:
    """Complete a statement with the names of both tables, their key and their columns."""
    return sql.SQL(statement).format(
        live=sql.Identifier(schema, table.name),
        folded=temporary_table(table),
        different=sql.Identifier(TEMP_SCHEMA, f"{table.name} different"),
        same_key=sql.SQL(" AND ").join(_each("l.{0} = f.{0}", table.key)),
        columns=_listed("{0}", table.columns),
        live_row=_listed("l.{0}", table.columns),
        folded_row=_listed("f.{0}", table.columns),
        key=_listed("{0}", table.key),
        live_key=_listed("l.{0}", table.key),
        folded_key=_listed("f.{0}", table.key),
        either_key=_listed("coalesce(l.{0}, f.{0})", table.key),
        noted_key=_listed("coalesce(l.{0}, f.{0}) AS {0}", table.key),
        either_key_as_text=_listed("coalesce(l.{0}, f.{0})::text", table.key),
        both_as_text=_listed("ARRAY[l.{0}::text, f.{0}::text]", table.columns),
        differing=_listed("l.{0} IS DISTINCT FROM f.{0}", table.columns),
    )


def _listed(template: LiteralString, columns: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(_each(template, columns))


def _each(template: LiteralString, columns: Iterable[str]) -> list[sql.Composed]:
    return [sql.SQL(template).format(sql.Identifier(column)) for column in columns]
