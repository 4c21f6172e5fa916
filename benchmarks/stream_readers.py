"""Readers of event streams: `python -m benchmarks.stream_readers URL COUNT QUERY`, until terminated.

They discard what they receive, so that reading costs as little as possible. Once all streams are open, a
line is printed.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from typing import cast
from urllib.parse import urlsplit

import uvloop

_OTHER_FILES = 100


class Reader(asyncio.Protocol):
    """One stream; open once the first bytes of the response have arrived."""

    def __init__(self, request: bytes) -> None:
        self.open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.open.done():
            if data.startswith(b"HTTP/1.1 200 "):
                self.open.set_result(None)
            else:
                self.open.set_exception(RuntimeError(f"the server answered {data[:500]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.open.done():
            self.open.set_exception(RuntimeError(f"the server closed the connection: {exc}"))


async def read(url: str, count: int, query: str) -> None:
    """Keep `count` streams open."""
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    request = f"GET /api/v1/events/stream?{query} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    for _ in range(count):
        _, reader = await loop.create_connection(lambda: Reader(request), address.hostname, address.port)
        await reader.open
    print("open", flush=True)
    await asyncio.Event().wait()


def main(url: str, count: str, query: str = "") -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = int(count) + _OTHER_FILES
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
    )
    uvloop.run(read(url, int(count), query))


if __name__ == "__main__":
    main(*sys.argv[1:])
