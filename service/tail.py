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

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from eventstore.recorded import Recorded

KEPT_EVENTS = 10_000
KEPT_BYTES = 32 * 1024 * 1024
"""So much is kept, whichever of the two bounds is reached first; the newest event is in any case."""

CUTS = 50
"""How many cuts it takes to let go of all that is kept. Each moves what is left, so there is none at every
event; and one of thousands of events would hold up everything else for as long as a commit takes."""


class Tail:
    """Consecutive events up to the head."""

    def __init__(self, reveal: Callable[[Sequence[Recorded]], Awaitable[list[Recorded]]]) -> None:
        self.last = 0
        """The position of the newest."""
        self.forgotten = 0
        """How many were forgotten so far: who reads the log beside this must look again when it changes."""
        self._reveal = reveal
        self._events: list[Recorded] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._events)

    @property
    def first(self) -> int:
        """The position of the oldest; where there is none, that of the next to come."""
        return self._events[0].position if self._events else self.last + 1

    def extend(self, recorded: Sequence[Recorded]) -> None:
        """Takes in what was committed. Where something is missing in between, what is older is let go."""
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
        if len(self._events) > KEPT_EVENTS + KEPT_EVENTS // CUTS or self._bytes > KEPT_BYTES:
            self._cut()
        self.last = recorded[-1].position

    def start_afresh(self) -> None:
        """The log was replaced: these events may not be in it."""
        self.forgotten += 1
        self._clear()

    async def pick(self, positions: Sequence[int]) -> list[Recorded] | None:
        """The events at these positions up to `last`, readable; None where the tail begins later.

        Raises:
            StoreUnavailable, StoreBusy: the keys of sealed ones cannot be asked for.
        """
        while (events := self._at(positions)) and any(map(sealing.may_be_sealed, events)):
            shown = await self._reveal(events)
            # Somebody may have been forgotten meanwhile; then they are not the same events any more.
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

    def _cut(self) -> None:
        """Lets go of what is beyond the bounds."""
        gone, most_gone = 0, len(self._events) - 1
        least_gone = len(self._events) - KEPT_EVENTS
        while gone < most_gone and (gone < least_gone or self._bytes > KEPT_BYTES):
            self._bytes -= len(self._events[gone].data)
            gone += 1
        del self._events[:gone]

    def _clear(self) -> None:
        self._events.clear()
        self._bytes = 0
