"""A thousand event streams at once, on one service, with one key."""

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
"""At all of them, from the moment that the command is answered. On two cores it takes a tenth of that."""


class Stream:
    """An open stream, of which every event's message is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.heard: list[tuple[str, float]] = []

    async def listen(self) -> None:
        async for line in self.reader:
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if event["type"] == "message_sent":
                    self.heard.append((event["data"]["message"], time.monotonic()))


@contextlib.contextmanager
def enough_files() -> Iterator[None]:
    """This process holds the other ends of all the streams."""
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

    async def opened() -> Stream:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(request)
        status = await reader.readline()
        assert b" 200 " in status, status
        return Stream(reader, writer)

    found = [await opened() for _ in range(count)]
    listening = [asyncio.create_task(stream.listen()) for stream in found]
    try:
        yield found
    finally:
        for task, stream in zip(listening, found, strict=True):
            task.cancel()
            stream.writer.transport.abort()
        await asyncio.gather(*listening, return_exceptions=True)


def all_heard(found: list[Stream], text: str) -> bool:
    """Whether this is the last that each of them has heard."""
    return all(stream.heard and stream.heard[-1][0] == text for stream in found)


async def test_an_event_arrives_at_a_thousand_streams_in_time(database: str) -> None:
    key = (await make_key(database)).text
    headers = {"Authorization": f"Bearer {key}"}
    with enough_files():
        async with (
            squad_up(dsn=database, program=INSTALLED) as service,
            streams(service.url, key, STREAMS) as found,
        ):

            async def say(text: str) -> float:
                """Sends a message; gives the moment of its answer."""
                body = {"from_agent": "ada", "message": text}
                async with (
                    aiohttp.ClientSession(headers=headers) as session,
                    session.post(f"{service.url}/api/v1/messages", json=body) as response,
                ):
                    assert response.status == 201
                    return time.monotonic()

            for text in ("first", "second"):
                answered = await say(text)
                await eventually(functools.partial(all_heard, found, text), within_seconds=60)
                last = max(stream.heard[-1][1] for stream in found)
                assert last - answered < ARRIVES_WITHIN_SECONDS
            assert all([text for text, _ in stream.heard] == ["first", "second"] for stream in found)
