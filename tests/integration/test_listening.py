"""The address to listen on: when it is taken, and when it accepts connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from service.database import StartFailed
from service.listening import bound, listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOST = "127.0.0.1"


@contextlib.asynccontextmanager
async def _serving(sockets: list[socket.socket]) -> AsyncIterator[None]:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    try:
        await listen(runner, sockets, HOST, 0)
        yield
    finally:
        await runner.cleanup()


async def test_address_is_taken_from_the_beginning_but_accepts_connections_only_when_listened_on() -> None:
    async with bound(HOST, 0) as sockets:
        port = sockets[0].getsockname()[1]
        with pytest.raises(StartFailed, match=f"cannot listen on {HOST}:{port}: it is in use"):
            await bound(HOST, port).__aenter__()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, port)
        async with _serving(sockets):
            _, writer = await asyncio.open_connection(HOST, port)
            writer.close()
            with pytest.raises(StartFailed, match="it is in use"):
                await bound(HOST, port).__aenter__()


async def test_address_can_be_bound_again_while_closed_connections_linger() -> None:
    async with bound(HOST, 0) as sockets:
        port = sockets[0].getsockname()[1]
        async with _serving(sockets):
            reader, writer = await asyncio.open_connection(HOST, port)
            # The side that closes first is the one whose connection lingers.
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            await reader.read()
            writer.close()
            await writer.wait_closed()
    with socket.socket() as strict, pytest.raises(OSError, match="in use"):
        strict.bind((HOST, port))
    async with bound(HOST, port) as sockets, _serving(sockets):
        _, writer = await asyncio.open_connection(HOST, port)
        writer.close()


async def test_each_address_of_a_name_that_the_machine_supports_has_a_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def found(*_: object, **__: object) -> list[tuple[object, ...]]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        unsupported = (socket.AF_IPX, socket.SOCK_STREAM, 6, "", ("::1", 0))
        return [(*kind, ("127.0.0.1", 0)), unsupported, *[(*kind, ("127.0.0.2", 0))] * 2]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)
    async with bound("both.test", 0) as sockets, _serving(sockets):
        assert [each.getsockname()[0] for each in sockets] == ["127.0.0.1", "127.0.0.2"]
        for each in sockets:
            _, writer = await asyncio.open_connection(*each.getsockname())
            writer.close()


async def test_address_of_another_machine_is_reported() -> None:
    with pytest.raises(StartFailed, match=r"cannot listen on 192\.0\.2\.1:3001: Cannot assign"):
        await bound("192.0.2.1", 3001).__aenter__()
