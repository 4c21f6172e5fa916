"""Clients that are slow on purpose: every wait for them times out, and other clients are not affected."""

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
    """A service with short timeouts."""
    monkeypatch.setattr(connection, "REQUEST_HEAD_SECONDS", 1.0)
    monkeypatch.setattr(connection, "STALL_SECONDS", 1.0)
    monkeypatch.setattr(connection, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(context, "BODY_SECONDS", 1.0)
    async with running_service(database) as running:
        yield running


class SlowClient:
    """A client that sends slowly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connected(cls, service: Service, first_bytes: bytes = b"") -> SlowClient:
        address = urlsplit(service.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(first_bytes)
        return cls(reader, writer)

    async def send_endlessly(self, chunk: bytes) -> bytes:
        """Send the same bytes repeatedly; return what was received until the connection ended."""
        answer = asyncio.ensure_future(self._received())
        try:
            while not answer.done():
                with contextlib.suppress(OSError):
                    self.writer.write(chunk)
                await asyncio.wait({answer}, timeout=0.1)
            return answer.result()
        finally:
            self.writer.transport.abort()

    async def _received(self) -> bytes:
        """All bytes received until the end of the connection, even if it is reset."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while chunk := await self.reader.read(2**16):
                received += chunk
        return received


async def _assert_serves_others(service: Service) -> None:
    """Fail unless another client is served promptly."""
    async with asyncio.timeout(5):
        (await service.api.post("messages", from_agent="bob", message="quick")).expect(201)


async def test_requests_whose_head_never_ends_time_out(service: Service) -> None:
    clients = await asyncio.gather(*(SlowClient.connected(service, HEAD) for _ in range(CLIENTS)))
    answers = asyncio.gather(*(client.send_endlessly(b"X-A: b\r\n") for client in clients))
    await _assert_serves_others(service)
    async with asyncio.timeout(20):
        received = await answers
    await _assert_serves_others(service)
    # Some connections are reset before the answer is read, because the client was still writing.
    assert all(not answer or answer.startswith(b"HTTP/1.1 408 ") for answer in received)
    assert sum(b'"code":"request_timeout"' in answer for answer in received) > CLIENTS / 2
    assert all(b"\r\nX-Correlation-Id: " in answer for answer in received if answer)
    assert await _unmatched_answers(service, 408) == CLIENTS


async def _unmatched_answers(service: Service, status: int) -> int:
    """The number of answers with this status outside of any route, from the metrics."""
    text = str((await service.api.get("/metrics")).body)
    counter = f'squad_http_requests_total{{route="unmatched",status="{status}"}} '
    return int(float(text.partition(counter)[2].partition("\n")[0] or 0))


async def test_connections_that_send_nothing_are_closed_without_an_answer(service: Service) -> None:
    clients = await asyncio.gather(*(SlowClient.connected(service) for _ in range(CLIENTS)))
    async with asyncio.timeout(20):
        received = await asyncio.gather(*(client.reader.read() for client in clients))
    assert received == [b""] * CLIENTS
    for client in clients:
        client.writer.close()


async def test_second_request_on_a_connection_times_out_as_well(service: Service) -> None:
    client = await SlowClient.connected(service, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await client.reader.readuntil(b'alive"}')
    client.writer.write(HEAD)
    async with asyncio.timeout(20):
        received = await client.send_endlessly(b"X-A: b\r\n")
    assert received.startswith(b"HTTP/1.1 408 ") or not received


async def test_idle_connection_between_requests_is_kept_open(service: Service) -> None:
    client = await SlowClient.connected(service, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await client.reader.readuntil(b"alive")
    await _assert_kept_open(service, client)


async def _assert_kept_open(service: Service, client: SlowClient) -> None:
    other = await SlowClient.connected(service)
    # Once the other one is closed, this one would have been closed as well.
    async with asyncio.timeout(20):
        assert await other.reader.read() == b""
    client.writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(5):
        await client.reader.readuntil(b"alive")
    for connected in (client, other):
        connected.writer.close()


async def test_connection_answered_before_the_request_body_arrives_is_kept_open(
    service: Service,
) -> None:
    head = b"POST /api/v1/messages HTTP/1.1\r\nHost: elsewhere.example\r\n"
    length = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    client = await SlowClient.connected(service, head + length)
    assert b" 421 " in await client.reader.readuntil(b"}")
    client.writer.write(BODY)
    await _assert_kept_open(service, client)


async def test_requests_whose_body_never_ends_time_out(service: Service) -> None:
    head = await service.head()
    request = HEAD + b"Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    clients = await asyncio.gather(*(SlowClient.connected(service, request) for _ in range(CLIENTS)))
    answers = asyncio.gather(*(client.send_endlessly(b" ") for client in clients))
    await _assert_serves_others(service)
    async with asyncio.timeout(40):
        received = await answers
    assert all(not answer or answer.startswith(b"HTTP/1.1 408 ") for answer in received)
    assert sum(b'"code":"request_timeout"' in answer for answer in received) > CLIENTS / 2
    await _assert_serves_others(service)
    async with asyncio.timeout(5):
        found = (await service.api.get("messages", min_position=head)).expect(200)["items"]
    assert {message["from_agent"] for message in found} == {"bob"}


async def test_slow_body_that_arrives_in_time_is_accepted(service: Service) -> None:
    client = await SlowClient.connected(
        service, HEAD + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    )
    for byte in BODY:
        client.writer.write(bytes([byte]))
        await client.writer.drain()
    assert b" 201 " in await client.reader.readline()
    client.writer.close()


LARGE_PAGE_REQUEST = b"GET /api/v1/messages?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def _store_a_large_page(service: Service) -> None:
    body = {"from_agent": "a", "message": "x" * 100_000}
    commands = [{"method": "POST", "path": "/api/v1/messages", "body": body}] * 10
    for _ in range(15):
        (await service.api.post("batch", commands=commands)).expect(200)
    await service.api.get("messages", min_position=await service.head(), limit=1)


async def test_answer_that_the_client_does_not_read_is_aborted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _store_a_large_page(service)
    lost = _record_lost_connections(monkeypatch)

    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port)) as client:
        client_address = client.getsockname()
        client.sendall(LARGE_PAGE_REQUEST)
        await _assert_serves_others(service)
        await eventually(lambda: client_address in lost)
        client.settimeout(10)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := await asyncio.to_thread(client.recv, 2**20):
                received += chunk
    assert b" 200 OK" in received[:100]
    assert len(received) < 150 * 100_000


async def test_total_of_unread_answers_is_bounded(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _store_a_large_page(service)
    monkeypatch.setattr(connection, "STALL_SECONDS", 60.0)
    monkeypatch.setattr(connection, "MAX_UNSENT_BYTES", 1024 * 1024)
    lost = _record_lost_connections(monkeypatch)
    address = urlsplit(service.url)
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection((address.hostname, address.port)))
            for _ in range(10)
        ]
        addresses = {client.getsockname() for client in clients}
        for client in clients:
            client.sendall(LARGE_PAGE_REQUEST)
        await eventually(lambda: addresses <= {*lost})
        await _assert_serves_others(service)


def _record_lost_connections(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list to which the addresses of clients are added when their connections end."""
    lost: list[object] = []
    original = connection.Connection.connection_lost

    def recording(self: connection.Connection, exc: BaseException | None) -> None:
        lost.append(self.peername)
        original(self, exc)

    monkeypatch.setattr(connection.Connection, "connection_lost", recording)
    return lost


async def test_connections_beyond_the_limit_are_answered_503(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REQUEST_HEAD_SECONDS", 60.0)
    await _assert_serves_others(service)
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 20)
    clients = await asyncio.gather(*(SlowClient.connected(service) for _ in range(40)))
    await _assert_serves_others(service)
    async with asyncio.timeout(10):
        done, waiting = await asyncio.wait(
            {asyncio.ensure_future(client.reader.read()) for client in clients}, timeout=1.0
        )
    received = [task.result() for task in done]
    assert len(received) >= 20
    assert all(b" 503 " in answer and b'"code":"connections_full"' in answer for answer in received)
    assert all(b"\r\nX-Correlation-Id: " in answer for answer in received)
    assert await _unmatched_answers(service, 503) >= len(received)
    for client in clients:
        client.writer.transport.abort()
    await asyncio.gather(*waiting, return_exceptions=True)

    async def is_accepted() -> bool:
        client = await SlowClient.connected(service, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            return b" 200 " in await client.reader.readline()
        finally:
            client.writer.transport.abort()

    await eventually(is_accepted, ignore=(ConnectionError,))
