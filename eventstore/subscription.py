"""Catch up, then live: the log as one endless sequence of pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore import log, lookup
from eventstore.gauge import Gauge
from eventstore.listener import POLL_SECONDS, Hints, wait_for_hint
from eventstore.translation import translating

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded


async def follow(
    connection: Callable[[], AbstractAsyncContextManager[Connection]],
    hints: Hints,
    after: int,
    *,
    wanted: lookup.Filter | None = None,
    poll_seconds: float = POLL_SECONDS,
) -> AsyncGenerator[list[Recorded], None]:
    """Yields every event after `after` once, in order, in pages that are never empty; never ends by itself.

    Pages are the shorter the larger their events are.

    Args:
        connection: opens a connection for one read, such as a pool's `connection`.
        hints: wakes the reader early; without any hint it looks every `poll_seconds`.
        after: the position to start behind; 0 for all.
        wanted: yields only what passes.

    Raises:
        StoreUnavailable: a read failed; continue with a new subscription after the last position seen.
    """
    gauge = Gauge(log.PAGE_EVENTS)
    while True:
        ticket, most = hints.ticket(), gauge.events
        with translating():
            async with connection() as reading:
                # The head is read before the page: what is beyond it is left for the next look, so a filter
                # that lets little through never reads the same stretch twice.
                end = await log.head_position(reading) if wanted else after
                page = await (
                    lookup.read_filtered(reading, after, most, wanted)
                    if wanted
                    else log.read_after(reading, after, most)
                )
        if page:
            gauge.learn(page)
            yield page
            after = page[-1].position
        if len(page) < most:
            after = max(after, end)
            await wait_for_hint(ticket, poll_seconds)
