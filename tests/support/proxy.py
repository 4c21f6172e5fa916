"""A proxy for the database whose connections can be cut at a chosen moment.

A request is identified by a needle: bytes that the client sends, such as the text of a message, which is
sent verbatim in a bound parameter. Each rule applies once.

It can also simulate a network partition for the duration of a block: connections stay open, new ones are
accepted, and nothing arrives. What was sent meanwhile arrives afterwards, as with TCP retransmissions,
whether its sender still waits or not.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_CHUNK_BYTES = 65_536
_READY_FOR_QUERY = ord("Z")
_ANSWERED = b"QSHpX"
"""Messages that the server answers without waiting for more: query, sync, flush, password, terminate."""


@dataclass(eq=False)
class Cut:
    """A rule: the request at which the connection breaks, and whether before or after it."""

    needle: bytes
    where: Literal["before the request", "after the answer", "while the request is held"]
    happened: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def release(self) -> None:
        """Deliver a held request to the server after all; return when the server has processed it."""
        self.released.set()
        await self.arrived.wait()


class Proxy:
    """Connects clients of `dsn` to the server."""

    def __init__(self, server_dsn: str) -> None:
        self.dsn = ""
        self._server_dsn = server_dsn
        self._rules: list[Cut] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._is_connected = asyncio.Event()
        self._is_connected.set()

    @contextlib.contextmanager
    def partitioned(self) -> Iterator[None]:
        """Deliver nothing in either direction for the duration of the block."""
        self._is_connected.clear()
        try:
            yield
        finally:
            self._is_connected.set()

    def cut_before(self, needle: bytes) -> Cut:
        """Cut at the next request with the needle, before it reaches the server."""
        return self._rule(Cut(needle, "before the request"))

    def cut_after_answer(self, needle: bytes) -> Cut:
        """Cut after the server has processed the next such request, so that its answer never arrives."""
        return self._rule(Cut(needle, "after the answer"))

    def hold(self, needle: bytes) -> Cut:
        """Cut the client off while its request is in flight; the request arrives after `release`."""
        return self._rule(Cut(needle, "while the request is held"))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        """Accept connections for the duration of the block."""
        listening = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        # Without TLS and GSSAPI encryption, so that the first bytes are the startup message.
        self.dsn = make_conninfo(
            self._server_dsn, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable"
        )
        async with listening:
            try:
                yield self
            finally:
                for connection in self._connections:
                    connection.cancel()
                await asyncio.gather(*self._connections, return_exceptions=True)

    def _rule(self, cut: Cut) -> Cut:
        self._rules.append(cut)
        return cut

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._connect(reader, writer)
        except asyncio.CancelledError:
            pass  # the proxy is closing; asyncio's server task for the connection need not know
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await self._server()
        answers = asyncio.ensure_future(self._pass_on(from_server, writer))
        try:
            cut, request = await self._pass_requests(reader, to_server)
            if cut is None:
                return
            if cut.where == "before the request":
                writer.transport.abort()
                cut.happened.set()
                return
            # Nothing that arrives from here on is forwarded.
            answers.cancel()
            await asyncio.wait([answers])
            if cut.where == "while the request is held":
                writer.transport.abort()
                cut.happened.set()
                await cut.released.wait()
            to_server.write(request)
            await _skip_answer(from_server)
            writer.transport.abort()
            cut.happened.set()
            cut.arrived.set()
        finally:
            answers.cancel()
            to_server.transport.abort()

    async def _pass_requests(
        self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter
    ) -> tuple[Cut | None, bytes]:
        """Forward requests until a rule applies; return the rule and the request."""
        to_server.write(await _startup(reader))
        while request := await _request(reader):
            await self._is_connected.wait()
            for cut in self._rules:
                if cut.needle in request:
                    self._rules.remove(cut)
                    return cut, request
            to_server.write(request)
            await to_server.drain()
        await self._is_connected.wait()
        return None, b""

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward the server's messages; when the server disconnects, disconnect the client."""
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK_BYTES):
                await self._is_connected.wait()
                writer.write(chunk)
                await writer.drain()
            await self._is_connected.wait()
        writer.transport.abort()

    async def _server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        where = conninfo_to_dict(self._server_dsn)
        host, port = str(where.get("host", "localhost")), int(where.get("port") or 5432)
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)


async def _startup(reader: asyncio.StreamReader) -> bytes:
    """The startup message of a connection, the only one without a type byte."""
    length = await reader.readexactly(4)
    return length + await reader.readexactly(int.from_bytes(length, "big") - 4)


async def _request(reader: asyncio.StreamReader) -> bytes:
    """The client's next messages, up to one that the server answers; empty if the client has disconnected.

    Only complete messages count, however many packets they came in: a truncated one is no request.
    """
    request = b""
    while True:
        try:
            header = await reader.readexactly(5)
            message = await reader.readexactly(int.from_bytes(header[1:], "big") - 4)
        except asyncio.IncompleteReadError:
            return b""
        request += header + message
        if header[0] in _ANSWERED:
            return request


async def _skip_answer(reader: asyncio.StreamReader) -> None:
    """Discard the server's messages up to ReadyForQuery."""
    kind = 0
    while kind != _READY_FOR_QUERY:
        header = await reader.readexactly(5)
        kind = header[0]
        await reader.readexactly(int.from_bytes(header[1:], "big") - 4)
