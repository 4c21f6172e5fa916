"""The tables of an imported log are stored together with it, or nothing is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from eventstore import log
from eventstore.errors import ImportRefused
from eventstore.transfer import export_log, import_log
from projections.filling import fill
from tests.support.components import connected
from tests.support.log_tampering import EVENTS, append_sample_history
from tests.support.verify import assert_tables_equal_fold

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from eventstore.connection import Connection
    from tests.support.postgres import PostgresServer


@pytest.fixture
def second_database(postgres: PostgresServer, _template: str) -> Iterator[str]:
    """The DSN of another database with an empty squad."""
    with postgres.new_database(template=_template) as dsn:
        yield dsn


async def _lines(dsn: str) -> list[bytes]:
    """Return an export of twelve events: the header, and a line for each."""
    lines: list[bytes] = []
    async with connected(dsn) as connection:
        await append_sample_history(connection)
        await export_log(connection, lines.append)
    return lines


async def _import(connection: Connection, lines: list[bytes], progress: list[int]) -> None:
    async def chunks() -> AsyncIterator[list[bytes]]:
        yield lines

    await import_log(
        connection,
        chunks(),
        fill=partial(fill, connection, report=lambda position, goal: progress.extend((position, goal))),
    )


async def test_tables_are_filled_together_with_the_imported_log(
    database: str, second_database: str
) -> None:
    progress: list[int] = []
    async with connected(second_database) as connection:
        await _import(connection, await _lines(database), progress)
        rows = await (await connection.execute("SELECT DISTINCT position FROM projections")).fetchall()
        assert rows == [(EVENTS,)]
    assert await assert_tables_equal_fold(second_database) > EVENTS // 2
    assert progress[-2:] == [EVENTS, EVENTS]


async def test_import_reports_the_event_that_a_table_rejects_and_stores_nothing(
    database: str, second_database: str
) -> None:
    lines = await _lines(database)
    async with connected(second_database) as connection:
        await connection.execute("ALTER TABLE squad_messages ADD CHECK (message <> 'message 6')")
        with pytest.raises(ImportRefused, match=r"line 7: the tables cannot apply it: .*squad_messages"):
            await _import(connection, lines, [])
        assert await log.head_position(connection) == 0
        await connection.execute("ALTER TABLE squad_messages DROP CONSTRAINT squad_messages_message_check")
        await _import(connection, lines, [])
