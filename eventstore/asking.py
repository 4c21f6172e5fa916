"""Questions that the database answers with one row, or with one value."""

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
    """The value in the first column of what a query finds; None where it finds no row.

    Args:
        connection: to ask on.
        query: finds one row, or none.
        parameters: of the query.
        prepare: whether the query is to be prepared; None leaves that to the driver.
    """
    with translating():
        row = await (await connection.execute(query, parameters, prepare=prepare)).fetchone()
    return row[0] if row else None


async def one_row(
    connection: Connection, query: LiteralString | sql.Composed, parameters: Sequence[Any] | None = None
) -> tuple[Any, ...]:
    """The row that a query finds in any case, such as one that counts."""
    with translating():
        row = await (await connection.execute(query, parameters)).fetchone()
    assert row is not None
    return row  # type: ignore[no-any-return]
