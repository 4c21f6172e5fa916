"""Rows written to tables and read back: every value that a column can hold arrives unchanged."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import errors, sql

from eventstore.queries import one_value
from projections import PROJECTIONS, storage
from projections.budgets import BUDGET_DAYS, BUDGETS, BudgetDayRow, BudgetRow

if TYPE_CHECKING:
    from eventstore.connection import Connection

NASTY_TEXTS = [
    "",
    " ",
    "NULL",
    "null",
    "{}",
    "{a,b}",
    ",",
    '"',
    '""',
    "\\",
    "\\\\",
    '\\"',
    '","',
    "\x1f",
    'a\x1f"b\\',
    "line\nbreak\r\ttab",
    "\x01\x7f",
    "ünïcödé 😀 \u2028",
    "'; DROP TABLE events; --",
    "\\N",
    "\\x41",
    "x" * 100_000,
]
TIMES = [
    datetime(2026, 11, 24, 8, 49, 52, 902859, UTC),
    datetime(2026, 11, 24, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999999, UTC),
    datetime(2026, 11, 24, 8, 49, 52, 1, timezone(timedelta(hours=5, minutes=30))),
]
VALUES: dict[str, list[Any]] = {
    "text": NASTY_TEXTS,
    "jsonb": [
        *({"text": text} for text in NASTY_TEXTS),
        {},
        [],
        [1, None, {"a": [True]}],
        "plain",
        7,
        False,
    ],
    "uuid": ["019a2b3c-0000-7000-8000-000000000001"],
    "bigint": [0, -1, 2**63 - 1, -(2**63)],
    "integer": [0, 2**31 - 1, -(2**31)],
    "double precision": [0.0, -1.5, 0.1, 1e300, 5e-324, 60.0],
    "timestamptz": TIMES,
    "date": [date(2026, 11, 24), date(1, 1, 1), date(9999, 12, 31)],
    "boolean": [True, False],
}


def test_values_cover_every_column_type() -> None:
    used = {kind for projection in PROJECTIONS for table in projection.tables for kind in table.types}
    assert used == VALUES.keys()


@pytest.mark.parametrize("kind", VALUES)
async def test_array_literal_preserves_its_values(connection: Connection, kind: str) -> None:
    query = sql.SQL("SELECT * FROM unnest(%s::{}[])").format(sql.SQL(kind))
    for values in (VALUES[kind], [None, *VALUES[kind], None], [None], *([value] for value in VALUES[kind])):
        cursor = await connection.execute(
            query, (storage.array_literal(kind, tuple(values)),), prepare=True
        )
        assert [value for (value,) in await cursor.fetchall()] == values


async def _write_after(connection: Connection, first: int, *rows: tuple[Any, Any]) -> None:
    statement = storage.upserts_statement("SELECT 1 / %s", tuple(table for table, _ in rows))
    arrays = [array for table, row in rows for array in storage.arrays_of(table, [row])]
    await connection.execute(statement, [first, *arrays], prepare=True)


async def test_rows_of_several_tables_are_written_in_one_statement(connection: Connection) -> None:
    at = TIMES[0]
    day = BudgetDayRow(date(2026, 11, 24), 9, 1, 0, 0, at, at, None, 5)
    await _write_after(connection, 1)
    for used in (1, 2):
        budget = BudgetRow(day.day, "alice", used, 0, 5)
        await _write_after(connection, 1, (BUDGET_DAYS, day), (BUDGETS, budget))
        assert await storage.load(connection, BUDGET_DAYS, [day.day]) == [day]
        assert await storage.load(connection, BUDGETS, [(day.day, "alice")]) == [budget]


async def test_no_row_is_written_before_the_first_select(connection: Connection) -> None:
    """It advances the projections, and whoever replaces the tables' rows locks those first as well."""
    row = BudgetRow(date(2026, 11, 24), "alice", 1, 0, 5)
    no_agent: Any = None
    invalid = row.replaced(agent=no_agent)
    with pytest.raises(errors.NotNullViolation):
        await _write_after(connection, 1, (BUDGETS, invalid))
    with pytest.raises(errors.DivisionByZero):
        await _write_after(connection, 0, (BUDGETS, invalid))
    with pytest.raises(errors.DivisionByZero):
        await _write_after(connection, 0, (BUDGETS, row))
    assert await storage.load(connection, BUDGETS, [(row.day, "alice")]) == []


async def test_select_is_planned_for_its_parameter_values(connection: Connection) -> None:
    """A generic plan for all values would scan the whole table for the few rows of one of them."""
    for number in range(20):
        where = sql.SQL("WHERE agent = %(agent)s ORDER BY day LIMIT %(limit)s")
        await storage.select(connection, BUDGETS, where, {"agent": f"agent {number}", "limit": 5})
    cursor = await connection.execute("SELECT count(*) FROM pg_prepared_statements")
    assert await cursor.fetchone() == (0,)


async def _positions(connection: Connection) -> dict[str, int]:
    return dict(await (await connection.execute("SELECT name, position FROM projections")).fetchall())


async def test_projections_advance_together_from_the_expected_position_or_not_at_all(
    connection: Connection,
) -> None:
    advance = "SELECT advance_projections(%s, %s, 9, %s)"
    before = {"one": 5, "two": 5, "behind": 4, "apart": 5}
    await connection.cursor().executemany(
        "INSERT INTO projections (name, position, fold_version, generation, updated_at)"
        " VALUES (%s, %s, 1, 3, '2026-01-01Z')",
        list(before.items()),
    )
    for names, expected, generation in (
        (["one", "two"], 4, 3),
        (["one", "two"], 6, 3),
        (["one", "two"], 5, 2),
        (["one", "behind"], 5, 3),
        (["one", "nobody"], 5, 3),
    ):
        with pytest.raises(errors.SerializationFailure):
            await connection.execute(advance, (names, expected, generation))
        assert await _positions(connection) == before
    await connection.execute('LISTEN "squad.projections"')
    await connection.execute(advance, (["one", "two"], 5, 3))
    assert await _positions(connection) == before | {"one": 9, "two": 9}
    advanced = "SELECT array_agg(name ORDER BY name) FROM projections WHERE updated_at > '2026-01-02Z'"
    assert await one_value(connection, advanced) == ["one", "two"]
    [notification] = [each async for each in connection.notifies(timeout=10, stop_after=1)]
    assert notification.payload == "9"
