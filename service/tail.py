"""The log's latest events in memory, for all live followers in this process.

The writer sees every event once, its own and those of other processes. Followers are served from here, so a
thousand open streams cost the database nothing. Sealed events are revealed once, for the first reader. When
somebody is forgotten, everything before that is dropped, and followers that are still behind read the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore import sealing
from eventstore.events import SubjectForgotten

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from eventstore.recorded import Recorded

MAX_EVENTS = 10_000
MAX_BYTES = 32 * 1024 * 1024
"""Bounds of what is kept, whichever is reached first; the newest event is always kept."""

EVICTION_STEPS = 50
"""In how many steps all that is kept is evicted. Each step moves the remaining events, so not every event
causes one; but evicting thousands of events at once would block everything for as long as a commit."""


class Tail:
    """Consecutive events up to the head."""

    def __init__(self, reveal: Callable[[Sequence[Recorded]], Awaitable[list[Recorded]]]) -> None:
        self.last = 0
        """The position of the newest event."""
        self.forgotten = 0
        """Changes when earlier events become outdated. A reader of the log must then read again."""
        self._reveal = reveal
        self._events: list[Recorded] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._events)

    @property
    def first(self) -> int:
        """The position of the oldest event; if there is none, that of the next one."""
        return self._events[0].position if self._events else self.last + 1

    def extend(self, recorded: Sequence[Recorded]) -> None:
        """Add committed events. If there is a gap before them, drop the older ones."""
        if self._events and recorded[0].position != self._events[-1].position + 1:
            self._clear()
        for index in range(len(recorded) - 1, -1, -1):
            if recorded[index].type == SubjectForgotten.type:
                self.forgotten += 1
                self._clear()
                recorded = recorded[index:]
                break
        self._events.extend(recorded)
        self._bytes += sum(len(item.data) for item in recorded)
        if len(self._events) > MAX_EVENTS + MAX_EVENTS // EVICTION_STEPS or self._bytes > MAX_BYTES:
            self._trim()
        self.last = recorded[-1].position

    def reset(self) -> None:
        """Drop everything after the log was replaced: these events may not be in it."""
        self.forgotten += 1
        self._clear()

    async def events_at(self, positions: Sequence[int]) -> list[Recorded] | None:
        """Return the events at these positions up to `last`, revealed; None if the tail begins later.

        Raises:
            StoreUnavailable, StoreBusy: the keys of sealed events cannot be read.
        """
        while (events := self._at(positions)) and any(map(sealing.may_be_sealed, events)):
            shown = await self._reveal(events)
            # If somebody was forgotten meanwhile, the events have been dropped: pick again.
            if self._at(positions) == events:
                first = self.first
                for position, sealed, one in zip(positions, events, shown, strict=True):
                    self._events[position - first] = one
                    self._bytes += len(one.data) - len(sealed.data)
                return shown
        return events

    def _at(self, positions: Sequence[int]) -> list[Recorded] | None:
        first = self.first
        if positions and positions[0] < first:
            return None
        return [self._events[position - first] for position in positions]

    def _trim(self) -> None:
        """Evict the oldest events until the bounds hold."""
        dropped, max_dropped = 0, len(self._events) - 1
        min_dropped = len(self._events) - MAX_EVENTS
        while dropped < max_dropped and (dropped < min_dropped or self._bytes > MAX_BYTES):
            self._bytes -= len(self._events[dropped].data)
            dropped += 1
        del self._events[:dropped]

    def _clear(self) -> None:
        self._events.clear()
        self._bytes = 0
