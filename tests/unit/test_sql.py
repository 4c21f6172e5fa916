"""No SQL statement is built from input: each is a constant, or composed of names in the code."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGES = ("eventstore", "projections", "service")
ROOT = Path(__file__).parent.parent.parent
RUNS_SQL = {"execute", "executemany", "copy", "stream", "SQL"}

ALLOWED = {
    # Integers, and words from a list in the code.
    "f'SET transaction_timeout = {longest}'",
    "f'SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}'",
    "f'SET synchronous_commit = {setting}'",
    "f'LISTEN \"{channel}\"'",
    # A query of the code, and COMMIT.
    "f'{query}; COMMIT'",
    # schema.sql.
    "text.encode()",
    "read_table_sql(table.name, {name for name, in taken}).encode()",
    "read_tables_sql().encode()",
    # An index of schema.sql, as Postgres prints it.
    "made + index.definition.encode()",
    # Types of columns, which are constants in the definitions of the tables.
    "'%s::' + kind + '[]'",
    "'{} ' + kind",
}
"""The few statements that are concatenated as text."""


def _statements(path: Path) -> list[str]:
    """The arguments that become SQL and are expressions, not names or constants."""
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
    assert found - {"query.format(sql.Identifier(schema, 'projections'))"} <= ALLOWED
