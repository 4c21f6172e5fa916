"""The indexes of the read tables, including keys: finds those that are missing and recreates them.

An index is missing if somebody dropped it, or if a backup was restored without it. `schema.sql` defines
which ones there must be: it is executed again, for empty temporary tables, and rolled back at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, LiteralString, NamedTuple

from psycopg import sql

from eventstore.queries import one_value
from eventstore.schema import read_tables_sql
from eventstore.translation import translating
from projections import PROJECTIONS
from projections.comparison_sql import TEMP_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Collection

    from eventstore.connection import Connection

TABLES = frozenset(table.name for projection in PROJECTIONS for table in projection.tables)

# The rest of the definition is what is indexed, and of which rows.
_INDEXES: LiteralString = """
    SELECT t.relname, i.relname, indisunique, substring(pg_get_indexdef(indexrelid) FROM ' USING .*')
    FROM pg_index JOIN pg_class t ON t.oid = indrelid JOIN pg_class i ON i.oid = indexrelid
    WHERE t.relnamespace = {}::regnamespace AND indisvalid AND indisready AND indislive
    ORDER BY t.relname, i.relname
"""
_TEMP_SCHEMA: LiteralString = "pg_my_temp_schema()"
_IS_TAKEN: LiteralString = (
    "SELECT FROM pg_class LEFT JOIN pg_index ON indexrelid = oid"
    " WHERE indrelid IS DISTINCT FROM to_regclass(%s) AND oid = to_regclass(%s)"
)
_IS_OWN: LiteralString = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass(%s)"


class Index(NamedTuple):
    """An index that must exist."""

    table: str
    name: str
    is_unique: bool
    definition: str
    """The part of its definition that follows the table's name."""


async def missing_indexes(
    connection: Connection, schema: str, tables: Collection[str] = TABLES
) -> list[Index]:
    """Return the indexes of these tables, including keys, that are missing or invalid.

    Args:
        connection: in autocommit mode; it has no temporary tables with these names.
        schema: the squad's Postgres schema.
        tables: names of read tables; by default all of them.
    """
    with translating():
        async with connection.transaction(force_rollback=True):
            await connection.execute(
                sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(TEMP_SCHEMA))
            )
            await connection.execute(read_tables_sql().encode())
            required = await _indexes(connection, sql.SQL(_TEMP_SCHEMA))
        there = {
            (index.table, index.is_unique, index.definition)
            for index in await _indexes(connection, sql.Literal(schema))
        }
    return [
        index
        for index in required
        if index.table in tables and (index.table, index.is_unique, index.definition) not in there
    ]


async def recreate(connection: Connection, schema: str, index: Index) -> bool:
    """Recreate a missing index, without blocking readers. Return False if the role may not."""
    table = sql.Identifier(schema, index.table)
    with translating():
        if not await one_value(connection, _IS_OWN, (table.as_string(),)):
            return False
        async with connection.transaction():
            # An index with this name may exist but differ, or belong to another table.
            place = sql.Identifier(schema, index.name)
            cursor = await connection.execute(_IS_TAKEN, (table.as_string(), place.as_string()))
            is_taken = await cursor.fetchone() is not None
            if not is_taken:
                await connection.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(place))
            statement = sql.SQL(
                "CREATE UNIQUE INDEX {} ON {}" if index.is_unique else "CREATE INDEX {} ON {}"
            )
            made = statement.format(
                sql.SQL("") if is_taken else sql.Identifier(index.name), table
            ).as_bytes()
            await connection.execute(made + index.definition.encode())
    return True


async def _indexes(connection: Connection, namespace: sql.Composable) -> list[Index]:
    cursor = await connection.execute(sql.SQL(_INDEXES).format(namespace))
    return [Index(*found) for found in await cursor.fetchall()]
