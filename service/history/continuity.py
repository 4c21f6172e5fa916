"""Whether the log is still the one that was read: a standby that lagged, or a backup, may have its place.

By the chain, the hash of one event stands for all before it, so it is enough to look at the last one seen.
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
    """Looks whether the log has the event that was its head, when it was read.

    Raises:
        LogReplaced: it has not.
        StoreUnavailable: the connection broke.
    """
    if not head.position:
        return
    found = await lookup.read_one(connection, head.position)
    if found is None or found.hash != head.hash:
        ends = await log.head_position(connection)
        what = "is another event there" if found else "is not there"
        raise LogReplaced(f"it ends at {ends}, and position {head.position}, which was seen, {what}")


async def check_page(connection: Connection, head: Head, page: Sequence[Recorded]) -> None:
    """Looks whether events, as they are stored, follow what was the head: a pooler may lead elsewhere.

    Raises:
        LogReplaced: they are of another log.
        StoreUnavailable: the connection broke.
    """
    # Where only the hash of what follows is wrong, the log was changed, which is for `squad verify` to say.
    if page and page[0].hash != chain.hash_of(head.hash, page[0]):
        await check_head(connection, head)
