"""Replaces live rows with folded ones: only those that differ, and in little time.

Joining whole tables takes a second for a million rows, and the projector waits while rows are replaced. So
the tables are joined beforehand, in a snapshot, and the keys of all rows that differ in it are noted. Rows
written since, in the live table or the folded one, have a transaction id that the snapshot does not
include: their keys are added, and only the rows noted are processed while the projector waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from psycopg import sql

from eventstore.queries import one_value
from eventstore.schema import read_table_sql
from projections.comparison_sql import DIFFER, JOINED, TEMP_SCHEMA, format_query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.connection import Connection
    from projections.projection import Table

_HORIZON: LiteralString = "SELECT pg_snapshot_xmin(pg_current_snapshot())::xid::text"
_HAS_KEY: LiteralString = """
    SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = to_regclass(%s) AND indisprimary AND indisvalid)
"""
_NAMES: LiteralString = "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace"
_RECORD_DIFFERENT: LiteralString = (
    "CREATE TABLE {different} AS SELECT {noted_key} FROM " + JOINED + " WHERE " + DIFFER
)
_RECORD_NEWER: LiteralString = """
    INSERT INTO {different} ({key})
    SELECT {live_key} FROM {live} l WHERE age(l.xmin) <= age(%(horizon)s::xid)
    UNION ALL
    SELECT {folded_key} FROM {folded} f WHERE age(f.xmin) <= age(%(horizon)s::xid)
"""
_REMOVE_ALL: LiteralString = "DELETE FROM {live}"
_WRITE_ALL: LiteralString = "INSERT INTO {live} ({columns}) SELECT {columns} FROM {folded}"
_ADD_KEY: LiteralString = "ALTER TABLE {live} ADD PRIMARY KEY ({key})"
_REMOVE: LiteralString = """
    DELETE FROM {live} l
    WHERE ({live_key}) IN (SELECT {key} FROM {different})
      AND NOT EXISTS (SELECT FROM {folded} f
                      WHERE {same_key} AND ROW({live_row}) IS NOT DISTINCT FROM ROW({folded_row}))
"""
_WRITE: LiteralString = """
    INSERT INTO {live} ({columns})
    SELECT {folded_row} FROM {folded} f
    WHERE ({folded_key}) IN (SELECT {key} FROM {different})
      AND NOT EXISTS (SELECT FROM {live} l WHERE {same_key})
"""


class Differences(NamedTuple):
    """What was found out about the tables before the projector has to wait."""

    horizon: str
    """The snapshot includes no transaction from this id on."""
    unchanged: frozenset[str]
    """Tables without any differing row in the snapshot."""
    refilled: frozenset[str]
    """Tables to be refilled completely: they were dropped, or have lost their primary key."""


async def find_differences(
    connection: Connection, schema: str, tables: Sequence[Table[Any, Any]]
) -> Differences:
    """Note the keys of all rows that differ."""
    unchanged, refilled = set(), set()
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        horizon = await one_value(connection, _HORIZON)
        for table in tables:
            if await _has_key(connection, schema, table):
                noted = await connection.execute(format_query(_RECORD_DIFFERENT, schema, table))
                if noted.rowcount:
                    await connection.execute(format_query("ANALYZE {different}", schema, table))
                else:
                    unchanged.add(table.name)
            else:
                refilled.add(table.name)
    return Differences(horizon, frozenset(unchanged), frozenset(refilled))


async def replace(
    connection: Connection, schema: str, table: Table[Any, Any], found: Differences
) -> tuple[int, int]:
    """Make the live rows equal the folded ones, in the caller's transaction, while nobody else writes.

    Returns:
        How many rows were written, and how many were removed.
    """
    is_refilled = table.name in found.refilled
    if is_refilled:
        if await one_value(connection, "SELECT to_regclass(%s) IS NULL", (f"{schema}.{table.name}",)):
            await _create(connection, schema, table)
        remove, write = _REMOVE_ALL, _WRITE_ALL
    else:
        newer = await connection.execute(
            format_query(_RECORD_NEWER, schema, table), {"horizon": found.horizon}
        )
        if not newer.rowcount and table.name in found.unchanged:
            return 0, 0
        remove, write = _REMOVE, _WRITE
    removed = (await connection.execute(format_query(remove, schema, table))).rowcount
    written = (await connection.execute(format_query(write, schema, table))).rowcount
    if is_refilled and not await _has_key(connection, schema, table):
        # Without the key, the projector could not write any row.
        await connection.execute(format_query(_ADD_KEY, schema, table))
    return written, removed


async def folded_rows(connection: Connection, schema: str, table: Table[Any, Any]) -> int:
    """Return how many rows the folded table has."""
    return int(await one_value(connection, format_query("SELECT count(*) FROM {folded}", schema, table)))


async def _has_key(connection: Connection, schema: str, table: Table[Any, Any]) -> bool:
    return bool(await one_value(connection, _HAS_KEY, (f"{schema}.{table.name}",)))


async def _create(connection: Connection, schema: str, table: Table[Any, Any]) -> None:
    """Create a table that was dropped, or renamed: then its indexes may still have their names."""
    here = sql.Identifier(schema)
    taken = await (await connection.execute(_NAMES, (schema,))).fetchall()
    await connection.execute(
        sql.SQL("SET LOCAL search_path = {}, {}").format(here, sql.Identifier(TEMP_SCHEMA))
    )
    await connection.execute(read_table_sql(table.name, {name for (name,) in taken}).encode())
    await connection.execute("SELECT settle_access()")
    await connection.execute(
        sql.SQL("SET LOCAL search_path = {}, {}").format(sql.Identifier(TEMP_SCHEMA), here)
    )
