"""Replays and comparisons that are cancelled or lose their connection, at each statement in turn."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from eventstore import connection as connections
from eventstore import pages
from eventstore.errors import StoreUnavailable
from projections import rebuild as rebuilding
from projections.agents import agents
from projections.comparison import compare
from projections.messages import messages
from projections.rebuild import rebuild
from tests.support.components import SCHEMA, backend_pids, connected
from tests.support.log import LogWriter, agent_registered, message_sent
from tests.support.tables import project
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventstore.connection import Connection

pytestmark = pytest.mark.faults

EVENTS = 40


@contextmanager
def cutting(name: str, at_statement: int) -> Iterator[list[int]]:
    """Cut the connection on which sessions of this name send their n-th statement; yield the countdown."""
    remaining = [at_statement]
    execute, read_page = psycopg.AsyncCursor.execute, pages._fetch

    def count_down(connection: Connection) -> None:
        if connection.info.get_parameters().get("application_name") == name:
            remaining[0] -= 1
            if remaining[0] == 0:
                connections.shut_down_socket(connection)

    async def cut_and_execute(cursor: psycopg.AsyncCursor[Any], *args: Any, **more: Any) -> Any:
        count_down(cursor.connection)
        return await execute(cursor, *args, **more)

    async def cut_and_read(connection: Connection, *args: Any) -> Any:
        count_down(connection)
        return await read_page(connection, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.AsyncCursor, "execute", cut_and_execute)
        patch.setattr(pages, "_fetch", cut_and_read)
        yield remaining


async def _prepare(dsn: str, connection: Connection) -> None:
    log_writer = LogWriter(connection)
    await log_writer.append(
        agent_registered("alice"), *(message_sent(str(number)) for number in range(EVENTS - 1))
    )
    await project(dsn)


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages.scan, "__defaults__", (15,))


@pytest.mark.parametrize("close", [0, 1_000], ids=["folded before the swap", "folded in the swap"])
async def test_replay_is_all_or_nothing_when_its_connection_breaks_at_any_statement(
    database: str, monkeypatch: pytest.MonkeyPatch, close: int
) -> None:
    monkeypatch.setattr(rebuilding, "CLOSE_EVENTS", close)
    async with connected(database) as connection:
        await _prepare(database, connection)
        query = "SELECT count(task_id), (SELECT max(generation) FROM projections) FROM squad_messages"
        for statement in count(1):
            await connection.execute("UPDATE squad_messages SET task_id = 'tampered'")
            [(tampered, generation)] = await (await connection.execute(query.encode())).fetchall()
            with cutting("squad replay", statement) as remaining:
                try:
                    await rebuild(database, SCHEMA, [agents, messages])
                except StoreUnavailable:
                    pass
                else:
                    assert remaining[0] > 0, "the cut was not detected"
            await eventually(partial(_is_gone, connection, "squad replay"))
            [found] = await (await connection.execute(query.encode())).fetchall()
            assert found in ((tampered, generation), (0, generation + 1))
            if remaining[0] > 0:
                break
        assert statement > 30
        assert found == (0, generation + 1)
        assert await compare(database, SCHEMA) == []


async def test_comparison_fails_when_its_connection_breaks_at_any_statement(database: str) -> None:
    async with connected(database) as connection:
        await _prepare(database, connection)
        for statement in count(1):
            with cutting("squad comparison", statement) as remaining:
                try:
                    assert await compare(database, SCHEMA, [agents, messages]) == []
                except StoreUnavailable:
                    pass
                else:
                    assert remaining[0] > 0, "the cut was not detected"
            if remaining[0] > 0:
                break
        assert statement > 15


async def test_replay_that_is_cancelled_at_any_page_ends_at_once(database: str) -> None:
    async with connected(database) as connection:
        await _prepare(database, connection)
        for pages in range(1, 4):
            reached = asyncio.Event()
            calls = iter(range(1, 100))

            def report(position: int, goal: int, *, pages: int = pages) -> None:
                del position, goal
                if next(calls) == pages:  # noqa: B023 - called in this round only
                    reached.set()  # noqa: B023

            work = asyncio.create_task(rebuild(database, SCHEMA, progress=report))
            await reached.wait()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            await eventually(partial(_is_gone, connection, "squad replay"))
        assert await compare(database, SCHEMA) == []


async def _is_gone(connection: Connection, name: str) -> bool:
    return not await backend_pids(connection, name)
