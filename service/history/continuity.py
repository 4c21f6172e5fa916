"""Checks that the log is still the one that was read: a lagging standby or a backup may have replaced it.

The hash of an event covers all events before it, so it is enough to check the last one seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore import chain, log, lookup
from eventstore.errors import LogReplaced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.connection import Connection
    from eventstore.recorded import Head, Recorded


async def check_head(connection: Connection, head: Head) -> None:
    """Check that the log still has the event that was its head when it was read.

    Raises:
        LogReplaced: it does not.
        StoreUnavailable: the connection broke.
    """
    if not head.position:
        return
    found = await lookup.read_one(connection, head.position)
    if found is None or found.hash != head.hash:
        ends = await log.head_position(connection)
        what = "holds another event now" if found else "is gone"
        raise LogReplaced(f"it ends at {ends}, and position {head.position}, which was read before, {what}")


async def check_page(connection: Connection, head: Head, page: Sequence[Recorded]) -> None:
    """Check that events, as stored, follow the head: a pooler may have routed us to another server.

    Raises:
        LogReplaced: they belong to another log.
        StoreUnavailable: the connection broke.
    """
    # If the head is still there, the next event was altered, which is for `squad verify` to report.
    if page and page[0].hash != chain.hash_of(head.hash, page[0]):
        await check_head(connection, head)
