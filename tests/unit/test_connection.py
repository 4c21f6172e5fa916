"""How long a connection waits for its client, moment by moment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from service.http.connection import (
    KEEPALIVE_SECONDS,
    MAX_UNSENT_BYTES,
    REQUEST_HEAD_SECONDS,
    STALL_BYTES,
    STALL_SECONDS,
    Connection,
    Server,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web
    from aiohttp.web_request import BaseRequest

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Wire(asyncio.Transport):
    """Takes what is written, and lets as much of it wait as a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.waiting = 0
        self.closed = self.aborted = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted


async def _never_asked(request: BaseRequest) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError(request)


def _not_counted(status: int) -> None:
    assert status == 408


@pytest.fixture
async def made() -> AsyncIterator[tuple[Connection, Wire]]:
    server, wire = Server(_never_asked, count=_not_counted), Wire()
    connection = Connection(server, _not_counted, loop=asyncio.get_running_loop())
    connection.connection_made(wire)
    yield connection, wire
    connection.connection_lost(None)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def test_the_first_head_is_waited_for_from_the_beginning(made: tuple[Connection, Wire]) -> None:
    connection, wire = made
    connection.check_timeouts(_now() + REQUEST_HEAD_SECONDS - 1)
    assert not wire.closed
    connection.check_timeouts(_now() + REQUEST_HEAD_SECONDS + 1)
    assert wire.closed
    assert wire.written == b""


async def test_one_that_has_begun_is_told(made: tuple[Connection, Wire]) -> None:
    connection, wire = made
    connection.data_received(GET[:20])
    connection.check_timeouts(_now() + REQUEST_HEAD_SECONDS + 1)
    assert wire.closed
    assert wire.written.startswith(b"HTTP/1.1 408 ")
    head, _, body = wire.written.partition(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % len(body) in head + b"\r\n"


async def test_more_of_a_head_gains_no_time(made: tuple[Connection, Wire]) -> None:
    connection, wire = made
    for byte in GET[:-1]:
        connection.data_received(bytes([byte]))
    connection.check_timeouts(_now() + REQUEST_HEAD_SECONDS + 1)
    assert wire.closed


async def test_while_a_request_is_answered_nothing_runs_out(made: tuple[Connection, Wire]) -> None:
    connection, wire = made
    connection.data_received(GET)
    await asyncio.sleep(0)
    connection.check_timeouts(_now() + 1_000 * KEEPALIVE_SECONDS)
    assert not wire.is_closing()


async def test_an_answer_that_is_taken_slowly_is_waited_for(made: tuple[Connection, Wire]) -> None:
    connection, wire = made
    connection._head_since = None
    now = _now()
    wire.waiting = 100 * STALL_BYTES
    for _ in range(99):
        connection.check_timeouts(now)
        now += STALL_SECONDS - 1
        wire.waiting -= STALL_BYTES
    connection.check_timeouts(now)
    assert not wire.aborted


async def test_one_that_is_not_taken_is_given_up(made: tuple[Connection, Wire]) -> None:
    connection, wire = made
    connection._head_since = None
    now = _now()
    wire.waiting = 2 * STALL_BYTES
    connection.check_timeouts(now)
    wire.waiting -= STALL_BYTES - 1
    connection.check_timeouts(now + STALL_SECONDS)
    assert not wire.aborted
    connection.check_timeouts(now + STALL_SECONDS + 1)
    assert wire.aborted


async def test_what_was_taken_begins_anew(made: tuple[Connection, Wire]) -> None:
    connection, wire = made
    connection._head_since = None
    now = _now()
    wire.waiting = STALL_BYTES
    connection.check_timeouts(now)
    wire.waiting = 0
    connection.check_timeouts(now + STALL_SECONDS - 1)
    wire.waiting = STALL_BYTES
    connection.check_timeouts(now + STALL_SECONDS + 1)
    assert not wire.aborted


async def test_where_all_leave_too_much_untaken_those_who_take_least_are_dropped() -> None:
    server = Server(_never_asked, count=_not_counted)
    clients = [
        (Connection(server, _not_counted, loop=asyncio.get_running_loop()), Wire()) for _ in range(5)
    ]
    now = _now()
    for number, (connection, wire) in enumerate(clients):
        connection.connection_made(wire)
        connection._head_since = None
        wire.waiting = MAX_UNSENT_BYTES // 4
        # The first takes much of it at last, the second has waited longest, and so on.
        connection.check_timeouts(now - 20 + number)
    clients[0][1].waiting -= STALL_BYTES
    clients[4][1].waiting += STALL_BYTES
    server._check_connections()
    assert [wire.aborted for _, wire in clients] == [False, True, False, False, False]
    clients[1][0].connection_lost(None)
    clients[0][1].waiting = MAX_UNSENT_BYTES
    server._check_connections()
    assert [wire.aborted for _, wire in clients] == [False, True, True, True, True]
    for connection, _ in clients:
        connection.connection_lost(None)
    assert server._check_timer
    server._check_timer.cancel()


async def test_one_that_was_hung_up_on_and_does_not_take_the_end_is_given_up(
    made: tuple[Connection, Wire],
) -> None:
    connection, wire = made
    connection.data_received(GET[:-1])
    wire.waiting = 100
    now = _now()
    connection.check_timeouts(now + REQUEST_HEAD_SECONDS + 1)
    assert wire.closed
    connection.check_timeouts(now + REQUEST_HEAD_SECONDS + 2)
    connection.check_timeouts(now + REQUEST_HEAD_SECONDS + STALL_SECONDS)
    assert not wire.aborted
    connection.check_timeouts(now + REQUEST_HEAD_SECONDS + STALL_SECONDS + 3)
    assert wire.aborted


async def test_one_that_was_hung_up_on_is_told_nothing_more(made: tuple[Connection, Wire]) -> None:
    connection, wire = made
    connection.data_received(GET[:-1])
    connection.force_close()
    connection.check_timeouts(_now() + REQUEST_HEAD_SECONDS + 1)
    assert wire.written == b""
