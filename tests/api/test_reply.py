"""An answer in one piece is the answer that aiohttp would have sent."""

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
"""Answers of a hundred kilobytes and more: all that a system's buffers hold, and several times as much."""

# Ours and aiohttp's: the same but for what says whether the connection goes on.
ASKED = {
    "an answer": ("GET /api/v1/budget", b""),
    "a write": ("POST /api/v1/messages", MESSAGE),
    "a refusal": ("POST /api/v1/operations/4b1b4e1e-9a0b-7000-8000-000000000000/finish", b"{}"),
    "a wrong field": ("POST /api/v1/messages", b'{"from_agent":7}'),
    "the facade": ("GET /api/squad", b""),
    "the facade's problem": ("GET /api/squad?action=none", b""),
    "nothing there": ("GET /nowhere", b""),
    "a wrong method": ("DELETE /api/v1/budget", b""),
    "a probe": ("GET /readyz", b""),
}


class Seen(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A connection on which one request follows another."""

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
    """All that two answers to the same question have in common."""
    ours = {
        name: value
        for name, value in seen.headers.items()
        if name not in ("date", "connection", "content-length")
    }
    assert seen.headers["date"].endswith(" GMT")
    return seen.status, ours


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
async def test_is_the_answer_that_aiohttp_would_have_sent(
    service: Service, asked: tuple[str, bytes]
) -> None:
    async with _wire(service) as wire, _wire(service) as closing, _wire(service) as old:
        ours = await wire.ask(*asked)
        aiohttps = await closing.ask(*asked, "1.1", "Connection: close")
        assert aiohttps.headers.pop("connection") == "close"
        assert await closing.has_ended()
        assert _shape(ours) == _shape(aiohttps) == _shape(await old.ask(*asked, "1.0"))
        assert ours.headers["x-correlation-id"] == "tied-together"
        assert len(ours.headers) == len(aiohttps.headers)
        # And the connection goes on.
        assert (await wire.ask("GET /healthz")).status == 200


async def test_goes_on_with_a_client_of_http_1_0_that_asks_for_it(service: Service) -> None:
    async with _wire(service) as wire:
        for _ in range(2):
            seen = await wire.ask("GET /healthz", b"", "1.0", "Connection: keep-alive")
            assert seen.headers["connection"] == "keep-alive"


@pytest.mark.parametrize("target", ["/healthz", "/metrics", "/api/v1/tasks", "/api/v1/tasks/x", "/nowhere"])
async def test_has_no_body_where_only_its_head_was_asked_for(service: Service, target: str) -> None:
    async with _wire(service) as wire:
        assert _shape(await wire.ask(f"HEAD {target}")) == _shape(await wire.ask(f"GET {target}"))
        # And the connection goes on.
        assert (await wire.ask("GET /healthz")).body == b'{"status":"alive"}'


async def test_a_very_long_one_has_no_body_either(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "PAGE_BYTES", 10)
    async with _wire(service) as wire:
        for target in ("/api/v1/budget", "/api/v1/state", "/api/squad"):
            assert (await wire.ask(f"HEAD {target}")).status == 200
            assert (await wire.ask("GET /healthz")).body == b'{"status":"alive"}'


async def test_requests_that_come_together_are_answered_in_their_order(service: Service) -> None:
    async with _wire(service) as wire:
        for line in ("GET /healthz", "GET /nowhere", "GET /api/v1/budget"):
            wire.send(line)
        assert [(await wire.answer()).status for _ in range(3)] == [200, 404, 200]


async def test_a_client_that_takes_nothing_is_answered_no_more(service: Service) -> None:
    async with _wire(service) as wire:
        for _ in range(MANY):
            wire.send("GET /openapi.json")
        counted: list[int] = []

        async def stands_still() -> bool:
            counted.append(await _answered(service, "/openapi.json"))
            return counted[-1] > 0 and counted[-20:] == counted[-1:] * 20

        await eventually(stands_still)
        assert counted[-1] < MANY
        for _ in range(MANY):
            assert (await wire.answer()).status == 200
        assert await _answered(service, "/openapi.json") == MANY
        assert (await wire.ask("GET /healthz")).status == 200


async def _answered(service: Service, route: str) -> int:
    """How many requests of a route the service has made answers to."""
    async with service.api.session.get("/metrics") as response:
        text = await response.text()
    found = re.search(rf'squad_http_requests_total\{{route="{route}",status="200"\}} (\d+)', text)
    return int(found[1]) if found else 0


async def test_lets_pages_read_it_that_may(database: str) -> None:
    page = "https://desk.example"
    async with running_service(database, cors_origins=[page]) as service, _wire(service) as wire:
        seen = await wire.ask("GET /api/v1/budget", b"", "1.1", f"Origin: {page}")
        assert seen.headers["access-control-allow-origin"] == page
        assert seen.headers["vary"] == "Origin"
        assert all(seen.headers[name.lower()] == value for name, value in SECURITY_HEADERS.items())


async def test_a_client_that_has_gone_is_no_fault(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async with _wire(service) as wire:
        wire.send("POST /api/v1/messages", MESSAGE)
        wire.writer.transport.abort()
    async with _wire(service) as wire:
        assert (await wire.ask("GET /healthz")).status == 200
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_says_the_same_when_it_becomes_one_of_aiohttps() -> None:
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
