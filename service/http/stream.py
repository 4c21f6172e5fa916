"""The log as server-sent events (WHATWG HTML, section 9.2): it catches up, then follows live.

A reader resumes where it stopped, by the `Last-Event-ID` that browsers send by themselves. One that is too
slow for the events kept in memory is served from the database at its own pace; nothing is queued for it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from eventstore import log
from eventstore.listener import POLL_SECONDS, wait_for_hint
from service.http.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventstore.recorded import Recorded
    from service.http.context import Services

KEEPALIVE_SECONDS = 15.0
"""How often a silent stream says that it lives, so that proxies do not cut it."""

SEND_SECONDS = 30.0
"""A reader that takes nothing for this long is dropped; it may resume."""

_PAGE_EVENTS = 500
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
        # Ended by the service, by the reader, or by a reader who takes nothing: all are ends, not faults.
        with suppress(ConnectionError, TimeoutError, asyncio.CancelledError):
            await _send(response, b"retry: 1000\n\n")
            await _follow(services, response, position, wanted)
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
        if not resumed.isascii() or not resumed.isdigit() or int(resumed[:20]) > _LARGEST_POSITION:
            message = "must be the position of an event"
            raise Problem(
                "validation_failed",
                f"Last-Event-ID: {message}",
                errors=[{"field": "Last-Event-ID", "message": message}],
            )
        return int(resumed)
    return services.writer.squad.head.position if after is None else after


async def _follow(
    services: Services, response: web.StreamResponse, position: int, wanted: log.Filter
) -> None:
    spoke = monotonic()
    while not services.stopping:
        ticket = services.tail.moved.ticket()
        events = await _next(services, position)
        if events:
            position = events[-1].position
            if passed := list(_passing(events, wanted)):
                await _send(response, b"".join(map(frame, passed)))
                spoke = monotonic()
            continue
        if monotonic() - spoke >= KEEPALIVE_SECONDS:
            await _send(response, b": alive\n\n")
            spoke = monotonic()
        await wait_for_hint(ticket, POLL_SECONDS)


async def _next(services: Services, position: int) -> list[Recorded]:
    events = services.tail.after(position, _PAGE_EVENTS)
    if events is not None:
        return events
    if position >= services.writer.squad.head.position:
        return []
    async with services.tables.connection() as connection:
        return await log.read_after(connection, position, _PAGE_EVENTS)


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
