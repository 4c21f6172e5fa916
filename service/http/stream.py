"""The log as server-sent events (WHATWG HTML, section 9.2): it catches up, then follows live.

A reader resumes where it stopped, by the `Last-Event-ID` that browsers send by themselves. One that is too
slow for the events kept in memory is served from the database at its own pace; nothing is queued for it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from eventstore import log, sealing
from eventstore.errors import StoreBusy, StoreUnavailable
from eventstore.listener import POLL_SECONDS, wait_for_hint
from service.http.problems import wrong

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventstore.recorded import Recorded
    from service.http.context import Services

KEEPALIVE_SECONDS = 15.0
"""How often a silent stream says that it lives, so that proxies do not cut it."""

SEND_SECONDS = 30.0
"""A reader that takes nothing for this long is dropped; it may resume."""

_log = logging.getLogger(__name__)
_PAGE_EVENTS = 500
_POSITION = re.compile(r"[0-9]{1,19}")
_LARGEST_POSITION = 2**63 - 1
_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


async def stream(
    services: Services, request: web.Request, after: int | None, wanted: log.Filter
) -> web.StreamResponse:
    """Sends every event after the position that the reader names, and goes on until either side ends it."""
    position = _start(services, request, after)
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    task = asyncio.current_task()
    services.streams.add(task)
    services.metrics.open_streams.inc()
    try:
        # Ended by the service or by the reader: both are ends, not faults.
        with suppress(ConnectionError, asyncio.CancelledError):
            await _send(response, b"retry: 1000\n\n")
            await _follow(services, response, position, wanted)
    except TimeoutError:
        # Whoever takes nothing would not take the end of the stream either.
        if request.transport:
            request.transport.abort()
    except Exception:  # noqa: BLE001 - whatever it is, the stream ends and the log says why
        # The answer has begun, so no problem can be told any more. The reader comes back by itself.
        _log.exception("an event stream failed")
    finally:
        services.streams.discard(task)
        services.metrics.open_streams.dec()
    return response


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


def _start(services: Services, request: web.Request, after: int | None) -> int:
    resumed = request.headers.get("Last-Event-ID")
    if resumed is not None:
        if not _POSITION.fullmatch(resumed) or int(resumed) > _LARGEST_POSITION:
            raise wrong("Last-Event-ID", "must be the position of an event")
        return int(resumed)
    return services.writer.squad.head.position if after is None else after


async def _follow(
    services: Services, response: web.StreamResponse, position: int, wanted: log.Filter
) -> None:
    spoke = monotonic()
    while not services.stopping:
        ticket = services.tail.moved.ticket()
        events = await _next(services, position)
        if passed := list(_passing(events, wanted)):
            await _send(response, b"".join(map(frame, passed)))
            spoke = monotonic()
        elif monotonic() - spoke >= KEEPALIVE_SECONDS:
            await _send(response, b": alive\n\n")
            spoke = monotonic()
        if events:
            position = events[-1].position
        else:
            await wait_for_hint(ticket, POLL_SECONDS)


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
        if wanted.agent is None or wanted.agent == _agent(recorded):
            yield recorded


def _agent(recorded: Recorded) -> str | None:
    """Whose event it is: what the column `agent` of the log holds."""
    data = orjson.loads(recorded.data)
    for name in ("agent", "assigned_agent", "handled_by"):
        if data.get(name) is not None:
            return str(data[name])
    return None


async def _send(response: web.StreamResponse, chunk: bytes) -> None:
    async with asyncio.timeout(SEND_SECONDS):
        await response.write(chunk)
