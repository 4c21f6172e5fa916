"""Queries that return one row or one value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

from eventstore.translation import translating

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import sql

    from eventstore.connection import Connection


async def one_value(
    connection: Connection,
    query: LiteralString | sql.Composed,
    parameters: Sequence[Any] | None = None,
    *,
    prepare: bool | None = None,
) -> Any:
    """Return the first column of the row that a query finds, or None if it finds no row.

    Args:
        connection: to query on.
        query: returns at most one row.
        parameters: of the query.
        prepare: whether to prepare the query; None leaves that to the driver.
    """
    with translating():
        row = await (await connection.execute(query, parameters, prepare=prepare)).fetchone()
    return row[0] if row else None


async def one_row(
    connection: Connection, query: LiteralString | sql.Composed, parameters: Sequence[Any] | None = None
) -> tuple[Any, ...]:
    """Return the row of a query that always finds one, such as an aggregate."""
    with translating():
        row = await (await connection.execute(query, parameters)).fetchone()
    assert row is not None
    return row  # type: ignore[no-any-return]
