"""The log as server-sent events (WHATWG HTML, section 9.2): it catches up, then follows live.

A reader resumes where it stopped, by the `Last-Event-ID` that browsers send by themselves. One that is too
slow for the events kept in memory is served from the database at its own pace; nothing is queued for it.

`service.http.open_streams` limits the time that all streams take.
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
from eventstore.listener import POLL_SECONDS, wait_for_hint
from eventstore.page_size import PageSizer
from service.channels import FilteredEvents
from service.http.chunks import SEND_BYTES, send, start_response
from service.http.problems import invalid_field
from service.http.scope import caller

if TYPE_CHECKING:
    from aiohttp import web

    from service.channels import Channel
    from service.http.context import Services

KEEPALIVE_SECONDS = 15.0
"""How often an idle stream sends a comment, so that proxies do not close it."""

_log = logging.getLogger(__name__)
_PAGE_EVENTS = 200
_INITIAL_EVENTS = 10
"""How many events are read from the log before their size is known."""
_POSITION = re.compile(r"[0-9]{1,19}")
_MAX_POSITION = 2**63 - 1
_HEADERS = {
    "Content-Type": "text/event-stream",
    "X-Accel-Buffering": "no",
}


async def stream(
    services: Services, request: web.Request, after: int | None, event_filter: lookup.Filter
) -> web.StreamResponse:
    """Send every event after the reader's position, until either side ends the stream."""
    log_number = services.writer.replacements
    position = await _start(services, request, after)
    response = start_response(services, request, _HEADERS)
    with services.streams.count_open(caller()), services.metrics.open_streams.track_inprogress():
        try:
            # The service or the reader ended it; neither is an error.
            with suppress(ConnectionError, asyncio.CancelledError):
                await response.prepare(request)
                await send(response, b"retry: 1000\n\n")
                await _follow(services, request, response, position, event_filter, log_number)
        except TimeoutError:
            # A reader that reads nothing would not read the end of the stream either.
            if request.transport:
                request.transport.abort()
        except Exception:  # noqa: BLE001 - whatever it is, the stream ends and the log says why
            # The answer has begun, so it can no longer become a problem. The reader reconnects by itself.
            _log.exception("an event stream failed")
    return response


async def _start(services: Services, request: web.Request, after: int | None) -> int:
    resumed = request.headers.get("Last-Event-ID")
    if resumed is not None:
        if not _POSITION.fullmatch(resumed) or int(resumed) > _MAX_POSITION:
            raise invalid_field("Last-Event-ID", "must be the position of an event")
        after = int(resumed)
    if after is None:
        return services.writer.squad.head.position
    # A reader ahead of the log would wait, and then get other events than those that it is missing.
    await services.tables.wait_for_state(after)
    return after


async def _follow(
    services: Services,
    request: web.Request,
    response: web.StreamResponse,
    position: int,
    event_filter: lookup.Filter,
    log_number: int,
) -> None:
    last_sent_at = monotonic()
    who = caller()
    # What cannot be sent at once is read again later, so read no more than that, however large events are.
    page_sizer = PageSizer(_PAGE_EVENTS, first=_INITIAL_EVENTS, minimum=1, characters=SEND_BYTES)
    with services.channels.subscribe(event_filter) as channel:
        # A lost connection has no transport; a handler that only waits is not notified of it.
        while (
            not _is_gone(request) and not services.stopping and services.authenticator.is_still_allowed(who)
        ):
            if services.writer.replacements != log_number:
                head = services.writer.squad.head.position
                await send(response, b'event: log_replaced\ndata: {"position":%d}\n\n' % head)
                return
            waiter = channel.advanced.waiter()
            found, chunk = await _next(services, request, channel, position, event_filter, page_sizer)
            if chunk:
                await send(response, chunk)
                last_sent_at = monotonic()
            if monotonic() - last_sent_at >= KEEPALIVE_SECONDS:
                await send(response, b": alive\n\n")
                last_sent_at = monotonic()
            position = found
            if not chunk:
                await wait_for_hint(waiter, POLL_SECONDS)


async def _next(
    services: Services,
    request: web.Request,
    channel: Channel,
    position: int,
    event_filter: lookup.Filter,
    page_sizer: PageSizer,
) -> tuple[int, bytes]:
    """Return the next chunk and the position it reaches; an empty one if the database is unavailable."""
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
            return _chunk(services, await _in_the_log(services, position, event_filter, page_sizer))
    except (StoreUnavailable, StoreBusy):
        return position, b""


def _is_gone(request: web.Request) -> bool:
    """Return whether the reader has disconnected, for example while it waited for its turn."""
    return request.transport is None


async def _in_memory(services: Services, channel: Channel, position: int) -> FilteredEvents | None:
    head = services.writer.squad.head.position
    if position >= head:
        return FilteredEvents((), position)
    # The tail holds nothing from before this process started: until it reaches the head, read the log.
    return await channel.after(position, _PAGE_EVENTS) if services.tail.last == head else None


async def _in_the_log(
    services: Services, position: int, event_filter: lookup.Filter, page_sizer: PageSizer
) -> FilteredEvents:
    forgotten, head, most = services.tail.forgotten, services.writer.squad.head.position, page_sizer.events
    async with services.tables.connection() as connection:
        page = await lookup.read_filtered(connection, position, most, event_filter)
        shown = await sealing.reveal(connection, page)
    page_sizer.adapt(page)
    if services.tail.forgotten != forgotten:
        # Something was forgotten meanwhile: what was read may no longer be shown.
        return FilteredEvents((), position)
    last = page[-1].position if page else position
    # The log may already be ahead of what this process knows.
    return FilteredEvents(shown, last if len(page) == most else max(head, last))


def _chunk(services: Services, found: FilteredEvents) -> tuple[int, bytes]:
    """Return as much as may be sent at once, and the position it reaches; a single event may be larger."""
    frames: list[bytes] = []
    size = 0
    for recorded in found.events:
        frames.append(services.streams.frame(recorded))
        size += len(frames[-1])
        if size >= SEND_BYTES:
            return recorded.position, b"".join(frames)
    return found.upto, b"".join(frames)
