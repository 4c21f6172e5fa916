"""Check that tables, functions and row level security are as `schema.sql` defines them.

A role that may change the catalog can leave a guard in place and change what it relies on: the function
that appends, a policy that hides a row or prevents its deletion, a table whose rows are stored in another.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from eventstore import schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from eventstore.connection import Connection

_FUNCTIONS: LiteralString = (
    "SELECT proname, CASE prokind WHEN 'f' THEN pg_get_functiondef(oid) ELSE '' END, prosrc FROM pg_proc"
    " WHERE pronamespace = current_schema()::regnamespace AND proname = ANY (%s)"
)

# An unlogged table is empty after a crash.
_TABLES: LiteralString = (
    "SELECT relname, relpersistence = 'p', relrowsecurity, relforcerowsecurity FROM pg_class"
    " WHERE relnamespace = current_schema()::regnamespace AND relname = ANY (%s)"
)
# A query of a table also returns the rows of the tables that inherit from it.
_SHAPES: LiteralString = (
    "SELECT relname, relkind = 'r'"
    " AND NOT EXISTS (SELECT FROM pg_inherits WHERE c.oid IN (inhparent, inhrelid)),"
    " attname, format_type(atttypid, atttypmod), attnotnull AND NOT atthasdef AND attidentity = ''"
    " FROM pg_class c LEFT JOIN pg_attribute ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped"
    " WHERE relnamespace = %s::regnamespace AND relname = ANY (%s) ORDER BY relname, attnum"
)
_POLICIES: LiteralString = (
    "SELECT tablename, policyname, cmd, permissive = 'PERMISSIVE' AND roles = '{public}', qual, with_check"
    " FROM pg_policies WHERE schemaname = current_schema() AND tablename = ANY (%s)"
)

_LABEL = " AS has_table_privilege"
"""Only some versions of Postgres print it."""
_APPENDS = "( SELECT has_table_privilege(('events'::regclass)::oid, 'INSERT'::text))"
_NO_OTHER_POLICIES = frozenset(("events", "subject_keys"))
"""Tables on which no other policy may exist: it could expose or hide rows."""

_NOT_NULL: LiteralString = (
    "SELECT attname FROM pg_attribute WHERE attrelid = 'events'::regclass AND attnotnull AND attnum > 0"
)
_COLUMNS = (
    *("position", "id", "stream", "version", "type", "schema_version", "data", "actor", "correlation_id"),
    *("recorded_at", "hash"),
)
_CHECKS: LiteralString = (
    "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE conrelid = 'events'::regclass AND contype = 'c' AND convalidated"
)
_CHECKED = (
    *('"position" > 0', "version > 0", "schema_version > 0", 'caused_by < "position"', "length(hash) = 32"),
    *(
        f"strpos({column}, '\n'::text) = 0"
        for column in ("stream", "type", "actor", "correlation_id", "idempotency_key")
    ),
)


class _Policy(NamedTuple):
    command: str
    using: str | None
    with_check: str | None
    is_for_all: bool = True


_SELECT_POLICY = _Policy("SELECT", "true", None)


def is_same_function(definition: str, body: str, name: str) -> bool:
    """Whether a function is the one of this name in `schema.sql`.

    Args:
        definition: the output of pg_get_functiondef.
        body: its stored source.
        name: of a function in schema.sql.
    """
    header = " ".join(definition.partition("\nAS ")[0].split())
    header = re.sub(r"^CREATE OR REPLACE FUNCTION [^(]*\(", "(", header)
    return (header, body) == schema.functions()[name]


async def wrong_definitions(connection: Connection) -> list[str]:
    """Return what is missing or differs from `schema.sql`, one line each."""
    # The read tables are checked together with their rows.
    others = schema.tables().keys() - schema.read_tables()
    [(namespace,)] = await _rows(connection, "SELECT current_schema()")
    return [
        *await _functions(connection),
        *await _tables(connection),
        *(
            f"the table {name} {why}"
            for name, why in (await differing_tables(connection, namespace, others)).items()
        ),
        *await _columns(connection),
    ]


async def differing_tables(connection: Connection, namespace: str, tables: Iterable[str]) -> dict[str, str]:
    """Return those of these tables that exist and differ from `schema.sql`, each with the difference.

    Args:
        connection: to query on.
        namespace: the squad's Postgres schema.
        tables: names of tables in schema.sql.
    """
    cursor = await connection.execute(_SHAPES, (namespace, list(tables)))
    shapes: dict[str, tuple[bool, dict[str, tuple[str, bool]]]] = {}
    for table, is_plain, column, kind, must_be_filled in await cursor.fetchall():
        shapes.setdefault(table, (is_plain, {}))[1][column] = (kind, must_be_filled)
    found = {
        table: _difference(schema.tables()[table], columns) if is_plain else "is not a plain table"
        for table, (is_plain, columns) in shapes.items()
    }
    return {table: why for table, why in found.items() if why}


def _difference(expected: Mapping[str, str], actual: Mapping[str, tuple[str, bool]]) -> str | None:
    for column, kind in expected.items():
        if column not in actual:
            return f"has no column {column}"
        if actual[column][0] != kind:
            return f"has the column {column} as {actual[column][0]} instead of {kind}"
    for column, (_, must_be_filled) in actual.items():
        if must_be_filled and column not in expected:
            return f"has an extra column, {column}, that must be filled"
    return None


async def _functions(connection: Connection) -> list[str]:
    # Trigger functions are checked with their triggers.
    required = [name for name, (header, _) in schema.functions().items() if "RETURNS trigger" not in header]
    found: dict[str, list[bool]] = {}
    for name, definition, body in await _rows(connection, _FUNCTIONS, required):
        found.setdefault(name, []).append(is_same_function(definition, body, name))
    return [
        f"the function {name} is missing, overloaded, or not as schema.sql defines it"
        for name in required
        if found.get(name) != [True]
    ]


async def _tables(connection: Connection) -> list[str]:
    required = list(schema.tables())
    rows = await _rows(connection, _TABLES, required)
    actual = {name: rest for name, *rest in rows}
    policies: dict[str, dict[str, _Policy]] = {name: {} for name in required}
    for table, name, command, is_for_all, *clauses in await _rows(connection, _POLICIES, required):
        using, with_check = (clause and clause.replace(_LABEL, "") for clause in clauses)
        policies[table][name] = _Policy(command, using, with_check, is_for_all)
    faults = []
    for name in required:
        if name not in actual:
            # A missing read table is reported together with its rows.
            if name not in schema.read_tables():
                faults.append(f"the table {name} is missing")
            continue
        is_logged, is_enabled, is_forced = actual[name]
        if not is_logged:
            faults.append(f"the table {name} is not logged")
        found, expected = policies[name], _policies_of(name)
        if not is_enabled or is_forced or expected.items() - found.items():
            faults.append(f"the row level security of {name} is not as schema.sql defines it")
        elif name in _NO_OTHER_POLICIES and found.keys() - expected.keys():
            faults.append(
                f"the policy {min(found.keys() - expected.keys())} of {name} is not from schema.sql"
            )
    return faults


def _policies_of(table: str) -> dict[str, _Policy]:
    """Return the policies that settle_access creates for a table."""
    match table:
        case "schema_info":
            return {"seen": _SELECT_POLICY}
        case "events":
            return {"seen": _SELECT_POLICY, "added": _Policy("INSERT", None, _APPENDS)}
        case "subject_keys":
            return {"seen": _Policy("SELECT", _APPENDS, None), "added": _Policy("INSERT", None, _APPENDS)}
        case _:
            return {"seen": _SELECT_POLICY, "kept": _Policy("ALL", _APPENDS, None)}


async def _columns(connection: Connection) -> list[str]:
    filled = {name for (name,) in await _rows(connection, _NOT_NULL)}
    checked = {name for (name,) in await _rows(connection, _CHECKS)}
    return [
        *(f"the column {name} allows NULL" for name in _COLUMNS if name not in filled),
        *(
            f"the check ({' '.join(check.split())}) is missing or not valid"
            for check in _CHECKED
            if f"CHECK (({check}))" not in checked
        ),
    ]


async def _rows(
    connection: Connection, query: LiteralString, names: list[str] | None = None
) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query, None if names is None else (names,))).fetchall()
