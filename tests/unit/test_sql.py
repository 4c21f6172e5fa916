"""No statement is built from what somebody sent: what is put together is put together of our own names."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGES = ("eventstore", "projections", "service")
ROOT = Path(__file__).parent.parent.parent
RUNS_SQL = {"execute", "executemany", "copy", "stream", "SQL"}

OURS = {
    # Whole numbers, and words of a list in the code.
    "f'SET transaction_timeout = {longest}'",
    "f'SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}'",
    "f'SET synchronous_commit = {setting}'",
    "f'LISTEN \"{channel}\"'",
    # Two of our own.
    "f'{query}; COMMIT'",
    # schema.sql.
    "text.encode()",
    "read_table_sql(table.name, {name for name, in taken}).encode()",
    "read_tables_sql().encode()",
    # An index of schema.sql, as Postgres writes it down.
    "made + index.definition.encode()",
    # Columns' types, which are constants of the tables' specs.
    "'%s::' + kind + '[]'",
    "'{} ' + kind",
}
"""The few that are put together as text."""


def _statements(path: Path) -> list[str]:
    """The arguments that become SQL and are neither constants nor composed by psycopg's own means."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    first = [
        call.args[0]
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr in RUNS_SQL and call.args
    ]
    return [ast.unparse(node) for node in first if isinstance(node, ast.JoinedStr | ast.BinOp | ast.Call)]


def test_statements_are_constants_or_composed_of_identifiers() -> None:
    composed = (
        "sql.SQL(",
        "psycopg.sql.SQL(",
        "format_query(",
        "load_statement(",
        "storage.create_statement(",
    )
    found = {
        statement
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for statement in _statements(path)
        if not statement.startswith(composed)
    }
    assert found - {"query.format(sql.Identifier(schema, 'projections'))"} <= OURS
