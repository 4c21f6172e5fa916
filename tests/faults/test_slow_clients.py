"""Clients that take their time on purpose: each wait for them ends, and nobody else notices them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from service.http import connection, context
from tests.api.client import Service, running_service
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.faults

CLIENTS = 200
HEAD = b"POST /api/v1/messages HTTP/1.1\r\nHost: localhost\r\n"
BODY = b'{"from_agent": "ada", "message": "slow"}'


@pytest.fixture
async def service(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """One whose patience is short."""
    monkeypatch.setattr(connection, "REQUEST_HEAD_SECONDS", 1.0)
    monkeypatch.setattr(connection, "STALL_SECONDS", 1.0)
    monkeypatch.setattr(connection, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(context, "BODY_SECONDS", 1.0)
    async with running_service(database) as running:
        yield running


class Slow:
    """A connection that is written to byte by byte, for as long as it is there."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connected(cls, service: Service, begins: bytes = b"") -> Slow:
        address = urlsplit(service.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(begins)
        return cls(reader, writer)

    async def dribble(self, endless: bytes) -> bytes:
        """Sends some more again and again; what was answered until the other side hung up."""
        answer = asyncio.ensure_future(self._heard())
        try:
            while not answer.done():
                with contextlib.suppress(OSError):
                    self.writer.write(endless)
                await asyncio.wait({answer}, timeout=0.1)
            return answer.result()
        finally:
            self.writer.transport.abort()

    async def _heard(self) -> bytes:
        """All that came until the end, also where the end is a reset."""
        heard = b""
        with contextlib.suppress(ConnectionError):
            while some := await self.reader.read(2**16):
                heard += some
        return heard


async def _goes_on(service: Service) -> None:
    """Others are served."""
    async with asyncio.timeout(5):
        (await service.api.post("messages", from_agent="bob", message="quick")).expect(201)


async def test_heads_that_never_end_are_not_waited_for(service: Service) -> None:
    clients = await asyncio.gather(*(Slow.connected(service, HEAD) for _ in range(CLIENTS)))
    answers = asyncio.gather(*(client.dribble(b"X-A: b\r\n") for client in clients))
    await _goes_on(service)
    async with asyncio.timeout(20):
        told = await answers
    await _goes_on(service)
    # Some are reset before they read it, because they were still writing.
    assert all(not answer or answer.startswith(b"HTTP/1.1 408 ") for answer in told)
    assert sum(b'"code":"request_timeout"' in answer for answer in told) > CLIENTS / 2
    assert all(b"\r\nX-Correlation-Id: " in answer for answer in told if answer)
    assert await _counted(service, 408) == CLIENTS


async def _counted(service: Service, status: int) -> int:
    """How many answers of this status were counted that no route gave."""
    text = str((await service.api.get("/metrics")).body)
    counter = f'squad_http_requests_total{{route="unmatched",status="{status}"}} '
    return int(float(text.partition(counter)[2].partition("\n")[0] or 0))


async def test_connections_on_which_nothing_comes_are_ended_without_a_word(service: Service) -> None:
    clients = await asyncio.gather(*(Slow.connected(service) for _ in range(CLIENTS)))
    async with asyncio.timeout(20):
        told = await asyncio.gather(*(client.reader.read() for client in clients))
    assert told == [b""] * CLIENTS
    for client in clients:
        client.writer.close()


async def test_the_second_head_on_a_connection_is_not_waited_for_either(service: Service) -> None:
    client = await Slow.connected(service, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await client.reader.readuntil(b'alive"}')
    client.writer.write(HEAD)
    async with asyncio.timeout(20):
        told = await client.dribble(b"X-A: b\r\n")
    assert told.startswith(b"HTTP/1.1 408 ") or not told


async def test_one_that_is_idle_between_requests_is_kept(service: Service) -> None:
    client = await Slow.connected(service, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await client.reader.readuntil(b"alive")
    await _is_kept(service, client)


async def _is_kept(service: Service, client: Slow) -> None:
    other = await Slow.connected(service)
    # The other one is ended, so this one would have been by now.
    async with asyncio.timeout(20):
        assert await other.reader.read() == b""
    client.writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(5):
        await client.reader.readuntil(b"alive")
    for each in (client, other):
        each.writer.close()


async def test_one_whose_request_was_answered_before_its_body_came_is_kept_as_well(
    service: Service,
) -> None:
    head = b"POST /api/v1/messages HTTP/1.1\r\nHost: elsewhere.example\r\n"
    length = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    client = await Slow.connected(service, head + length)
    assert b" 421 " in await client.reader.readuntil(b"}")
    client.writer.write(BODY)
    await _is_kept(service, client)


async def test_bodies_that_never_end_are_not_waited_for(service: Service) -> None:
    head = await service.head()
    begins = HEAD + b"Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    clients = await asyncio.gather(*(Slow.connected(service, begins) for _ in range(CLIENTS)))
    answers = asyncio.gather(*(client.dribble(b" ") for client in clients))
    await _goes_on(service)
    async with asyncio.timeout(40):
        told = await answers
    assert all(not answer or answer.startswith(b"HTTP/1.1 408 ") for answer in told)
    assert sum(b'"code":"request_timeout"' in answer for answer in told) > CLIENTS / 2
    await _goes_on(service)
    async with asyncio.timeout(5):
        found = (await service.api.get("messages", min_position=head)).expect(200)["items"]
    assert {message["from_agent"] for message in found} == {"bob"}


async def test_a_body_that_comes_slowly_but_in_time_is_taken(service: Service) -> None:
    client = await Slow.connected(
        service, HEAD + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    )
    for byte in BODY:
        client.writer.write(bytes([byte]))
        await client.writer.drain()
    assert b" 201 " in await client.reader.readline()
    client.writer.close()


LARGE_PAGE = b"GET /api/v1/messages?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def _has_a_large_page(service: Service) -> None:
    body = {"from_agent": "a", "message": "x" * 100_000}
    commands = [{"method": "POST", "path": "/api/v1/messages", "body": body}] * 10
    for _ in range(15):
        (await service.api.post("batch", commands=commands)).expect(200)
    await service.api.get("messages", min_position=await service.head(), limit=1)


async def test_an_answer_that_nobody_takes_is_given_up(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _has_a_large_page(service)
    lost = _watching_what_is_lost(monkeypatch)

    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port)) as deaf:
        us = deaf.getsockname()
        deaf.sendall(LARGE_PAGE)
        await _goes_on(service)
        await eventually(lambda: us in lost)
        deaf.settimeout(10)
        taken = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := await asyncio.to_thread(deaf.recv, 2**20):
                taken += chunk
    assert b" 200 OK" in taken[:100]
    assert len(taken) < 150 * 100_000


async def test_what_all_together_do_not_take_is_bounded(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _has_a_large_page(service)
    monkeypatch.setattr(connection, "STALL_SECONDS", 60.0)
    monkeypatch.setattr(connection, "MAX_UNSENT_BYTES", 1024 * 1024)
    lost = _watching_what_is_lost(monkeypatch)
    address = urlsplit(service.url)
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection((address.hostname, address.port)))
            for _ in range(10)
        ]
        us = {client.getsockname() for client in clients}
        for client in clients:
            client.sendall(LARGE_PAGE)
        await eventually(lambda: us <= {*lost})
        await _goes_on(service)


def _watching_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The addresses of clients whose connections have ended."""
    lost: list[object] = []
    ends = connection.Connection.connection_lost

    def watched(self: connection.Connection, exc: BaseException | None) -> None:
        lost.append(self.peername)
        ends(self, exc)

    monkeypatch.setattr(connection.Connection, "connection_lost", watched)
    return lost


async def test_connections_are_bounded_and_one_too_many_is_told(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REQUEST_HEAD_SECONDS", 60.0)
    await _goes_on(service)
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 20)
    clients = await asyncio.gather(*(Slow.connected(service) for _ in range(40)))
    await _goes_on(service)
    async with asyncio.timeout(10):
        done, waiting = await asyncio.wait(
            {asyncio.ensure_future(client.reader.read()) for client in clients}, timeout=1.0
        )
    told = [task.result() for task in done]
    assert len(told) >= 20
    assert all(b" 503 " in answer and b'"code":"connections_full"' in answer for answer in told)
    assert all(b"\r\nX-Correlation-Id: " in answer for answer in told)
    assert await _counted(service, 503) >= len(told)
    for client in clients:
        client.writer.transport.abort()
    await asyncio.gather(*waiting, return_exceptions=True)

    async def there_is_room() -> bool:
        client = await Slow.connected(service, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            return b" 200 " in await client.reader.readline()
        finally:
            client.writer.transport.abort()

    await eventually(there_is_room, ignore=(ConnectionError,))
