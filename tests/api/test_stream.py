"""The log as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from eventstore import lookup
from service import tail
from service.channels import FilteredEvents
from service.http import chunks, stream
from tests.api.client import Service, running_service, unreachable
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from tests.api.client import Api
    from tests.support.postgres import PostgresServer


class Sent(NamedTuple):
    """One server-sent event."""

    id: int
    event: str
    data: dict[str, Any]


class Reader:
    """Reads a stream, one event at a time."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.comments = 0

    async def next(self) -> Sent:
        """Read the next event, and count the comments before it."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(10):
            async for line in self.response.content:
                text = line.decode().removesuffix("\n")
                if text.startswith(":"):
                    self.comments += 1
                elif text:
                    name, _, value = text.partition(": ")
                    fields[name] = value
                elif "data" in fields:
                    return Sent(int(fields["id"]), fields["event"], json.loads(fields["data"]))
                else:
                    fields.clear()
        raise EOFError

    async def take(self, count: int) -> list[Sent]:
        """Read this many events."""
        return [await self.next() for _ in range(count)]


@contextlib.asynccontextmanager
async def reading(
    api: Api, headers: dict[str, str] | None = None, /, **query: object
) -> AsyncIterator[Reader]:
    """Open a stream for the duration of the block."""
    params = {name: str(value) for name, value in query.items()}
    async with api.session.get("/api/v1/events/stream", params=params, headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        yield Reader(response)


async def _send(api: Api, *texts: str, sender: str = "ada") -> list[int]:
    return [
        (await api.post("messages", from_agent=sender, message=text)).expect(201)["position"]
        for text in texts
    ]


async def test_stream_catches_up_and_then_follows_live(service: Service) -> None:
    await _send(service.api, "before")
    head = await service.head()
    async with reading(service.api, after=0) as reader:
        caught_up = await reader.take(head)
        assert [event.id for event in caught_up] == list(range(1, head + 1))
        [position] = await _send(service.api, "live")
        live = await reader.next()
    assert (live.id, live.event, live.data["data"]["message"]) == (position, "message_sent", "live")
    listed = (await service.api.get(f"events/{position}")).expect(200)
    assert live.data == listed


async def test_stream_without_position_begins_with_the_next_event(api: Api) -> None:
    await _send(api, "before")
    async with reading(api) as reader:
        [position] = await _send(api, "after")
        assert (await reader.next()).id == position


async def test_stream_begins_when_min_position_is_reached(service: Service) -> None:
    ahead = await service.head() + 1
    params = {"min_position": str(ahead)}
    opening = asyncio.create_task(
        service.api.session.get("/api/v1/events/stream", params=params).__aenter__()
    )
    await asyncio.wait((opening,), timeout=0.2)
    assert not opening.done()
    await _send(service.api, "now")
    async with await opening as response:
        assert response.status == 200


@pytest.mark.nothing_sealed
async def test_log_is_not_read_for_clients_that_disconnected_before_their_turn(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, when many clients that are far behind disconnect together, all others would wait."""
    reads, may_go_on = 0, asyncio.Event()

    async def read_slowly(*_: object) -> FilteredEvents:
        nonlocal reads
        reads += 1
        await may_go_on.wait()
        return FilteredEvents((), 0)

    async def not_in_memory(*_: object) -> None:
        return None

    monkeypatch.setattr(stream, "_in_the_log", read_slowly)
    monkeypatch.setattr(stream, "_in_memory", not_in_memory)
    async with contextlib.AsyncExitStack() as streams:
        for _ in range(10):
            await streams.enter_async_context(reading(service.api, after=0))
        await eventually(lambda: reads)
        await eventually(_has_open_streams(service.api, 10))
    # By the end of this round trip to the database, the service has noticed that they are gone.
    await service.head()
    may_go_on.set()
    await eventually(_has_open_streams(service.api, 0))
    assert reads == 1


async def test_stream_resumes_after_last_event_id(api: Api) -> None:
    first, second, _ = await _send(api, "one", "two", "three")
    async with reading(api, {"Last-Event-ID": str(first)}, after=0) as reader:
        assert (await reader.next()).id == second


async def test_stream_is_filtered_like_the_list(api: Api) -> None:
    await _send(api, "one", sender="ada")
    await _send(api, "two", sender="bob")
    await api.post("tasks", title="three", assigned_agent="bob")
    queries = ({"agent": "bob"}, {"type": "message_sent"}, {"type": "message_sent", "agent": "bob"})
    for query in queries:
        listed = (await api.get("events", **query)).expect(200)["items"]
        async with reading(api, None, after=0, **query) as reader:
            streamed = await reader.take(len(listed))
        assert [event.id for event in streamed] == [event["position"] for event in listed]


@pytest.mark.nothing_sealed
async def test_idle_stream_sends_keepalive_comments(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "KEEPALIVE_SECONDS", 0.05)
    async with reading(service.api) as reader:
        reader.comments = 0
        line = await asyncio.wait_for(_next_comment(reader), 10)
    assert line == b": alive\n"


async def test_stream_that_filters_out_every_event_sends_keepalive_comments(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "KEEPALIVE_SECONDS", 0.05)
    async with reading(service.api, type="task_created") as reader:
        alive = asyncio.create_task(_next_comment(reader))
        while not alive.done():
            await _send(service.api, "noise")
        assert await alive == b": alive\n"


async def _next_comment(reader: Reader) -> bytes:
    async for line in reader.response.content:
        if line.startswith(b":"):
            return line
    raise EOFError


async def test_client_that_lags_behind_memory_is_served_from_the_database(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "MAX_EVENTS", 5)
    async with running_service(database) as service, reading(service.api, after=0) as reader:
        positions = await _send(service.api, *(f"m{number}" for number in range(60)))
        async with running_service(database) as fresh, reading(fresh.api, after=0) as other:
            for each in (reader, other):
                events = await each.take(positions[-1])
                assert [event.id for event in events] == list(range(1, positions[-1] + 1))


async def test_large_events_are_not_read_repeatedly(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_service(database) as service:
        await _send(service.api, *("x" * 100_000 for _ in range(40)))
        head = await service.head()
    sizes = _record_read_sizes(monkeypatch)
    async with running_service(database) as fresh, reading(fresh.api, after=0) as reader:
        await reader.take(head)
    assert sum(sizes) < 2 * 40 * 100_000
    assert max(sizes) < 20 * 100_000


def _record_read_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many characters of payload each read of the log for a stream returns."""
    sizes: list[int] = []
    read = lookup.read_filtered

    async def record_and_call(
        connection: Connection, after: int, limit: int, wanted: lookup.Filter
    ) -> list[Recorded]:
        page = await read(connection, after, limit, wanted)
        sizes.append(sum(len(recorded.data) for recorded in page))
        return page

    monkeypatch.setattr(lookup, "read_filtered", record_and_call)
    return sizes


async def test_stream_survives_an_outage_of_the_database(postgres: PostgresServer, database: str) -> None:
    async with running_service(database) as service:
        await _send(service.api, "before")
    async with running_service(database) as service:
        with unreachable(postgres, database):
            opened = await service.api.session.get("/api/v1/events/stream?after=0&type=message_sent")
        async with opened as response:
            reader = Reader(response)
            assert (await reader.next()).data["data"]["message"] == "before"
            await _send(service.api, "after")
            assert (await reader.next()).data["data"]["message"] == "after"


async def test_client_that_does_not_read_is_dropped_and_can_resume(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "SEND_SECONDS", 0.5)
    waiting = _record_unsent_sizes(monkeypatch)
    texts = [str(number) * 100_000 for number in range(10)]
    for _ in range(15):
        await _send(service.api, *texts)
    head = await service.head()

    address = urlsplit(service.url)
    # Nothing is read from it; the kernel's buffers hold much less than there is to send.
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(b"GET /api/v1/events/stream?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await eventually(_has_open_streams(service.api, 1))
        await eventually(_has_open_streams(service.api, 0))
        client.settimeout(10)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := await asyncio.to_thread(client.recv, 2**20):
                received += chunk
    whole = re.findall(rb"id: (\d+)\n", received.rpartition(b"\n\n")[0])
    assert 0 < len(whole) < head
    assert max(waiting) <= 3 * chunks.SEND_BYTES

    last = int(whole[-1])
    async with reading(service.api, {"Last-Event-ID": str(last)}) as reader:
        resumed = await reader.take(head - last)
    assert [event.id for event in resumed] == list(range(last + 1, head + 1))


async def test_event_that_is_too_large_for_one_write_is_sent_in_pieces(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit is for each piece; else a slow client would be dropped at the same event each time."""
    sizes = _record_sent_sizes(monkeypatch)
    data = {"picture": "x" * 400_000}
    sent = await api.post("messages", from_agent="ada", message="look", data=data)
    position = sent.expect(201)["position"]
    async with reading(api, after=position - 1, type="message_sent") as reader:
        assert (await reader.next()).data["data"]["data"] == data
    assert max(sizes) == chunks.SEND_BYTES


def _record_sent_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each write to a client has."""
    sizes: list[int] = []
    write = web.StreamResponse.write

    async def record_and_call(self: web.StreamResponse, data: bytes) -> None:
        sizes.append(len(data))
        await write(self, data)

    monkeypatch.setattr(web.StreamResponse, "write", record_and_call)
    return sizes


def _record_unsent_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes wait in this process to be sent to a client, after each write to it."""
    waiting: list[int] = []
    write = web.StreamResponse.write

    async def record_and_call(self: web.StreamResponse, data: bytes) -> None:
        task = asyncio.ensure_future(write(self, data))
        await asyncio.sleep(0)
        request = self._req
        assert request
        if request.transport:
            waiting.append(request.transport.get_write_buffer_size())
        try:
            await task
        except asyncio.CancelledError:
            task.cancel()
            raise

    monkeypatch.setattr(web.StreamResponse, "write", record_and_call)
    return waiting


def _has_open_streams(api: Api, count: int) -> Any:
    async def matches() -> bool:
        return f"squad_open_streams {count}.0" in (await api.get("/metrics")).body

    return matches


@pytest.mark.nothing_sealed
async def test_open_streams_end_when_the_service_stops(service: Service) -> None:
    async with reading(service.api) as one, reading(service.api, after=0) as other:
        await other.next()
        service.stop.set()
        for reader in (one, other):
            async with asyncio.timeout(5):
                await reader.response.content.read()
