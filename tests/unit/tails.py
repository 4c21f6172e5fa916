"""What a tail has after a position."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eventstore.recorded import Recorded
    from service.tail import Tail


async def after(tail: Tail, position: int, limit: int) -> list[Recorded] | None:
    """The events after a position, at most `limit`; None where the tail begins later."""
    if position < tail.first - 1:
        return None
    return await tail.events_at(range(position + 1, min(position + limit, tail.last) + 1))
