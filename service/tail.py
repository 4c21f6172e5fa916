"""The log's latest events in memory, for everyone in this process who follows it live.

The writer sees every event once, its own and the others'. Followers are served from here, so a thousand
open streams cost the database nothing. Sealed events are revealed once, for the first who asks; when
somebody is forgotten, everything before that is let go, and whoever is still behind reads what the log then
tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore import sealing
from eventstore.events import SubjectForgotten
from eventstore.listener import Hints

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from eventstore.recorded import Recorded

KEPT_EVENTS = 10_000
KEPT_BYTES = 32 * 1024 * 1024
"""So much is kept at least, and twice as much at most: whichever of the two bounds is reached first."""


class Tail:
    """Consecutive events up to the head; `moved` wakes when there are new ones."""

    def __init__(self, reveal: Callable[[Sequence[Recorded]], Awaitable[list[Recorded]]]) -> None:
        self.moved = Hints()
        self.forgotten = 0
        """How many were forgotten so far: who reads the log beside this must look again when it changes."""
        self._reveal = reveal
        self._events: list[Recorded] = []
        self._bytes = 0

    def extend(self, recorded: Sequence[Recorded]) -> None:
        """Takes in what was committed. Where something is missing in between, what is older is let go."""
        if self._events and recorded[0].position != self._events[-1].position + 1:
            self._events.clear()
        for index in range(len(recorded) - 1, -1, -1):
            if recorded[index].type == SubjectForgotten.type:
                self.forgotten += 1
                self._events.clear()
                recorded = recorded[index:]
                break
        self._events.extend(recorded)
        self._bytes += sum(len(item.data) for item in recorded)
        # Cut rarely: each cut moves all that is kept.
        if len(self._events) > 2 * KEPT_EVENTS or self._bytes > 2 * KEPT_BYTES:
            self._cut()
        self.moved.wake(recorded[-1].position)

    def forget(self) -> None:
        """The log was replaced: these events may not be in it."""
        self.forgotten += 1
        self._events.clear()
        self._bytes = 0
        self.moved.wake()

    async def after(self, position: int, limit: int) -> list[Recorded] | None:
        """The events after `position`, at most `limit`, readable; None where the tail begins later.

        Raises:
            StoreUnavailable, StoreBusy: the keys of sealed ones cannot be asked for.
        """
        while (events := self._slice(position, limit)) and any(map(sealing.may_be_sealed, events)):
            shown = await self._reveal(events)
            # Somebody may have been forgotten meanwhile; then it is not the same slice any more.
            if self._slice(position, len(events)) == events:
                start = position - self._events[0].position + 1
                self._events[start : start + len(events)] = shown
                return shown
        return events

    def _slice(self, position: int, limit: int) -> list[Recorded] | None:
        if not self._events or position < self._events[0].position - 1:
            return None
        skip = position - self._events[0].position + 1
        return self._events[skip : skip + limit]

    def _cut(self) -> None:
        """Lets go of what is beyond the bounds; the newest event is always kept."""
        first, self._bytes = len(self._events), 0
        while first and len(self._events) - first < KEPT_EVENTS and self._bytes < KEPT_BYTES:
            first -= 1
            self._bytes += len(self._events[first].data)
        del self._events[:first]
