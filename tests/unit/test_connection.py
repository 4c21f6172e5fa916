"""How long an HTTP connection waits for its client: for requests, and for slow or stalled readers."""

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


class FakeTransport(asyncio.Transport):
    """A transport that collects what is written; a test sets how much of it is unsent."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.closed = self.aborted = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted


async def _never_answer(request: BaseRequest) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError(request)


def _count_timeout(status: int) -> None:
    assert status == 408


@pytest.fixture
async def connected() -> AsyncIterator[tuple[Connection, FakeTransport]]:
    server, transport = Server(_never_answer, count=_count_timeout), FakeTransport()
    connection = Connection(server, _count_timeout, loop=asyncio.get_running_loop())
    connection.connection_made(transport)
    yield connection, transport
    connection.connection_lost(None)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def test_connection_without_a_request_is_closed_after_the_timeout(
    connected: tuple[Connection, FakeTransport],
) -> None:
    connection, transport = connected
    began = connection._head_since
    assert began is not None
    connection.check_timeouts(began + REQUEST_HEAD_SECONDS - 1)
    assert not transport.closed
    connection.check_timeouts(began + REQUEST_HEAD_SECONDS + 1)
    assert transport.closed
    assert transport.written == b""


async def test_incomplete_request_head_is_answered_with_408(
    connected: tuple[Connection, FakeTransport],
) -> None:
    connection, transport = connected
    connection.data_received(GET[:20])
    connection.check_timeouts(_now() + REQUEST_HEAD_SECONDS + 1)
    assert transport.closed
    assert transport.written.startswith(b"HTTP/1.1 408 ")
    head, _, body = transport.written.partition(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % len(body) in head + b"\r\n"


async def test_further_bytes_of_a_head_do_not_extend_its_timeout(
    connected: tuple[Connection, FakeTransport],
) -> None:
    connection, transport = connected
    connection._head_since = _now() - REQUEST_HEAD_SECONDS
    for byte in GET[:-1]:
        connection.data_received(bytes([byte]))
    connection.check_timeouts(_now() + 1)
    assert transport.closed


async def test_request_in_progress_never_times_out(connected: tuple[Connection, FakeTransport]) -> None:
    connection, transport = connected
    connection.data_received(GET)
    await asyncio.sleep(0)
    connection.check_timeouts(_now() + 1_000 * KEEPALIVE_SECONDS)
    assert not transport.is_closing()


async def test_slow_reader_is_tolerated(connected: tuple[Connection, FakeTransport]) -> None:
    connection, transport = connected
    connection._head_since = None
    now = _now()
    transport.unsent = 100 * STALL_BYTES
    for _ in range(99):
        connection.check_timeouts(now)
        now += STALL_SECONDS - 1
        transport.unsent -= STALL_BYTES
    connection.check_timeouts(now)
    assert not transport.aborted


async def test_stalled_reader_is_dropped(connected: tuple[Connection, FakeTransport]) -> None:
    connection, transport = connected
    connection._head_since = None
    now = _now()
    transport.unsent = 2 * STALL_BYTES
    connection.check_timeouts(now)
    transport.unsent -= STALL_BYTES - 1
    connection.check_timeouts(now + STALL_SECONDS)
    assert not transport.aborted
    connection.check_timeouts(now + STALL_SECONDS + 1)
    assert transport.aborted


async def test_stall_timeout_begins_anew_when_everything_was_read(
    connected: tuple[Connection, FakeTransport],
) -> None:
    connection, transport = connected
    connection._head_since = None
    now = _now()
    transport.unsent = STALL_BYTES
    connection.check_timeouts(now)
    transport.unsent = 0
    connection.check_timeouts(now + STALL_SECONDS - 1)
    transport.unsent = STALL_BYTES
    connection.check_timeouts(now + STALL_SECONDS + 1)
    assert not transport.aborted


async def test_slowest_readers_are_dropped_when_too_much_is_unsent_in_total() -> None:
    server = Server(_never_answer, count=_count_timeout)
    clients = [
        (Connection(server, _count_timeout, loop=asyncio.get_running_loop()), FakeTransport())
        for _ in range(5)
    ]
    now = _now()
    for number, (connection, transport) in enumerate(clients):
        connection.connection_made(transport)
        connection._head_since = None
        transport.unsent = MAX_UNSENT_BYTES // 4
        # The first reads most in the end, the second has been stalled the longest, and so on.
        connection.check_timeouts(now - 20 + number)
    clients[0][1].unsent -= STALL_BYTES
    clients[4][1].unsent += STALL_BYTES
    server._check_connections()
    assert [transport.aborted for _, transport in clients] == [False, True, False, False, False]
    clients[1][0].connection_lost(None)
    clients[0][1].unsent = MAX_UNSENT_BYTES
    server._check_connections()
    assert [transport.aborted for _, transport in clients] == [False, True, True, True, True]
    for connection, _ in clients:
        connection.connection_lost(None)
    assert server._check_timer
    server._check_timer.cancel()


async def test_closed_connection_whose_client_does_not_read_the_rest_is_dropped(
    connected: tuple[Connection, FakeTransport],
) -> None:
    connection, transport = connected
    connection.data_received(GET[:-1])
    transport.unsent = 100
    now = _now()
    connection.check_timeouts(now + REQUEST_HEAD_SECONDS + 1)
    assert transport.closed
    connection.check_timeouts(now + REQUEST_HEAD_SECONDS + 2)
    connection.check_timeouts(now + REQUEST_HEAD_SECONDS + STALL_SECONDS)
    assert not transport.aborted
    connection.check_timeouts(now + REQUEST_HEAD_SECONDS + STALL_SECONDS + 3)
    assert transport.aborted


async def test_connection_closed_by_the_server_gets_no_408(
    connected: tuple[Connection, FakeTransport],
) -> None:
    connection, transport = connected
    connection.data_received(GET[:-1])
    connection.force_close()
    connection.check_timeouts(_now() + REQUEST_HEAD_SECONDS + 1)
    assert transport.written == b""
