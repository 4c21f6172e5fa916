"""The log's latest events in memory, for everyone in this process who follows it live.

The writer sees every event once, its own and the others'. Followers are served from here, so a thousand
open streams cost the database nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore.listener import Hints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.recorded import Recorded

KEPT_EVENTS = 10_000


class Tail:
    """Consecutive events up to the head; `moved` wakes when there are new ones."""

    def __init__(self) -> None:
        self.moved = Hints()
        self._events: list[Recorded] = []

    def extend(self, recorded: Sequence[Recorded]) -> None:
        """Takes in what was committed. Where something is missing in between, what is older is let go."""
        if self._events and recorded[0].position != self._events[-1].position + 1:
            self._events.clear()
        self._events.extend(recorded)
        # Cut rarely: each cut moves all that is kept.
        if len(self._events) > 2 * KEPT_EVENTS:
            del self._events[:-KEPT_EVENTS]
        self.moved.wake(recorded[-1].position)

    def after(self, position: int, limit: int) -> list[Recorded] | None:
        """The events after `position`, at most `limit`; None where the tail does not reach back so far."""
        if not self._events or position < self._events[0].position - 1:
            return None
        skip = position - self._events[0].position + 1
        return self._events[skip : skip + limit]
