"""A thousand concurrent event streams on one service, with one key."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import resource
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

from tests.support.keys import make_key
from tests.support.process import INSTALLED, squad_up
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

STREAMS = 1_000
ARRIVES_WITHIN_SECONDS = 5.0
"""At all streams, from the answer to the command. On two cores it takes a tenth of that."""


class Stream:
    """An open stream that records every message and when it arrived."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received: list[tuple[str, float]] = []

    async def listen(self) -> None:
        async for line in self.reader:
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if event["type"] == "message_sent":
                    self.received.append((event["data"]["message"], time.monotonic()))


@contextlib.contextmanager
def enough_files() -> Iterator[None]:
    """Allow this process enough open files for its ends of all streams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * STREAMS)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.asynccontextmanager
async def streams(url: str, key: str, count: int) -> AsyncIterator[list[Stream]]:
    address = urlsplit(url)
    request = (
        "GET /api/v1/events/stream HTTP/1.1\r\nHost: squad\r\n"
        f"Authorization: Bearer {key}\r\nAccept: text/event-stream\r\n\r\n"
    ).encode()

    async def open_stream() -> Stream:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(request)
        status = await reader.readline()
        assert b" 200 " in status, status
        return Stream(reader, writer)

    opened = [await open_stream() for _ in range(count)]
    listening = [asyncio.create_task(stream.listen()) for stream in opened]
    try:
        yield opened
    finally:
        for task, stream in zip(listening, opened, strict=True):
            task.cancel()
            stream.writer.transport.abort()
        await asyncio.gather(*listening, return_exceptions=True)


def all_received(streams: list[Stream], text: str) -> bool:
    """Whether this message is the last one that each stream has received."""
    return all(stream.received and stream.received[-1][0] == text for stream in streams)


async def test_event_arrives_at_a_thousand_streams_in_time(database: str) -> None:
    key = (await make_key(database)).text
    headers = {"Authorization": f"Bearer {key}"}
    with enough_files():
        async with (
            squad_up(dsn=database, program=INSTALLED) as service,
            streams(service.url, key, STREAMS) as opened,
        ):

            async def send(text: str) -> float:
                """Send a message; return the time of its answer."""
                body = {"from_agent": "ada", "message": text}
                async with (
                    aiohttp.ClientSession(headers=headers) as session,
                    session.post(f"{service.url}/api/v1/messages", json=body) as response,
                ):
                    assert response.status == 201
                    return time.monotonic()

            for text in ("first", "second"):
                answered = await send(text)
                await eventually(functools.partial(all_received, opened, text), within_seconds=60)
                last = max(stream.received[-1][1] for stream in opened)
                assert last - answered < ARRIVES_WITHIN_SECONDS
            assert all([text for text, _ in stream.received] == ["first", "second"] for stream in opened)
