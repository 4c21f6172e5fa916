"""A helper that reads a tail from a position on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eventstore.recorded import Recorded
    from service.tail import Tail


async def after(tail: Tail, position: int, limit: int) -> list[Recorded] | None:
    """Return up to `limit` events after a position; None if the tail begins later."""
    if position < tail.first - 1:
        return None
    return await tail.events_at(range(position + 1, min(position + limit, tail.last) + 1))
