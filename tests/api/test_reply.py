"""`Reply` sends an answer in one piece, and it equals the answer that aiohttp would send."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import pytest

from service.http import chunks
from service.http.reply import SECURITY_HEADERS, Reply
from tests.api.client import running_service
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.api.client import Service

MESSAGE = b'{"from_agent":"ada","message":"hello"}'

MANY = 500
"""So many answers of over a hundred kilobytes are several times what the kernel's buffers hold."""

# Our answers and those of aiohttp differ only in the headers that say whether the connection is kept.
REQUESTS = {
    "read": ("GET /api/v1/budget", b""),
    "write": ("POST /api/v1/messages", MESSAGE),
    "refusal": ("POST /api/v1/operations/4b1b4e1e-9a0b-7000-8000-000000000000/finish", b"{}"),
    "invalid field": ("POST /api/v1/messages", b'{"from_agent":7}'),
    "facade": ("GET /api/squad", b""),
    "error of facade": ("GET /api/squad?action=none", b""),
    "unknown path": ("GET /nowhere", b""),
    "unsupported method": ("DELETE /api/v1/budget", b""),
    "probe": ("GET /readyz", b""),
}


class Seen(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A client's connection, on which one request follows another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, line: str, body: bytes = b"", version: str = "1.1", *more: str) -> Seen:
        self.send(line, body, version, *more)
        return await self.answer(has_body=not line.startswith("HEAD"))

    def send(self, line: str, body: bytes = b"", version: str = "1.1", *more: str) -> None:
        head = [f"{line} HTTP/{version}", "Host: localhost", "X-Correlation-Id: tied-together", *more]
        if body:
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        self.writer.write("\r\n".join([*head, "", ""]).encode() + body)

    async def answer(self, *, has_body: bool = True) -> Seen:
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().removesuffix("\r\n\r\n")
            status, *lines = head.split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            length = int(headers.get("content-length", 0)) if has_body else 0
            return Seen(int(status.split()[1]), headers, await self.reader.readexactly(length))

    async def has_ended(self) -> bool:
        async with asyncio.timeout(10):
            return await self.reader.read() == b""


@contextlib.asynccontextmanager
async def _wire(service: Service) -> AsyncIterator[Wire]:
    address = urlsplit(service.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _shape(seen: Seen) -> tuple[int, dict[str, str]]:
    """What answers to the same request have in common."""
    ours = {
        name: value
        for name, value in seen.headers.items()
        if name not in ("date", "connection", "content-length")
    }
    assert seen.headers["date"].endswith(" GMT")
    return seen.status, ours


@pytest.mark.parametrize("sent", REQUESTS.values(), ids=REQUESTS)
async def test_answer_equals_that_of_aiohttp(service: Service, sent: tuple[str, bytes]) -> None:
    async with _wire(service) as wire, _wire(service) as closing, _wire(service) as old:
        ours = await wire.ask(*sent)
        theirs = await closing.ask(*sent, "1.1", "Connection: close")
        assert theirs.headers.pop("connection") == "close"
        assert await closing.has_ended()
        assert _shape(ours) == _shape(theirs) == _shape(await old.ask(*sent, "1.0"))
        assert ours.headers["x-correlation-id"] == "tied-together"
        assert len(ours.headers) == len(theirs.headers)
        # The connection is kept.
        assert (await wire.ask("GET /healthz")).status == 200


async def test_http_1_0_connection_is_kept_alive_on_request(service: Service) -> None:
    async with _wire(service) as wire:
        for _ in range(2):
            seen = await wire.ask("GET /healthz", b"", "1.0", "Connection: keep-alive")
            assert seen.headers["connection"] == "keep-alive"


@pytest.mark.parametrize("target", ["/healthz", "/metrics", "/api/v1/tasks", "/api/v1/tasks/x", "/nowhere"])
async def test_answer_to_head_request_has_no_body(service: Service, target: str) -> None:
    async with _wire(service) as wire:
        assert _shape(await wire.ask(f"HEAD {target}")) == _shape(await wire.ask(f"GET {target}"))
        # The connection is kept.
        assert (await wire.ask("GET /healthz")).body == b'{"status":"alive"}'


async def test_chunked_answer_to_head_request_has_no_body(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "PAGE_BYTES", 10)
    async with _wire(service) as wire:
        for target in ("/api/v1/budget", "/api/v1/state", "/api/squad"):
            assert (await wire.ask(f"HEAD {target}")).status == 200
            assert (await wire.ask("GET /healthz")).body == b'{"status":"alive"}'


async def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    async with _wire(service) as wire:
        for line in ("GET /healthz", "GET /nowhere", "GET /api/v1/budget"):
            wire.send(line)
        assert [(await wire.answer()).status for _ in range(3)] == [200, 404, 200]


async def test_pipelined_requests_wait_while_client_does_not_read(service: Service) -> None:
    async with _wire(service) as wire:
        for _ in range(MANY):
            wire.send("GET /openapi.json")
        counted: list[int] = []

        async def stalled() -> bool:
            counted.append(await _count_answers(service, "/openapi.json"))
            return counted[-1] > 0 and counted[-20:] == counted[-1:] * 20

        await eventually(stalled)
        assert counted[-1] < MANY
        for _ in range(MANY):
            assert (await wire.answer()).status == 200
        assert await _count_answers(service, "/openapi.json") == MANY
        assert (await wire.ask("GET /healthz")).status == 200


async def _count_answers(service: Service, route: str) -> int:
    """How many requests for a route the service has answered."""
    async with service.api.session.get("/metrics") as response:
        text = await response.text()
    found = re.search(rf'squad_http_requests_total\{{route="{route}",status="200"\}} (\d+)', text)
    return int(found[1]) if found else 0


async def test_answer_has_cors_headers_for_allowed_origin(database: str) -> None:
    page = "https://desk.example"
    async with running_service(database, cors_origins=[page]) as service, _wire(service) as wire:
        seen = await wire.ask("GET /api/v1/budget", b"", "1.1", f"Origin: {page}")
        assert seen.headers["access-control-allow-origin"] == page
        assert seen.headers["vary"] == "Origin"
        assert all(seen.headers[name.lower()] == value for name, value in SECURITY_HEADERS.items())


async def test_disconnected_client_is_not_logged_as_a_problem(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async with _wire(service) as wire:
        wire.send("POST /api/v1/messages", MESSAGE)
        wire.writer.transport.abort()
    async with _wire(service) as wire:
        assert (await wire.ask("GET /healthz")).status == 200
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_reply_converts_to_equal_response_of_aiohttp() -> None:
    reply = Reply(429, b"{}", "application/problem+json", {"Retry-After": "3"})
    reply.correlation_id = "tied"
    response = reply.response()
    assert (response.status, response.body, response.keep_alive) == (429, b"{}", None)
    assert response.headers == {
        **SECURITY_HEADERS,
        "Content-Type": "application/problem+json",
        "Retry-After": "3",
        "X-Correlation-Id": "tied",
    }
    reply.force_close()
    assert reply.response().keep_alive is False
