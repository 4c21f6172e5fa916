"""The log as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

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
    import pytest

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
        """The next event; comments are counted."""
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
        """So many events."""
        return [await self.next() for _ in range(count)]


@contextlib.asynccontextmanager
async def reading(
    api: Api, headers: dict[str, str] | None = None, /, **query: object
) -> AsyncIterator[Reader]:
    """An open stream."""
    params = {name: str(value) for name, value in query.items()}
    async with api.session.get("/api/v1/events/stream", params=params, headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        yield Reader(response)


async def _say(api: Api, *texts: str, sender: str = "ada") -> list[int]:
    return [
        (await api.post("messages", from_agent=sender, message=text)).expect(201)["position"]
        for text in texts
    ]


async def test_a_stream_catches_up_and_then_follows_live(service: Service) -> None:
    await _say(service.api, "before")
    head = await service.head()
    async with reading(service.api, after=0) as reader:
        caught_up = await reader.take(head)
        assert [event.id for event in caught_up] == list(range(1, head + 1))
        [position] = await _say(service.api, "live")
        live = await reader.next()
    assert (live.id, live.event, live.data["data"]["message"]) == (position, "message_sent", "live")
    listed = (await service.api.get(f"events/{position}")).expect(200)
    assert live.data == listed


async def test_without_a_position_a_stream_begins_with_what_comes_next(api: Api) -> None:
    await _say(api, "before")
    async with reading(api) as reader:
        [position] = await _say(api, "after")
        assert (await reader.next()).id == position


async def test_a_stream_begins_when_the_position_is_there_that_its_reader_names(service: Service) -> None:
    ahead = await service.head() + 1
    params = {"min_position": str(ahead)}
    opening = asyncio.create_task(
        service.api.session.get("/api/v1/events/stream", params=params).__aenter__()
    )
    await asyncio.wait((opening,), timeout=0.2)
    assert not opening.done()
    await _say(service.api, "now")
    async with await opening as response:
        assert response.status == 200


async def test_the_log_is_read_for_no_reader_who_went_away_before_its_turn(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where many are far behind and go away together, all others would wait for them."""
    reads, may_go_on = 0, asyncio.Event()

    async def slowly(*_: object) -> FilteredEvents:
        nonlocal reads
        reads += 1
        await may_go_on.wait()
        return FilteredEvents((), 0)

    async def not_there(*_: object) -> None:
        return None

    monkeypatch.setattr(stream, "_in_the_log", slowly)
    monkeypatch.setattr(stream, "_in_memory", not_there)
    async with contextlib.AsyncExitStack() as open_:
        for _ in range(10):
            await open_.enter_async_context(reading(service.api, after=0))
        await eventually(lambda: reads)
        await eventually(_open_streams(service.api, 10))
    # What the service is asked afterwards, it answers after it saw that they are gone.
    await service.head()
    may_go_on.set()
    await eventually(_open_streams(service.api, 0))
    assert reads == 1


async def test_a_reader_resumes_after_the_last_event_it_names(api: Api) -> None:
    first, second, _ = await _say(api, "one", "two", "three")
    async with reading(api, {"Last-Event-ID": str(first)}, after=0) as reader:
        assert (await reader.next()).id == second


async def test_a_stream_is_filtered_like_the_list(api: Api) -> None:
    await _say(api, "one", sender="ada")
    await _say(api, "two", sender="bob")
    await api.post("tasks", title="three", assigned_agent="bob")
    queries = ({"agent": "bob"}, {"type": "message_sent"}, {"type": "message_sent", "agent": "bob"})
    for query in queries:
        listed = (await api.get("events", **query)).expect(200)["items"]
        async with reading(api, None, after=0, **query) as reader:
            streamed = await reader.take(len(listed))
        assert [event.id for event in streamed] == [event["position"] for event in listed]


async def test_a_silent_stream_says_that_it_lives(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "KEEPALIVE_SECONDS", 0.05)
    async with reading(service.api) as reader:
        reader.comments = 0
        line = await asyncio.wait_for(_next_comment(reader), 10)
    assert line == b": alive\n"


async def test_a_stream_in_which_all_is_filtered_out_says_so_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "KEEPALIVE_SECONDS", 0.05)
    async with reading(service.api, type="task_created") as reader:
        alive = asyncio.create_task(_next_comment(reader))
        while not alive.done():
            await _say(service.api, "noise")
        assert await alive == b": alive\n"


async def _next_comment(reader: Reader) -> bytes:
    async for line in reader.response.content:
        if line.startswith(b":"):
            return line
    raise EOFError


async def test_a_slow_reader_is_served_from_the_database(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "MAX_EVENTS", 5)
    async with running_service(database) as service, reading(service.api, after=0) as reader:
        positions = await _say(service.api, *(f"m{number}" for number in range(60)))
        async with running_service(database) as fresh, reading(fresh.api, after=0) as other:
            for each in (reader, other):
                events = await each.take(positions[-1])
                assert [event.id for event in events] == list(range(1, positions[-1] + 1))


async def test_large_events_are_not_read_many_times_over(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_service(database) as service:
        await _say(service.api, *("x" * 100_000 for _ in range(40)))
        head = await service.head()
    sizes = _watching_what_is_read(monkeypatch)
    async with running_service(database) as fresh, reading(fresh.api, after=0) as reader:
        await reader.take(head)
    assert sum(sizes) < 2 * 40 * 100_000
    assert max(sizes) < 20 * 100_000


def _watching_what_is_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many characters of payload a stream reads of the log at once, each time."""
    sizes: list[int] = []
    read = lookup.read_filtered

    async def watched(
        connection: Connection, after: int, limit: int, wanted: lookup.Filter
    ) -> list[Recorded]:
        page = await read(connection, after, limit, wanted)
        sizes.append(sum(len(recorded.data) for recorded in page))
        return page

    monkeypatch.setattr(lookup, "read_filtered", watched)
    return sizes


async def test_a_stream_outlives_an_outage_of_the_database(postgres: PostgresServer, database: str) -> None:
    async with running_service(database) as service:
        await _say(service.api, "before")
    async with running_service(database) as service:
        with unreachable(postgres, database):
            opened = await service.api.session.get("/api/v1/events/stream?after=0&type=message_sent")
        async with opened as response:
            reader = Reader(response)
            assert (await reader.next()).data["data"]["message"] == "before"
            await _say(service.api, "after")
            assert (await reader.next()).data["data"]["message"] == "after"


async def test_a_reader_who_takes_nothing_is_dropped_and_resumes(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "SEND_SECONDS", 0.5)
    waiting = _watching_what_waits(monkeypatch)
    texts = [str(number) * 100_000 for number in range(10)]
    for _ in range(15):
        await _say(service.api, *texts)
    head = await service.head()

    address = urlsplit(service.url)
    # Nothing is read from it; what the system keeps for it on the way is much less than there is.
    with socket.create_connection((address.hostname, address.port)) as deaf:
        deaf.sendall(b"GET /api/v1/events/stream?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await eventually(_open_streams(service.api, 1))
        await eventually(_open_streams(service.api, 0))
        deaf.settimeout(10)
        taken = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := await asyncio.to_thread(deaf.recv, 2**20):
                taken += chunk
    whole = re.findall(rb"id: (\d+)\n", taken.rpartition(b"\n\n")[0])
    assert 0 < len(whole) < head
    assert max(waiting) <= 3 * chunks.SEND_BYTES

    last = int(whole[-1])
    async with reading(service.api, {"Last-Event-ID": str(last)}) as reader:
        resumed = await reader.take(head - last)
    assert [event.id for event in resumed] == list(range(last + 1, head + 1))


async def test_an_event_that_is_larger_than_what_is_sent_at_once_leaves_bit_by_bit(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each bit has the whole time; whoever is slow would else be dropped at the same event each time."""
    sizes = _watching_what_is_sent(monkeypatch)
    data = {"picture": "x" * 400_000}
    sent = await api.post("messages", from_agent="ada", message="look", data=data)
    position = sent.expect(201)["position"]
    async with reading(api, after=position - 1, type="message_sent") as reader:
        assert (await reader.next()).data["data"]["data"] == data
    assert max(sizes) == chunks.SEND_BYTES


def _watching_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes are sent to a reader at once, each time."""
    sizes: list[int] = []
    write = web.StreamResponse.write

    async def watched(self: web.StreamResponse, data: bytes) -> None:
        sizes.append(len(data))
        await write(self, data)

    monkeypatch.setattr(web.StreamResponse, "write", watched)
    return sizes


def _watching_what_waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes wait in this process for a reader to take them, each time that it is sent some."""
    waiting: list[int] = []
    write = web.StreamResponse.write

    async def watched(self: web.StreamResponse, data: bytes) -> None:
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

    monkeypatch.setattr(web.StreamResponse, "write", watched)
    return waiting


def _open_streams(api: Api, count: int) -> Any:
    async def as_many() -> bool:
        return f"squad_open_streams {count}.0" in (await api.get("/metrics")).body

    return as_many


async def test_open_streams_end_when_the_service_stops(service: Service) -> None:
    async with reading(service.api) as one, reading(service.api, after=0) as other:
        await other.next()
        service.stop.set()
        for reader in (one, other):
            async with asyncio.timeout(5):
                await reader.response.content.read()
