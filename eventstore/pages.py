"""Long stretches of the log, page by page: the next one comes in while the last one is dealt with.

A connection that is awaited takes in a few kilobytes whenever the event loop has a turn for it, and whoever
folds a page gives it none. So libpq waits for a page here, in a thread and without the interpreter's lock
(`PQexecParams`), and rows are made of it only when their turn has come.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, LiteralString, TypeVar

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq import ConnStatus, ExecStatus, Format

from eventstore.connection import hang_up, hanging_up_after
from eventstore.errors import UnreadableEvent
from eventstore.gauge import Gauge
from eventstore.log import COLUMNS
from eventstore.recorded import AnyRecorded, recorded_of, told_of
from eventstore.translation import translating

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from psycopg import abc
    from psycopg.pq.abc import PGresult

    from eventstore.connection import Connection

R = TypeVar("R", bound=AnyRecorded)

PAGE_EVENTS = 2_500
"""How many events a page has: so many that what it takes to ask for one does not show, and not many more,
because of those that are on their way several are in memory."""

AHEAD = 2
"""How many pages are asked for before they are needed, so that the server never waits for us."""

# Not the event loop's own threads: where these wait in vain, those are needed to connect anew.
_READERS = ThreadPoolExecutor(8, thread_name_prefix="log reader")
_BIGINT = psycopg.postgres.types["bigint"].oid
_GIVEN_UP_AFTER_SECONDS = 1.0
"""How long a page that nobody waits for any more may still come."""


class Shape(Generic[R]):
    """How much is read of an event, and what is made of it."""

    def __init__(self, columns: LiteralString, make: Callable[[Sequence[Any]], R]) -> None:
        query: LiteralString = f"SELECT {columns} FROM events"
        self.query = f"{query} WHERE position > $1 AND position <= $2 ORDER BY position".encode()
        self.make = make


WHOLE = Shape(COLUMNS, recorded_of)
"""All of an event, as sealing and the hash chain need it."""

TOLD = Shape("position, type, schema_version, data::text, actor, caused_by, recorded_at", told_of)
"""What handlers of projections look at, which is read in less time."""


async def scan(
    connection: Connection, after: int, upto: int, page_events: int = PAGE_EVENTS, *, shape: Shape[R]
) -> AsyncGenerator[list[R], None]:
    """The log page by page, as it is when each page is read, so memory does not grow with it.

    Whatever else is asked of the connection meanwhile waits for pages that are on their way. Whoever does
    not go to the end closes the generator, and has the connection back when the pages that are on their way
    have come; where they were cancelled, they do not wait for it long, and it may be cut.

    Args:
        connection: to read on.
        after: the position to begin behind.
        upto: the last position wanted; where the log has none from some position on, it ends there.
        page_events: how many events a page has at most.
        shape: how much of each.

    Raises:
        UnreadableEvent: a row has a value that nothing here can hold.
        StoreUnavailable: the connection broke.
        StoreBusy: the server gave up.
    """
    gauge, asked = Gauge(page_events), after
    coming: deque[asyncio.Future[PGresult]] = deque()

    def ask() -> None:
        nonlocal asked
        while len(coming) < AHEAD and asked < upto:
            start, asked = asked, min(asked + gauge.events, upto)
            coming.append(asyncio.ensure_future(_come(connection, shape.query, start, asked)))

    try:
        ask()
        while coming and (page := _rows(connection, await coming[0], shape.make)):
            coming.popleft()
            gauge.learn(page)
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


async def _come(connection: Connection, query: bytes, after: int, last: int) -> PGresult:
    """The server's answer, waited for in a thread. The connection is nobody else's until that is done."""
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
                    with hanging_up_after(_GIVEN_UP_AFTER_SECONDS, connection):
                        await _end(connection, waiting)


async def _end(connection: Connection, waiting: asyncio.Future[PGresult]) -> None:
    """Returns when the thread has, however often it is cancelled: no connection ends under a thread."""
    while not waiting.done():
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError:
            hang_up(connection)


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
            _tell_unreadable(answer, transformer)
            raise


def _tell_unreadable(answer: PGresult, transformer: abc.Transformer) -> None:
    """Finds the row that nothing can be made of, such as one with a time beyond the year 9999."""
    for row in range(answer.ntuples):
        try:
            transformer.load_row(row, tuple)
        except psycopg.DataError as error:
            position = int.from_bytes(answer.get_value(row, 0) or b"", signed=True)
            raise UnreadableEvent(f"the one at position {position}, {error}", position) from error
