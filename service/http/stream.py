"""The log as server-sent events (WHATWG HTML, section 9.2): it catches up, then follows live.

A reader resumes where it stopped, by the `Last-Event-ID` that browsers send by themselves. One that is too
slow for the events kept in memory is served from the database at its own pace; nothing is queued for it.

How much of the time all of them have is in `service.http.open_streams`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from eventstore import lookup, sealing
from eventstore.errors import StoreBusy, StoreUnavailable
from eventstore.gauge import Gauge
from eventstore.listener import POLL_SECONDS, wait_for_hint
from service.channels import Found
from service.http.pieces import SEND_BYTES, begun, send
from service.http.problems import wrong
from service.http.scope import caller

if TYPE_CHECKING:
    from aiohttp import web

    from service.channels import Channel
    from service.http.context import Services

KEEPALIVE_SECONDS = 15.0
"""How often a silent stream says that it lives, so that proxies do not cut it."""

_log = logging.getLogger(__name__)
_PAGE_EVENTS = 200
_FIRST_EVENTS = 10
"""How many are read of the log before it is known how large they are."""
_POSITION = re.compile(r"[0-9]{1,19}")
_LARGEST_POSITION = 2**63 - 1
_HEADERS = {
    "Content-Type": "text/event-stream",
    "X-Accel-Buffering": "no",
}


async def stream(
    services: Services, request: web.Request, after: int | None, wanted: lookup.Filter
) -> web.StreamResponse:
    """Sends every event after the position that the reader names, and goes on until either side ends it."""
    log_number = services.writer.replacements
    position = await _start(services, request, after)
    response = begun(services, request, _HEADERS)
    with services.streams.one_more(caller()), services.metrics.open_streams.track_inprogress():
        try:
            # Ended by the service or by the reader: both are ends, not faults.
            with suppress(ConnectionError, asyncio.CancelledError):
                await response.prepare(request)
                await send(response, b"retry: 1000\n\n")
                await _follow(services, request, response, position, wanted, log_number)
        except TimeoutError:
            # Whoever takes nothing would not take the end of the stream either.
            if request.transport:
                request.transport.abort()
        except Exception:  # noqa: BLE001 - whatever it is, the stream ends and the log says why
            # The answer has begun, so no problem can be told any more. The reader comes back by itself.
            _log.exception("an event stream failed")
    return response


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
    wanted: lookup.Filter,
    log_number: int,
) -> None:
    spoke = monotonic()
    who = caller()
    # What is read and cannot be sent at once is read again: so no more than that, however large events are.
    gauge = Gauge(_PAGE_EVENTS, first=_FIRST_EVENTS, fewest=1, characters=SEND_BYTES)
    with services.channels.following(wanted) as channel:
        # A connection that is gone has no transport; nobody tells a handler that only waits.
        while not _is_gone(request) and not services.stopping and services.door.still_admits(who):
            if services.writer.replacements != log_number:
                head = services.writer.squad.head.position
                await send(response, b'event: log_replaced\ndata: {"position":%d}\n\n' % head)
                return
            ticket = channel.moved.ticket()
            found, chunk = await _next(services, request, channel, position, wanted, gauge)
            if chunk:
                await send(response, chunk)
                spoke = monotonic()
            if monotonic() - spoke >= KEEPALIVE_SECONDS:
                await send(response, b": alive\n\n")
                spoke = monotonic()
            position = found
            if not chunk:
                await wait_for_hint(ticket, POLL_SECONDS)


async def _next(
    services: Services,
    request: web.Request,
    channel: Channel,
    position: int,
    wanted: lookup.Filter,
    gauge: Gauge,
) -> tuple[int, bytes]:
    """What comes next for a stream, and up to where; nothing for the moment where it cannot be had."""
    streams = services.streams
    try:
        async with streams.turn(streams.from_memory):
            if _is_gone(request):
                return position, b""
            found = await _in_memory(services, channel, position)
            if found is not None:
                return _chunk(services, found)
        async with streams.turn(streams.from_log):
            if _is_gone(request):
                return position, b""
            return _chunk(services, await _in_the_log(services, position, wanted, gauge))
    except (StoreUnavailable, StoreBusy):
        return position, b""


def _is_gone(request: web.Request) -> bool:
    """Whether the reader has gone, such as while it waited for its turn."""
    return request.transport is None


async def _in_memory(services: Services, channel: Channel, position: int) -> Found | None:
    head = services.writer.squad.head.position
    if position >= head:
        return Found((), position)
    # Of what was there before this process nothing is in memory.
    return await channel.after(position, _PAGE_EVENTS) if services.tail.last == head else None


async def _in_the_log(services: Services, position: int, wanted: lookup.Filter, gauge: Gauge) -> Found:
    forgotten, head, most = services.tail.forgotten, services.writer.squad.head.position, gauge.events
    async with services.tables.connection() as connection:
        page = await lookup.read_filtered(connection, position, most, wanted)
        shown = await sealing.reveal(connection, page)
    gauge.learn(page)
    if services.tail.forgotten != forgotten:
        # What was readable when it was read may not be any more.
        return Found((), position)
    last = page[-1].position if page else position
    # The log may be further than this process knows.
    return Found(shown, last if len(page) == most else max(head, last))


def _chunk(services: Services, found: Found) -> tuple[int, bytes]:
    """As much of it as may be sent at once; a single event may be larger."""
    frames: list[bytes] = []
    size = 0
    for recorded in found.events:
        frames.append(services.streams.frame(recorded))
        size += len(frames[-1])
        if size >= SEND_BYTES:
            return recorded.position, b"".join(frames)
    return found.upto, b"".join(frames)
