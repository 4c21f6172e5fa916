"""Catch-up subscription: the log as one endless sequence of pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore import log, lookup
from eventstore.listener import POLL_SECONDS, Hints, wait_for_hint
from eventstore.page_size import PageSizer
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
    event_filter: lookup.Filter | None = None,
    poll_seconds: float = POLL_SECONDS,
) -> AsyncGenerator[list[Recorded], None]:
    """Yield every event after `after` once, in order, in pages that are never empty; never end by itself.

    The larger the events, the fewer are in a page.

    Args:
        connection: opens a connection for one read, such as a pool's `connection`.
        hints: wakes the reader early; without hints it polls every `poll_seconds`.
        after: the position to start after; 0 for all.
        event_filter: yield only events that match.

    Raises:
        StoreUnavailable: a read failed; continue with a new subscription after the last position seen.
    """
    page_sizer = PageSizer(log.PAGE_EVENTS)
    while True:
        waiter, most = hints.waiter(), page_sizer.events
        with translating():
            async with connection() as reading:
                # The head is read before the page: events beyond it are left for the next read, so a
                # selective filter never reads the same events twice.
                end = await log.head_position(reading) if event_filter else after
                page = await (
                    lookup.read_filtered(reading, after, most, event_filter)
                    if event_filter
                    else log.read_after(reading, after, most)
                )
        if page:
            page_sizer.adapt(page)
            yield page
            after = page[-1].position
        if len(page) < most:
            after = max(after, end)
            await wait_for_hint(waiter, poll_seconds)
