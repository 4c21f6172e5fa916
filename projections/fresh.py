"""What this process has just appended or folded, at hand for its projector.

A page that is here need not be read and decoded once more. It is no second truth: whoever writes rows by it
has the log confirm in the same transaction that it holds this very page. Its last event's hash is enough
for that, since a hash covers all that comes before it (`eventstore.chain`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eventstore.events import AnyEvent
from eventstore.log import PAGE_EVENTS
from eventstore.recorded import Recorded

MOST_BYTES = 8 * 1024 * 1024
"""What is not fetched before there is more of it, or before a page is full, is read from the log."""


class Page(NamedTuple):
    """Consecutive events, and how the log has them."""

    recorded: Sequence[Recorded]
    events: Sequence[AnyEvent]


class Fresh:
    """Consecutive events up to the last one that is known here, as long as somebody fetches them."""

    def __init__(self) -> None:
        self._recorded: list[Recorded] = []
        self._events: list[AnyEvent] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._recorded)

    def extend(self, recorded: Sequence[Recorded], events: Sequence[AnyEvent]) -> None:
        """Takes in a batch that was committed. What is older goes where the two do not meet."""
        if self._recorded and recorded[0].position != self._recorded[-1].position + 1:
            self.clear()
        self._recorded += recorded
        self._events += events
        self._bytes += sum(len(one.data) for one in recorded)
        if len(self._recorded) > PAGE_EVENTS or self._bytes > MOST_BYTES:
            self.clear()

    def take(self, after: int) -> Page | None:
        """All there is behind `after`; None where that is nothing, or begins later."""
        if not self._recorded or self._recorded[0].position > after + 1:
            return None
        known = after + 1 - self._recorded[0].position
        page = Page(self._recorded[known:], self._events[known:])
        self.clear()
        return page if page.recorded else None

    def clear(self) -> None:
        """Lets go of everything."""
        self._recorded, self._events, self._bytes = [], [], 0
