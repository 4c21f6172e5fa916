"""The log as server-sent events (WHATWG HTML, section 9.2): it catches up, then follows live.

A reader resumes where it stopped, by the `Last-Event-ID` that browsers send by themselves. One that is too
slow for the events kept in memory is served from the database at its own pace; nothing is queued for it.

The more streams are open, the longer each pauses after it sent something, so that a thousand of them, which
are written to one by one, do not take up the time of those who send commands.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections import Counter
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from eventstore import log, sealing
from eventstore.errors import StoreBusy, StoreUnavailable
from eventstore.listener import POLL_SECONDS, wait_for_hint
from service.http.auth import caller
from service.http.context import SECURITY_HEADERS
from service.http.problems import Problem, wrong

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from eventstore.recorded import Recorded
    from service.callers import Caller
    from service.http.context import Services

KEEPALIVE_SECONDS = 15.0
"""How often a silent stream says that it lives, so that proxies do not cut it."""

SEND_SECONDS = 30.0
"""A reader that does not take what was sent to it within this time is dropped; it may resume."""

SEND_BYTES = 64 * 1024
"""How much is sent to a reader at once: it must take that in that time, and no more waits for it here."""

PAUSE_SECONDS = 0.0005
"""How long a stream pauses after it sent something, for each that is open: half a second for 1,000."""

_KEPT_FRAMES = 2_000
_KEPT_FRAME_BYTES = 16 * 1024
_log = logging.getLogger(__name__)
_PAGE_EVENTS = 200
_POSITION = re.compile(r"[0-9]{1,19}")
_LARGEST_POSITION = 2**63 - 1
_HEADERS = {
    "Content-Type": "text/event-stream",
    "X-Accel-Buffering": "no",
}


async def stream(
    services: Services, request: web.Request, after: int | None, wanted: log.Filter
) -> web.StreamResponse:
    """Sends every event after the position that the reader names, and goes on until either side ends it."""
    position = await _start(services, request, after)
    response = web.StreamResponse(headers={**SECURITY_HEADERS, **_HEADERS})
    if services.cors:
        services.cors.allow(request, response.headers)
    with services.streams.one_more(caller()), services.metrics.open_streams.track_inprogress():
        try:
            # Ended by the service or by the reader: both are ends, not faults.
            with suppress(ConnectionError, asyncio.CancelledError):
                await response.prepare(request)
                await _send(response, b"retry: 1000\n\n")
                await _follow(services, request, response, position, wanted)
        except TimeoutError:
            # Whoever takes nothing would not take the end of the stream either.
            if request.transport:
                request.transport.abort()
        except Exception:  # noqa: BLE001 - whatever it is, the stream ends and the log says why
            # The answer has begun, so no problem can be told any more. The reader comes back by itself.
            _log.exception("an event stream failed")
    return response


class OpenStreams:
    """The event streams that are open, as many as may be."""

    def __init__(self, most: int, most_per_key: int) -> None:
        self._most = most
        self._most_per_key = most_per_key
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_key = Counter[str]()
        self._frames: dict[int, tuple[Recorded, bytes]] = {}

    @contextmanager
    def one_more(self, who: Caller) -> Iterator[None]:
        """Counts this task's stream for as long as it is open.

        Raises:
            Problem: there are as many as may be.
        """
        if len(self._tasks) >= self._most:
            raise Problem("streams_full", f"{self._most} are open in all", retry_after_seconds=5)
        if who.key_id and self._by_key[who.key_id] >= self._most_per_key:
            raise Problem("too_many_streams", f"{self._most_per_key} are open", retry_after_seconds=5)
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        if who.key_id:
            self._by_key[who.key_id] += 1
        try:
            yield
        finally:
            self._tasks.discard(task)
            if who.key_id:
                self._by_key[who.key_id] -= 1
                if not self._by_key[who.key_id]:
                    del self._by_key[who.key_id]

    async def pause(self) -> None:
        """Lets others go on; not for all streams at the same time."""
        seconds = len(self._tasks) * PAUSE_SECONDS
        await asyncio.sleep(seconds * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret

    def frame(self, recorded: Recorded) -> bytes:
        """An event as it goes over the wire: made once for all streams, as long as it is the same event."""
        kept = self._frames.get(recorded.position)
        if kept is not None and kept[0] is recorded:
            return kept[1]
        made = frame(recorded)
        if len(made) <= _KEPT_FRAME_BYTES:
            if len(self._frames) >= _KEPT_FRAMES:
                self._frames.clear()
            self._frames[recorded.position] = (recorded, made)
        return made

    def end(self) -> None:
        """Ends all of them: the service stops."""
        for task in list(self._tasks):
            task.cancel()


def frame(recorded: Recorded) -> bytes:
    """An event as it goes over the wire."""
    data = orjson.dumps(
        {
            "position": recorded.position,
            "id": recorded.id,
            "stream": recorded.stream,
            "version": recorded.version,
            "type": recorded.type,
            "schema_version": recorded.schema_version,
            "data": orjson.Fragment(recorded.data),
            "actor": recorded.actor,
            "caused_by": recorded.caused_by,
            "correlation_id": recorded.correlation_id,
            "recorded_at": recorded.recorded_at,
            "hash": recorded.hash.hex(),
        },
        option=orjson.OPT_UTC_Z,
    )
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (recorded.position, recorded.type.encode(), data)


async def _start(services: Services, request: web.Request, after: int | None) -> int:
    resumed = request.headers.get("Last-Event-ID")
    if resumed is not None:
        if not _POSITION.fullmatch(resumed) or int(resumed) > _LARGEST_POSITION:
            raise wrong("Last-Event-ID", "must be the position of an event")
        after = int(resumed)
    if after is None:
        return services.writer.squad.head.position
    # Whoever has seen more than there is would wait for events that are not those that follow.
    await services.tables.state_covering(after)
    return after


async def _follow(
    services: Services,
    request: web.Request,
    response: web.StreamResponse,
    position: int,
    wanted: log.Filter,
) -> None:
    spoke = monotonic()
    who = caller()
    log_number = services.writer.replacements
    # A connection that is gone has no transport; nobody tells a handler that only waits.
    while request.transport and not services.stopping and services.door.still_admits(who):
        if services.writer.replacements != log_number:
            head = services.writer.squad.head.position
            await _send(response, b'event: log_replaced\ndata: {"position":%d}\n\n' % head)
            return
        ticket = services.tail.moved.ticket()
        events = await _next(services, position)
        for chunk in _chunks(map(services.streams.frame, _passing(events, wanted))):
            await _send(response, chunk)
            spoke = monotonic()
        if monotonic() - spoke >= KEEPALIVE_SECONDS:
            await _send(response, b": alive\n\n")
            spoke = monotonic()
        if events:
            position = events[-1].position
            if len(events) < _PAGE_EVENTS:
                await services.streams.pause()
        else:
            await wait_for_hint(ticket, POLL_SECONDS)


def _chunks(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Frames together, as many as may be sent at once; a single one may be larger."""
    chunk: list[bytes] = []
    size = 0
    for one in frames:
        chunk.append(one)
        size += len(one)
        if size >= SEND_BYTES:
            yield b"".join(chunk)
            chunk.clear()
            size = 0
    if chunk:
        yield b"".join(chunk)


async def _next(services: Services, position: int) -> list[Recorded]:
    """The next events; none for the moment where the database cannot be reached."""
    forgotten = services.tail.forgotten
    try:
        events = await services.tail.after(position, _PAGE_EVENTS)
        if events is not None:
            return events
        if position >= services.writer.squad.head.position:
            return []
        async with services.tables.connection() as connection:
            page = await log.read_after(connection, position, _PAGE_EVENTS)
            shown = await sealing.reveal(connection, page)
    except (StoreUnavailable, StoreBusy):
        return []
    # What was readable when it was read may not be any more.
    return shown if services.tail.forgotten == forgotten else []


def _passing(events: Iterable[Recorded], wanted: log.Filter) -> Iterable[Recorded]:
    for recorded in events:
        if wanted.type not in (None, recorded.type) or wanted.stream not in (None, recorded.stream):
            continue
        if wanted.agent is None or wanted.agent == agent_of(recorded):
            yield recorded


def agent_of(recorded: Recorded) -> str | None:
    """Whose event it is: what the column `agent` of the log holds."""
    data = orjson.loads(recorded.data)
    for name in ("agent", "assigned_agent", "handled_by"):
        if data.get(name) is not None:
            return str(data[name])
    return None


async def _send(response: web.StreamResponse, chunk: bytes) -> None:
    async with asyncio.timeout(SEND_SECONDS):
        await response.write(chunk)
