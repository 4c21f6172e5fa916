"""The load generator: `python -m benchmarks.load URL[,URL ...] METHOD PATH BODY CONNECTIONS SECONDS`.

Keep-alive connections with one request at a time on each, directly on the event loop: a full HTTP client
would need more time per request than the service. Several servers share the connections evenly. The request
is built once, except for the `NUMBER` placeholders, which get a new value each time. Of a response only the
end and the status (2xx or not) are checked. Every HTTP benchmark reports the maximum rate of this
generator, measured on a server that returns a fixed response (`benchmarks.canned_server`).
The environment variable `LOAD_KEY` may hold an API key.

It prints one JSON object: requests, requests a second, latency percentiles in milliseconds, and `load_cpu`,
its own use of one core; near 1, it would be measuring itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from itertools import count
from time import perf_counter, process_time, time_ns
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.harness import percentile

if TYPE_CHECKING:
    from benchmarks.harness import Sample

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
_ANSWERED_WITHIN_SECONDS = 30.0

NUMBER = "@@@@@@@@@@@@"
"""Placeholder for twelve hexadecimal digits that are unique to a request, also across runs."""

# The start advances every 16 microseconds, which is faster than any load generator sends requests.
_numbers = count(time_ns() >> 14)


class Connection(asyncio.Protocol):
    """One client: sends the request, waits for the response, and repeats."""

    def __init__(self, request: bytes, deadline: float) -> None:
        self.latencies: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parts = request.split(NUMBER.encode())
        self._deadline = deadline
        self._received = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(_HEAD_END)
        if not found or len(body) < _content_length(head):
            return
        now = perf_counter()
        if not head.startswith(b"HTTP/1.1 2"):
            self._fail(f"the server answered {self._received[:500]!r}")
            return
        self.latencies.append(now - self._sent_at)
        self._received = b""
        if now < self._deadline:
            self._send()
        else:
            self._transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the server closed the connection: {exc}")

    def _send(self) -> None:
        self._sent_at = perf_counter()
        request = self._parts[0]
        if len(self._parts) > 1:
            request = (b"%012x" % next(_numbers)).join(self._parts)
        self._transport.write(request)

    def _fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(reason))
            self._transport.close()


async def generate(
    urls: list[str], method: str, path: str, body: bytes, connections: int, seconds: float
) -> Sample:
    """Keep the connections busy for the given number of seconds."""
    started, cpu = perf_counter(), process_time()
    opened = await asyncio.gather(
        *(
            _open(urls[index % len(urls)], method, path, body, started + seconds)
            for index in range(connections)
        )
    )
    async with asyncio.timeout(seconds + _ANSWERED_WITHIN_SECONDS):
        await asyncio.gather(*(connection.done for _, connection in opened))
    elapsed, used = perf_counter() - started, process_time() - cpu
    latencies = sorted(latency for _, connection in opened for latency in connection.latencies)
    return {
        "requests": len(latencies),
        "per_second": len(latencies) / elapsed,
        "p50_ms": percentile(latencies, 50) * 1000,
        "p99_ms": percentile(latencies, 99) * 1000,
        "load_cpu": used / elapsed,
    }


async def _open(
    url: str, method: str, path: str, body: bytes, deadline: float
) -> tuple[asyncio.Transport, Connection]:
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    head = f"{method} {path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
    if key := os.environ.get("LOAD_KEY"):
        head += f"Authorization: Bearer {key}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    request = f"{head}\r\n".encode() + body
    return await asyncio.get_running_loop().create_connection(
        lambda: Connection(request, deadline), address.hostname, address.port
    )


def _content_length(head: bytes) -> int:
    head = head.lower()
    at = head.index(_LENGTH) + len(_LENGTH)
    return int(head[at:].split(b"\r\n", 1)[0])


def main(urls: str, method: str, path: str, body: str, connections: str, seconds: str) -> None:
    work = generate(urls.split(","), method, path, body.encode(), int(connections), float(seconds))
    print(json.dumps(uvloop.run(work)))


if __name__ == "__main__":
    main(*sys.argv[1:])
