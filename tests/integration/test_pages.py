"""`scan` reads the log page by page in a thread: what it yields, what runs beside it, and how it ends."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from threading import Event
from typing import TYPE_CHECKING, cast

import pytest

from eventstore import connection as connections
from eventstore import log, lookup, page_size, pages
from eventstore.errors import StoreBusy, StoreUnavailable
from eventstore.pages import FOLD_INPUT, FULL_EVENT, scan
from eventstore.recorded import FoldInput
from tests.support.components import connected
from tests.support.log import LogWriter, agent_registered, message_sent, stored_log
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded

EVENTS = 23


@pytest.fixture
async def stored(connection: Connection) -> list[Recorded]:
    await LogWriter(connection).append(
        agent_registered("alice"), *(message_sent(f"the {n}th") for n in range(2, EVENTS + 1))
    )
    return await stored_log(connection)


@asynccontextmanager
async def blocking_readers(database: str) -> AsyncIterator[Connection]:
    """Make every reader of the log wait until the block ends."""
    async with connected(database) as holder, holder.transaction():
        await holder.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        yield holder


async def is_waiting(holder: Connection, reader: Connection) -> bool:
    """Whether the reader's session waits for a lock."""
    query = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
    row = await (await holder.execute(query, (reader.info.backend_pid,))).fetchone()
    return row is not None and row[0]


def with_exec_params(connection: Connection, exec_params: Callable[..., object]) -> Connection:
    """The connection, with a function of the test's in place of `exec_params`."""

    class PatchedPgconn:
        def __getattr__(self, name: str) -> object:
            return exec_params if name == "exec_params" else getattr(connection.pgconn, name)

    class PatchedConnection:
        def __getattr__(self, name: str) -> object:
            return PatchedPgconn() if name == "pgconn" else getattr(connection, name)

    return cast("Connection", PatchedConnection())


@pytest.mark.parametrize("events", [1, 2, 5, EVENTS - 1, EVENTS, EVENTS + 1, 1_000])
async def test_pages_make_up_the_log(connection: Connection, stored: list[Recorded], events: int) -> None:
    found = [page async for page in scan(connection, 0, EVENTS, events, row_format=FULL_EVENT)]
    assert [row for page in found for row in page] == stored
    assert [len(page) for page in found[:-1]] == [events] * (len(found) - 1)


@pytest.mark.parametrize(("after", "upto"), [(0, 7), (3, 4), (6, 12), (20, EVENTS), (5, 5), (9, 2)])
async def test_pages_start_after_one_position_and_end_at_another(
    connection: Connection, stored: list[Recorded], after: int, upto: int
) -> None:
    found = [row async for page in scan(connection, after, upto, 3, row_format=FULL_EVENT) for row in page]
    assert found == stored[after:upto]


async def test_fold_input_has_the_same_values_as_full_events(
    connection: Connection, stored: list[Recorded]
) -> None:
    found = [row async for page in scan(connection, 0, EVENTS, 5, row_format=FOLD_INPUT) for row in page]
    assert [row._asdict() for row in found] == [
        {name: getattr(row, name) for name in FoldInput._fields} for row in stored
    ]


async def test_pages_end_where_the_log_does(connection: Connection, stored: list[Recorded]) -> None:
    found = [page async for page in scan(connection, 0, 10 * EVENTS, 10, row_format=FULL_EVENT)]
    assert [row for page in found for row in page] == stored
    assert [len(page) for page in found] == [10, 10, 3]


async def test_next_pages_are_fetched_while_one_is_processed(
    connection: Connection, stored: list[Recorded]
) -> None:
    requested: list[tuple[int, int]] = []
    fetch = pages._fetch

    async def recording(connection: Connection, query: bytes, after: int, last: int) -> object:
        requested.append((after, last))
        return await fetch(connection, query, after, last)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "_fetch", recording)
        async with aclosing(scan(connection, 0, EVENTS, 5, row_format=FULL_EVENT)) as found:
            async for page in found:
                assert page == stored[page[0].position - 1 : page[-1].position]
                due = min(page[-1].position + 10, EVENTS)
                await eventually(lambda: requested[-1][1] == due)  # noqa: B023 - it is over before the next one
    assert requested == [(0, 5), (5, 10), (10, 15), (15, 20), (20, EVENTS)]


async def test_connection_can_run_other_queries_between_pages(
    connection: Connection, stored: list[Recorded]
) -> None:
    found = []
    async for page in scan(connection, 0, EVENTS, 2, row_format=FULL_EVENT):
        found += page
        assert await lookup.read_one(connection, page[0].position) == page[0]
    assert found == stored


async def test_connection_is_free_after_the_scan_was_stopped_early(
    connection: Connection, stored: list[Recorded]
) -> None:
    async with aclosing(scan(connection, 0, EVENTS, 2, row_format=FULL_EVENT)) as found:
        async for page in found:
            assert page == stored[:2]
            break
    assert not connection.lock.locked()
    assert await log.head_position(connection) == EVENTS


async def test_scan_that_is_stopped_early_waits_for_the_pages_in_flight(
    connection: Connection, stored: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes: the caller goes on using the connection, as a fold does."""
    monkeypatch.setattr(pages, "_ABANDON_AFTER_SECONDS", 0.0)
    read = connection.pgconn.exec_params

    def read_slowly(*arguments: object) -> object:
        Event().wait(0.1)
        return read(*arguments)  # type: ignore[arg-type]

    async with aclosing(
        scan(with_exec_params(connection, read_slowly), 0, EVENTS, 2, row_format=FULL_EVENT)
    ) as found:
        assert await anext(found) == stored[:2]
    assert not connection.lock.locked()
    assert await log.head_position(connection) == EVENTS


async def test_pages_of_large_events_hold_fewer_events(
    connection: Connection, stored: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_size, "MIN_EVENTS", 2)
    monkeypatch.setattr(page_size, "INITIAL_EVENTS", 4)
    monkeypatch.setattr(page_size, "PAGE_CHARACTERS", 3 * len(stored[-1].data))
    found = [page async for page in scan(connection, 0, EVENTS, row_format=FULL_EVENT)]
    assert [row for page in found for row in page] == stored
    sizes = [len(page) for page in found]
    # Two pages were requested before the first one was seen.
    assert sizes[:3] == [4, 4, 3]
    assert {*sizes[3:-1]} <= {2, 3}


async def test_lost_connection_is_reported(
    database: str, connection: Connection, stored: list[Recorded]
) -> None:
    async with blocking_readers(database) as holder:
        reading = asyncio.ensure_future(anext(scan(connection, 0, len(stored), row_format=FULL_EVENT)))
        await eventually(lambda: is_waiting(holder, connection))
        await holder.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        with pytest.raises(StoreUnavailable, match=r"terminating|closed|lost"):
            await reading
    with pytest.raises(StoreUnavailable):
        await anext(scan(connection, 0, len(stored), row_format=FULL_EVENT))


async def test_connection_cut_by_this_process_is_reported(
    database: str, connection: Connection, stored: list[Recorded]
) -> None:
    async with blocking_readers(database) as holder:
        reading = asyncio.ensure_future(anext(scan(connection, 0, len(stored), row_format=FULL_EVENT)))
        await eventually(lambda: is_waiting(holder, connection))
        connections.shut_down_socket(connection)
        with pytest.raises(StoreUnavailable):
            await reading


async def test_timeout_on_the_server_is_reported(
    database: str, connection: Connection, stored: list[Recorded]
) -> None:
    await connection.execute("SET lock_timeout = '10ms'")
    async with blocking_readers(database):
        with pytest.raises(StoreBusy, match="lock timeout"):
            await anext(scan(connection, 0, len(stored), row_format=FULL_EVENT))
    assert [page async for page in scan(connection, 0, EVENTS, row_format=FULL_EVENT)] == [stored]


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_scan_waits_for_its_thread(
    database: str,
    connection: Connection,
    stored: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
    times: int,
) -> None:
    """If the connection were closed before, the thread would still use its memory."""
    monkeypatch.setattr(pages, "_ABANDON_AFTER_SECONDS", 0.1 if times == 1 else 60)
    read, running = connection.pgconn.exec_params, set[int]()

    def read_counted(*arguments: object) -> object:
        running.add(1)
        try:
            return read(*arguments)  # type: ignore[arg-type]
        finally:
            running.clear()

    async with blocking_readers(database) as holder:
        scanning = scan(with_exec_params(connection, read_counted), 0, len(stored), row_format=FULL_EVENT)
        reading = asyncio.ensure_future(anext(scanning))
        await eventually(lambda: is_waiting(holder, connection))
        assert running
        for _ in range(times):
            reading.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not running
        assert not connection.lock.locked()
