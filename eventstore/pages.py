"""Read long stretches of the log page by page: the next page arrives while the last one is processed.

An awaited connection receives a few kilobytes per iteration of the event loop, and folding a page blocks
the loop. So libpq receives pages here in a thread that does not hold the GIL (`PQexecParams`), and a page
is converted to rows only when its turn comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, LiteralString, TypeVar

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq import ConnStatus, ExecStatus, Format

from eventstore.connection import closing_after, shut_down_socket
from eventstore.errors import UnreadableEvent
from eventstore.log import COLUMNS
from eventstore.page_size import PageSizer
from eventstore.recorded import AnyRecorded, fold_input_of, recorded_of
from eventstore.translation import translating

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from psycopg import abc
    from psycopg.pq.abc import PGresult

    from eventstore.connection import Connection

R = TypeVar("R", bound=AnyRecorded)

PAGE_EVENTS = 2_500
"""The maximum size of a page: large enough that the overhead of a query is negligible, and not much larger,
because several pages are in memory at once."""

PREFETCHED_PAGES = 2
"""How many pages are requested ahead, so that the server is never idle."""

# Not the default executor of the event loop: if these threads are stuck, it is needed to reconnect.
_READERS = ThreadPoolExecutor(8, thread_name_prefix="log reader")
_BIGINT = psycopg.postgres.types["bigint"].oid
_ABANDON_AFTER_SECONDS = 1.0
"""How long to wait for a page in flight that is no longer wanted."""


class RowFormat(Generic[R]):
    """Which columns of an event are read, and what is made of them."""

    def __init__(self, columns: LiteralString, make: Callable[[Sequence[Any]], R]) -> None:
        query: LiteralString = f"SELECT {columns} FROM events"
        self.query = f"{query} WHERE position > $1 AND position <= $2 ORDER BY position".encode()
        self.make = make


FULL_EVENT = RowFormat(COLUMNS, recorded_of)
"""All of an event, as sealing and the hash chain need it."""

FOLD_INPUT = RowFormat(
    "position, type, schema_version, data::text, actor, caused_by, recorded_at", fold_input_of
)
"""What the handlers of projections need; it is faster to read."""


async def scan(
    connection: Connection,
    after: int,
    upto: int,
    page_events: int = PAGE_EVENTS,
    *,
    row_format: RowFormat[R],
) -> AsyncGenerator[list[R], None]:
    """Yield the log page by page, as of when each page is read, in bounded memory.

    Other queries on the connection wait for the pages in flight. A caller that stops early must close the
    generator, and can use the connection again once the pages in flight have arrived. A caller that is
    cancelled waits only briefly for them, and then the connection may be closed.

    Args:
        connection: to read on.
        after: the position to start after.
        upto: the last position wanted; if the log ends before it, so does the scan.
        page_events: the maximum number of events in a page.
        row_format: what to read of each.

    Raises:
        UnreadableEvent: a row has a value that Python cannot represent.
        StoreUnavailable: the connection broke.
        StoreBusy: the server gave up.
    """
    page_sizer, asked = PageSizer(page_events), after
    coming: deque[asyncio.Future[PGresult]] = deque()

    def ask() -> None:
        nonlocal asked
        while len(coming) < PREFETCHED_PAGES and asked < upto:
            start, asked = asked, min(asked + page_sizer.events, upto)
            coming.append(asyncio.ensure_future(_fetch(connection, row_format.query, start, asked)))

    try:
        ask()
        while coming and (page := _rows(connection, await coming[0], row_format.make)):
            coming.popleft()
            page_sizer.adapt(page)
            ask()
            yield page
    finally:
        try:
            if coming and not _is_being_cancelled():
                await asyncio.wait(coming)
        finally:
            for page_ahead in coming:
                page_ahead.cancel()
            await asyncio.gather(*coming, return_exceptions=True)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return bool(task and task.cancelling())


async def _fetch(connection: Connection, query: bytes, after: int, last: int) -> PGresult:
    """Return the server's answer, received in a thread that has the connection to itself."""
    parameters = [str(position).encode() for position in (after, last)]
    with translating():
        async with connection.lock:
            job = _READERS.submit(
                connection.pgconn.exec_params,
                query,
                parameters,
                [_BIGINT] * len(parameters),
                None,
                Format.BINARY,
            )
            waiting = asyncio.wrap_future(job)
            try:
                return await asyncio.shield(waiting)
            finally:
                if not job.cancel():
                    with closing_after(_ABANDON_AFTER_SECONDS, connection):
                        await _join_thread(connection, waiting)


async def _join_thread(connection: Connection, waiting: asyncio.Future[PGresult]) -> None:
    """Wait for the thread, even if cancelled: a connection must not be closed while a thread uses it."""
    while not waiting.done():
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError:
            shut_down_socket(connection)


def _rows(connection: Connection, answer: PGresult, make: Callable[[Sequence[Any]], R]) -> list[R]:
    with translating():
        if answer.status != ExecStatus.TUPLES_OK:
            if connection.pgconn.status != ConnStatus.OK:
                raise psycopg.OperationalError(answer.get_error_message() or "the connection is lost")
            raise psycopg.errors.error_from_result(answer)
        transformer = Transformer(connection)
        transformer.set_pgresult(answer)
        try:
            return transformer.load_rows(0, answer.ntuples, make)
        except psycopg.DataError:
            _raise_unreadable(answer, transformer)
            raise


def _raise_unreadable(answer: PGresult, transformer: abc.Transformer) -> None:
    """Find the row that cannot be converted, such as one with a time beyond the year 9999."""
    for row in range(answer.ntuples):
        try:
            transformer.load_row(row, tuple)
        except psycopg.DataError as error:
            position = int.from_bytes(answer.get_value(row, 0) or b"", signed=True)
            raise UnreadableEvent(f"at position {position}, {error}", position) from error
