"""Fills the read tables from a whole log that is being imported, in the transaction that stores it.

So a log that cannot be folded is never stored, and nobody sees the log without its tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore import log
from eventstore.errors import LogBroken, LogNotUnderstood, StoreRefused
from eventstore.page_size import PageSizer
from projections import PROJECTIONS
from projections.folding import PageFolder
from projections.progress import read_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded


async def fill(connection: Connection, head: int, report: Callable[[int, int], None]) -> None:
    """Fold the log into empty tables.

    Args:
        connection: in the transaction that stores the log, without timeouts.
        head: the log's head.
        report: called with the position reached and the target position.

    Raises:
        LogNotUnderstood: an event cannot be folded.
    """
    folder = PageFolder((await read_progress(connection, PROJECTIONS)).generation, empty=True)
    page_sizer = PageSizer(log.PAGE_EVENTS)
    at = 0
    while at < head:
        page = await log.read_after(connection, at, page_sizer.events)
        if not page:
            raise LogBroken(f"position {at + 1} is missing", at + 1)
        page_sizer.adapt(page)
        await _fold(folder, connection, page)
        at = page[-1].position
        report(at, head)


async def _fold(folder: PageFolder, connection: Connection, page: Sequence[Recorded]) -> None:
    """Fold a page; if a table refuses it, bisect it to find the event."""
    try:
        async with connection.transaction():
            await folder.advance(connection, PROJECTIONS, page)
    except StoreRefused as error:
        if len(page) == 1:
            position = page[0].position
            raise LogNotUnderstood(f"at position {position}: {error}", position) from error
        half = len(page) // 2
        await _fold(folder, connection, page[:half])
        await _fold(folder, connection, page[half:])
